"""Episodes that are seen again: the same seeds, the same actions, and a look wherever the robot looked."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import replay
from pi0rag_jax.worlds.batch import Moment, Start
from pi0rag_jax.worlds.episode import Job, Step, Trace
from pi0rag_jax.worlds.replay import Executed, ExecutedLog


class Counting:
  """Stands in for a BatchEnv: a place is what was executed so far, added to the seed."""

  slots = 2

  def __init__(self, ends_at=99):
    self._places, self._ends_at, self._limits = {}, ends_at, {}

  def run(self, commands):
    return {slot: self._answer(slot, command) for slot, command in commands.items()}

  def _answer(self, slot, command):
    if isinstance(command, Start):
      self._places[slot] = [float(command.seed), 0]
      self._limits[slot] = self._ends_at
    else:
      if command.more_time:
        self._limits[slot] = self._places[slot][1] + self._ends_at
      self._places[slot][0] += float(command.actions_NA.sum())
      self._places[slot][1] += len(command.actions_NA)
    place, ticks = self._places[slot]
    return Moment({"state": place}, None, False, ticks >= self._limits[slot], ticks, [], [])


def episode(seed, ticks=(0, 2, 5), length=7):
  return Executed("s", seed, True, np.array(ticks), ("policy", "expert", "policy"),
                  np.arange(length, dtype=np.float32)[:, None])


def test_robots_see_again_what_they_saw():
  seen = {one.seed: [look["state"] for look in looks] for one, looks in replay.replay(
    Counting(), [episode(seed) for seed in (10, 20, 30)])}
  assert seen == {seed: [seed, seed + 0 + 1, seed + 0 + 1 + 2 + 3 + 4] for seed in (10, 20, 30)}
  ((_, looks),) = replay.replay(Counting(), [episode(10)], every_tick=True)
  assert [look["state"] for look in looks] == [10, 10, 11, 13, 16, 20, 25]


def test_a_world_that_ends_an_episode_early_is_another_one():
  with pytest.raises(Pi0RagError, match="episode 10 of stream 's' cannot be seen again: it ended before its time"):
    list(replay.replay(Counting(ends_at=3), [episode(10)]))


def test_who_was_helped_had_the_whole_time_limit_again():
  ((_, looks),) = replay.replay(Counting(ends_at=4), [episode(10)])
  assert len(looks) == 3
  alone = Executed("s", 10, True, np.array((0, 2, 5)), ("policy",) * 3, np.zeros((7, 1), np.float32))
  with pytest.raises(Pi0RagError, match="ended before its time"):
    list(replay.replay(Counting(ends_at=4), [alone]))


def test_what_was_executed_is_kept_and_the_last_of_a_seed_counts(tmp_path):
  step = lambda tick, by: Step(tick, None, np.zeros(1), np.zeros((4, 1)), np.full((4, 1), tick), 0, np.zeros(0),  # noqa: E731
                               np.zeros(0), by=by)
  trace = Trace(Job(3, 0), steps=[step(0, "policy"), step(2, "expert")], outcome="success", ticks=5)
  assert trace.helped_ticks == 3
  path = tmp_path / "executed.jsonl"
  with ExecutedLog(path) as log:
    log.append(episode(3))
    log.append(Executed.of_trace("s", trace))
    log.append(episode(4))
  found = replay.read(path)
  assert found.keys() == {("s", 3), ("s", 4)}
  last = found["s", 3]
  assert last.success and last.by == ("policy", "expert") and last.ticks_N.tolist() == [0, 2]
  np.testing.assert_array_equal(last.actions_FA[:, 0], [0, 0, 2, 2, 2])
  np.testing.assert_array_equal(last.helped_F, [False, False, True, True, True])
