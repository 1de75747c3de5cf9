"""A stream that is killed at any of its steps ends as the one that nobody killed."""

import dataclasses
import functools
import itertools
import os
from typing import Any, cast

import pytest

from eval import durability, records, stream
from eval.durability import Plot
from eval.records import EpisodeRecord
from pi0rag_jax.learning.online import OnlineConfig
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.worlds.journal import Journal

PLOTS = {way: Plot(seeds=range(100, 114), pauses=(6, 14), slots=3, capacity=capacity, learning=learning)
         for way, capacity, learning in (("rewound", 60, durability.REWOUND), ("watched", 20, durability.WATCHED))}
EVERY = 9  # steps between the moments that are tried; all of them take a minute


class Killed(BaseException):
  """Stands for the signal."""


class Countdown:
  """Counts the steps in which a stream changes a file, and kills it before a chosen one."""

  def __init__(self, left: float = float("inf")):
    self.left, self.passed = left, 0

  def step(self) -> None:
    if self.passed >= self.left:
      raise Killed
    self.passed += 1


def play(out, plot: Plot, countdown: Countdown, *, power_cut: bool = False) -> bool:
  """Returns whether a stream came to its end; a power cut also takes what was not brought to the disk."""
  synced = 0

  class Log(records.RecordLog):
    def append(self, record):
      countdown.step()
      super().append(record)

  class Remembering(Memory):
    def add(self, *args, **kwargs):
      countdown.step()
      return super().add(*args, **kwargs)

    def undo(self, token):
      countdown.step()
      return super().undo(token)

  class Noting(Journal):
    def note(self, steps):
      countdown.step()
      super().note(steps)

    def sync(self):
      nonlocal synced
      super().sync()
      synced = len(self._log)

  try:
    durability.play(out, plot, log_type=Log, memory_type=Remembering, journal_type=Noting)
  except Killed:
    if power_cut:
      path = out / "decisions.jsonl"
      os.truncate(path, max(synced, path.stat().st_size - 700))  # in mid-line
    return False
  return True


@functools.cache
def steps_of_whole(out, plot: Plot) -> int:
  countdown = Countdown()
  assert play(out, plot, countdown)
  return countdown.passed


@pytest.fixture(scope="module", params=list(PLOTS))
def plot(request):
  """Returns a stream of each way to teach."""
  return PLOTS[request.param]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, plot):
  """Returns the folder of the stream that nobody kills."""
  out = tmp_path_factory.mktemp("stream") / "whole"
  steps_of_whole(out, plot)
  return out


def test_streams_learn_in_all_ways(whole):
  logged = records.read_records(whole / "records.jsonl")
  assert {record.outcome for record in logged} == set(records.OUTCOMES)
  assert any(record.corrected for record in logged)
  assert {record.extra.get("trust") for record in logged} == {0, None}
  assert {record.extra.get("alone") for record in logged} >= {"failure", None}
  assert durability.content(whole)["evicted"]


def test_streams_keep_their_promise_and_repeat_what_the_policy_alone_does(whole, plot, tmp_path):
  silent = OnlineConfig.from_dict({"corrected_max": 0, "trust": {"broken_max": 1e-6}})
  durability.play(tmp_path, dataclasses.replace(plot, pauses=(14,), learning=silent))
  alone = {record.seed: record.policy_succeeded for record in records.read_records(tmp_path / "records.jsonl")}
  promise, worked, broken, repeated = plot.learning.trust, 0, 0, 0
  for record in records.read_records(whole / "records.jsonl"):
    if record.had_a_say and not record.crashed and (
        not record.policy_succeeded or promise.drawn(record.seed)):
      assert record.worked_alone == alone[record.seed]
      repeated += 1
    elif not record.crashed:
      assert record.worked_alone is None
    worked += alone[record.seed]
    broken += record.had_a_say and alone[record.seed] and not record.policy_succeeded
    assert broken <= promise.broken_max * worked + promise.forgiven
  assert repeated > 1


@pytest.mark.parametrize("shared", [False, True])
def test_an_account_that_is_shared_has_what_the_streams_before_have_earned(tmp_path, shared):
  before = [EpisodeRecord("stream", "memory", "reach", "other", "reach/other", seed, index, "success", decisions=1,
                          extra={"trust": 0.0}) for index, seed in enumerate(range(300, 400))]
  learning = OnlineConfig.from_dict({"trust": {"broken_max": 0.1, "shared": shared}, "taught_by": "takeover"})
  with (Memory.open(tmp_path / "memory", key_dim=7, action_horizon=durability.HORIZON, action_dim=5, encoder="e",
                    policy="p") as memory, Journal(tmp_path / "decisions.jsonl") as journal):
    part = stream.take_up(memory, journal, durability.CELL.stream, range(100, 114), 0, [])
    agent, world = (cast(Any, thing) for thing in (durability.ScriptedAgent(memory), durability.ScriptedWorld(3)))
    ended = [record for record, _ in stream.run(world, agent, durability.CELL, part, learning, journal,
                                                elsewhere=before)]
  assert any(record.extra.get("trust", 1.0) > 0 for record in ended) == shared


@pytest.mark.parametrize("power_cut", [False, True])
def test_killed_once_at_any_step(whole, plot, tmp_path, power_cut):
  for at in range(3 + power_cut, steps_of_whole(whole, plot), EVERY):
    out = tmp_path / str(at)
    assert not play(out, plot, Countdown(at), power_cut=power_cut)
    assert play(out, plot, Countdown())
    assert not durability.differences(out, whole), f"killed before step {at}"


@pytest.mark.parametrize("pace", [2, 5, 11])
def test_killed_again_and_again(whole, plot, tmp_path, pace):
  """Each try is given more steps: those of an episode that was not logged are lost with it."""
  for attempt in itertools.count(1):
    if play(tmp_path / "s", plot, Countdown(pace * attempt), power_cut=attempt % 2 == 0):
      break
  assert attempt > 3
  assert not durability.differences(tmp_path / "s", whole)


def test_other_memory_is_told(whole, plot, tmp_path):
  """The comparison itself: a stream of fewer slots learns in another order."""
  durability.play(tmp_path, dataclasses.replace(plot, slots=2))
  assert "records of the memory" in durability.differences(tmp_path, whole)
