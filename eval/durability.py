"""Kill test of streams: one that learns is killed again and again, and must come out as if it never had been.

`python -m eval.durability --kills=200` prints a report as JSON; exit status 1 if a stream differed from the one that
nobody killed. World and policy are scripted and take no time; stream, memory and logs are those of a sweep.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import signal
import sqlite3
import sys
import tempfile
import time
import types
import warnings
from typing import Any, cast

import numpy as np

from eval import records, stream
from eval.stream import Cell
from pi0rag_jax import files
from pi0rag_jax.learning.online import OnlineConfig
from pi0rag_jax.memory import schema
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.steering import credit, rules
from pi0rag_jax.steering.agent import Agent, Decision
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Moment, Plan, Rewind, Start
from pi0rag_jax.worlds.journal import Journal

HORIZON, EXECUTED, TICKS = 6, 4, 32
STEP, NEAR = 0.01, 0.02  # longest move per tick, and how near the goal an episode succeeds
NEIGHBOURS = 4
CELL = Cell("stream", "memory", "reach", "scripted", "reach/scripted")
# All that makes one episode depend on others: attempts, take-overs, repetitions without the memory, evictions.
_SETTINGS = {"corrected_max": 6, "corrections": {"failed_chunks": 2},
             "trust": {"broken_max": 0.1, "forgiven": 2, "share": 0.5}}
REWOUND = OnlineConfig.from_dict({"taught_by": "rewind", "retries": 1, **_SETTINGS})
WATCHED = OnlineConfig.from_dict({"taught_by": "takeover", **_SETTINGS,
                                  "supervisor": {"delay_s": 1.0, "hold_s": 1.0, "false_alarms": 0.1}})
_SENSORS = {"contact_force_arm_N": 0.0, "pad_forces_N": np.zeros(2), "gripper_width_m": 0.08, "gripper_command": 1.0,
            "tool_measured": np.zeros(4), "tool_commanded": np.zeros(4)}


@dataclasses.dataclass(frozen=True)
class Plot:
  """A stream: what is run in it, and after which episodes it pauses."""

  seeds: range = range(100, 140)
  pauses: tuple[int, ...] = (16, 40)
  slots: int = 6
  capacity: int = 150
  learning: OnlineConfig = REWOUND


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a hand is on its way to the seed's goal."""

  seed: int
  position_A: np.ndarray
  ticks: int = 0

  @property
  def goal_A(self) -> np.ndarray:
    return np.random.default_rng([self.seed, 1]).uniform(-0.1, 0.1, ACTIONS.dim) * [1, 1, 1, 0, 0]

  def plan(self, aim_A: np.ndarray) -> np.ndarray:
    """Returns the chunk that goes straight to a place, float32[T, A]."""
    left_A = aim_A - self.position_A
    pace_A = left_A * min(1.0, STEP / (np.abs(left_A).max() + 1e-9))
    return np.repeat(pace_A[None], HORIZON, axis=0).astype(np.float32)

  def moved(self, action_A: np.ndarray) -> "_Place":
    return _Place(self.seed, self.position_A + np.asarray(action_A, np.float64) * [1, 1, 1, 0, 0], self.ticks + 1)

  def moment(self, sensors: int = 0) -> Moment:
    """Returns what a worker would hand over."""
    success = bool(np.abs(self.goal_A - self.position_A).max() < NEAR)
    error = "scripted fault" if self.seed % 13 == 5 and self.ticks > 8 else ""
    return Moment({"state": np.concatenate([self.position_A, self.goal_A]), "prompt": f"reach goal {self.seed % 3}"},
                  self, success, success or self.ticks >= TICKS, self.ticks, [_SENSORS] * sensors, [], error=error)


class ScriptedWorld:
  """Stands in for a BatchEnv: hands that move at once."""

  def __init__(self, slots: int):
    self.slots = slots
    self._places: dict[int, _Place] = {}

  def run(self, commands: dict[int, Any]) -> dict[int, Any]:
    return {slot: self._answer(slot, command) for slot, command in commands.items()}

  def submit(self, commands: dict[int, Any]):
    answers = self.run(commands)
    return lambda: answers

  def _answer(self, slot: int, command):
    match command:
      case Start(seed, plan):
        self._places[slot] = _Place(seed, np.zeros(ACTIONS.dim))
      case Rewind(snapshot, plan):
        self._places[slot] = dataclasses.replace(snapshot, ticks=0)
      case Plan(snapshots):
        return np.stack([place.plan(place.goal_A) for place in snapshots])
      case Advance(actions_NA, plan):
        return self._planned(self._advance(slot, actions_NA), plan)
    return self._planned(self._places[slot].moment(), plan)

  def _planned(self, moment: Moment, plan: bool) -> Moment:
    place = moment.snapshot
    return dataclasses.replace(moment, plan_TA=place.plan(place.goal_A) if plan and not moment.done else None)

  def _advance(self, slot: int, actions_NA) -> Moment:
    for count, action_A in enumerate(actions_NA, 1):
      self._places[slot] = self._places[slot].moved(action_A)
      moment = self._places[slot].moment(count)
      if moment.done or moment.error:
        break
    return moment


class ScriptedAgent:
  """Stands in for an Agent: of three kinds of goals it misses two, unless its memory knows better."""

  def __init__(self, memory: Memory):
    self.memory = memory
    self.policy = types.SimpleNamespace(
      space=ACTIONS, noise_shape=(HORIZON, ACTIONS.dim), chunk_shape=(HORIZON, ACTIONS.dim),
      spec=types.SimpleNamespace(start="zero", execute_steps=EXECUTED, control_hz=EXECUTED), start=lambda rows: (),
      prepare=lambda raws: raws, encode=lambda carry, raws: (carry, raws), start_of_flow=lambda rows: np.zeros(
        (rows, HORIZON, ACTIONS.dim)), decode=lambda raws: np.stack([self._own(raw, None) for raw in raws]))
    self._rule = rules.preset("residual", utility=True, half_life=30.0, silenced_at=20.0, harmless=0.1)

  def _own(self, raw, noise_TX) -> np.ndarray:
    position_A, goal_A = np.split(raw["state"], 2)
    aside_A = np.array([0, 0.06, -0.06])[int(raw["prompt"][-1])] * np.array([1, -1, 1, 0, 0])
    chunk_TA = _Place(0, position_A).plan(goal_A + aside_A)
    return chunk_TA if noise_TX is None else (chunk_TA + 0.004 * noise_TX).astype(np.float32)

  def decide(self, carry, raws, noise_BTX=None, *, trust_B):
    noise = [None] * len(raws) if noise_BTX is None else [*noise_BTX, *[noise_BTX[-1]] * (len(raws) - len(noise_BTX))]
    base_BTA = np.stack([self._own(raw, n) for raw, n in zip(raws, noise)])
    key_BE = np.stack([np.append(raw["state"][[0, 1, 2, 5, 6, 7]], int(raw["prompt"][-1])) for raw in raws])
    found = self.memory.query(key_BE.astype(np.float32), NEIGHBOURS)
    trusted_BK = credit.trust(found, self._rule, episodes=self.memory.episodes, successes=self.memory.successes)
    weight_BK = (np.exp(-found.distances_BK / 0.1) * trusted_BK * found.mask_BK).astype(np.float32)
    change_BKTA = found.corrected_BKTA.astype(np.float32) - found.base_BKTA.astype(np.float32)
    mean_BTA = (weight_BK[..., None, None] * change_BKTA).sum(1) / (weight_BK.sum(1) + 0.05)[:, None, None]
    actions_BTA = (base_BTA + trust_B[:, None, None] * mean_BTA).astype(np.float32)
    return carry, Decision(actions_BTA, base_BTA, key_BE.astype(np.float32), (weight_BK > 0.01).sum(1),
                           found.ids_BK.astype(np.int32), weight_BK, found.distances_BK, found.kind_BK, {})


def play(out: pathlib.Path, plot: Plot = Plot(), *, log_type=records.RecordLog, memory_type=Memory,
         journal_type=Journal) -> None:
  """Runs a stream, or what is left of one, in a folder; what its memory is at each pause is kept there too."""
  with log_type(out / "records.jsonl") as log:
    for begin, until in zip((0, *plot.pauses), plot.pauses):
      seeds, done = plot.seeds[:until], [r for r in log.records if r.seed in plot.seeds[:until]]
      if len(done) < until:
        with (memory_type.open(out / "memory", key_dim=7, action_horizon=HORIZON, action_dim=ACTIONS.dim, encoder="e",
                               policy="p", capacity=plot.capacity) as memory,
              journal_type(out / "decisions.jsonl") as journal):
          part = stream.take_up(memory, journal, CELL.stream, seeds, begin, done)
          assert part.exact, "a stream that was only killed has all that it needs"
          agent, world = cast(Agent, ScriptedAgent(memory)), cast(BatchEnv, ScriptedWorld(plot.slots))
          for record, _ in stream.run(world, agent, CELL, part, plot.learning, journal):
            log.append(record)
      if not (out / f"pause_{until}.json").exists():
        files.write_text(out / f"pause_{until}.json", repr(content(out)))


def content(out: pathlib.Path, name: str = "memory") -> dict[str, list]:
  """Returns every row of a stream's memory, without times."""
  found = {}
  with sqlite3.connect(out / name / schema.NAME) as connection:
    for table in ("header", "records", "arrays", "batches", "undo", "evicted", "sqlite_sequence"):
      names = sorted(schema.columns(connection, table) - {"created"})
      found[table] = sorted(connection.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall())
  connection.close()
  return found


def differences(out: pathlib.Path, whole: pathlib.Path) -> list[str]:
  """Returns in what a stream differs from another one."""
  here, there = content(out), content(whole)
  names = [f"{table} of the memory" for table in here if here[table] != there[table]]
  return names + [path.name for path in sorted(whole.glob("*.json*"))
                  if path.name != "decisions.jsonl" and (out / path.name).read_bytes() != path.read_bytes()]


@dataclasses.dataclass
class Report:
  """What came of all streams; `problems` is empty if each was the one that nobody killed."""

  kills: int = 0
  streams: int = 0
  kills_by_episodes_logged: dict[int, int] = dataclasses.field(default_factory=dict)
  problems: list[str] = dataclasses.field(default_factory=list)


def run(kills: int, seed: int, out: pathlib.Path) -> Report:
  """Returns the report of so many kills, each stream is killed until it ends by itself; both ways to teach in turn."""
  rng, report = np.random.default_rng(seed), Report()
  plots = [Plot(learning=learning) for learning in (REWOUND, WATCHED)]
  wholes = [out / f"whole {learning}" for learning in range(len(plots))]
  started_s = time.monotonic()
  for plot, whole in zip(plots, wholes):
    _wait(_child(plot, whole))
  took_s = (time.monotonic() - started_s) / len(plots)
  logged: collections.Counter[int] = collections.Counter()
  while report.kills < kills:
    here, turn = out / str(report.streams), report.streams % len(plots)
    while True:
      child = _child(plots[turn], here)
      time.sleep(rng.exponential(took_s / 6))
      os.kill(child, signal.SIGKILL)
      if not _wait(child):
        break
      report.kills += 1
      log = here / "records.jsonl"
      logged[len(files.whole_lines(log)) if log.exists() else 0] += 1
    report.streams += 1
    report.problems += [f"stream {report.streams}: other {name}" for name in differences(here, wholes[turn])]
  report.kills_by_episodes_logged = dict(sorted(logged.items()))
  return report


def _child(plot: Plot, out: pathlib.Path) -> int:
  """Returns the id of a process that plays the stream."""
  child = os.fork()
  if child:
    return child
  status = 1
  try:
    play(out, plot)
    status = 0
  finally:
    os._exit(status)


def _wait(child: int) -> bool:
  """Returns whether a process was killed, once it is gone; raises if it failed."""
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if status not in (0, -signal.SIGKILL):
    raise RuntimeError(f"a stream ended with status {status}")
  return status != 0


def main(argv: list[str] | None = None) -> int:
  """Runs the kill test and returns 1 if a stream differed."""
  parser = argparse.ArgumentParser(prog="python -m eval.durability", description=__doc__)
  parser.add_argument("--kills", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args(argv)
  warnings.filterwarnings("ignore", message=".*fork.*")  # no thread is running yet
  started_s = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="pi0rag_kill_") as directory:
    report = run(arguments.kills, arguments.seed, pathlib.Path(directory))
  print(json.dumps(dataclasses.asdict(report) | {"wall_s": round(time.monotonic() - started_s, 1)}, indent=1))
  return 1 if report.problems else 0


if __name__ == "__main__":
  sys.exit(main())
