"""Kill test of a server that learns: it is killed again and again while robots teach it, each its own episodes.

`python -m eval.teaching_durability --kills=1000` prints a report as JSON; exit status 1 if an episode that a robot was
told is learned is missing, there twice or another one, or if a robot could not go on. The policy is scripted and takes
no time; server, sessions, sockets and memory are those that serve.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import types
import warnings
from typing import Any, cast

import numpy as np

from pi0rag_jax.memory import verify
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.serving import client
from pi0rag_jax.serving.episode_log import LOG_NAME, EpisodeLog
from pi0rag_jax.serving.session import Teachable, TeachingSession
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer, reserve
from pi0rag_jax.steering.agent import Agent, Decision

HOST, ROBOTS = "127.0.0.1", 3
HORIZON, EXECUTED, DECISIONS = 6, 4, 6
_EARLY_SHARE = 0.1  # of the kills comes whether a server takes connections yet or not
HEADER = {"key_dim": 4, "action_horizon": HORIZON, "action_dim": ACTIONS.dim, "encoder": "e", "policy": "p"}


class ScriptedAgent:
  """Stands in for an Agent: what it decides follows from the observation alone."""

  policy = types.SimpleNamespace(space=ACTIONS, spec=types.SimpleNamespace(execute_steps=EXECUTED), robot=None,
                                 chunk_shape=(HORIZON, ACTIONS.dim))
  metadata: dict[str, Any] = {}

  def session(self) -> "ScriptedAgent":
    """See Agent."""
    return self

  def answer(self, observation) -> tuple[dict, Decision]:
    """See Agent."""
    rng = np.random.default_rng(np.asarray(observation["state"], np.uint32))
    chunk_BTA = rng.uniform(-0.01, 0.01, (1, HORIZON, ACTIONS.dim)).astype(np.float32)
    key_BE, nobody_BK = rng.standard_normal((1, 4)).astype(np.float32), np.full((1, 0), -1)
    decision = Decision(chunk_BTA, chunk_BTA, key_BE, np.zeros(1, int), nobody_BK, nobody_BK.astype(np.float32),
                        nobody_BK.astype(np.float32), nobody_BK, {})
    return {"actions": chunk_BTA[0]}, decision

  def surest(self, decision: Decision) -> dict:
    """See Agent."""
    del decision
    return {}


@dataclasses.dataclass
class Report:
  """What came of all kills; `problems` is empty if nothing was lost."""

  kills: int = 0
  episodes: int = 0  # that robots were told are learned
  resumed: int = 0  # times that a robot found another server
  problems: list[str] = dataclasses.field(default_factory=list)


def live(robot: Any, name: str, number: int) -> list[int]:
  """Returns the records of an episode that a robot lives through; a person acts in the middle of it."""
  robot.begin(name, task="scripted")
  for decision in range(DECISIONS):
    chunk_TA = robot.infer({"state": np.array([number, decision])})["actions"]
    helped = decision in (2, 3)
    robot.did(0.5 * chunk_TA[:EXECUTED] if helped else chunk_TA[:EXECUTED], by="human" if helped else "policy")
  return robot.end(True)["records"]


class _Teacher(threading.Thread):
  """A robot that teaches until it is told to stop."""

  def __init__(self, port: int, robot: int):
    super().__init__(daemon=True)
    self._port, self._robot, self.stopping = port, robot, threading.Event()
    self.learned: dict[str, list[int]] = {}
    self.lost, self.error = 0, ""

  def run(self) -> None:
    """Lives through one episode after the other."""
    try:
      robot = client.TeachingClient(HOST, self._port)
      reconnect = robot._reconnect

      def counted() -> None:
        self.lost += 1
        reconnect()

      robot._reconnect = counted
      while not self.stopping.is_set():
        number = ROBOTS * len(self.learned) + self._robot
        self.learned[f"episode {number}"] = live(robot, f"episode {number}", number)
      robot.close()
    except Exception as error:  # whatever ends a robot is what is looked for
      self.error = f"robot {self._robot}: {type(error).__name__}: {error}"


def _serve(folder: pathlib.Path, port: int) -> None:
  with Memory.open(folder, **HEADER, capacity=1 << 20, lock_timeout_s=10.0) as memory:
    teachable = Teachable(cast(Agent, ScriptedAgent()), memory, EpisodeLog(folder / LOG_NAME))
    asyncio.run(WebsocketPolicyServer(teachable, HOST, port).run())


def _nursery(folder: pathlib.Path, port: int, kills: int, pace_s: float, seed: int, ends: int, told: int) -> None:
  """Starts a server again and again and kills it; the last one lives until `ends` closes."""
  rng = np.random.default_rng(seed)
  for count in range(kills + 1):
    child = os.fork()
    if not child:
      try:
        _serve(folder, port)
      finally:
        os._exit(1)
    if count < kills:
      if rng.random() > _EARLY_SHARE:
        _wait_for(port)
      time.sleep(rng.exponential(pace_s))
    else:
      os.write(told, b"x")
      select.select([ends], [], [])
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
      os._exit(1)
  os._exit(0)


def _wait_for(port: int) -> None:
  """Returns once a server takes connections."""
  while True:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5.0):
      return
    time.sleep(0.01)


def run(kills: int, seed: int, folder: pathlib.Path, *, pace_s: float = 0.2) -> Report:
  """Returns the report of so many kills, `pace_s` apart on average."""
  probe = reserve(HOST, 0)
  port = probe.getsockname()[1]
  probe.close()
  (ends, end), (done, told) = os.pipe(), os.pipe()
  nursery = os.fork()  # before any thread
  if not nursery:
    os.close(end)
    _nursery(folder, port, kills, pace_s, seed, ends, told)
  patience, client.RETRY_S = client.RETRY_S, 0.02
  teachers = [_Teacher(port, robot) for robot in range(ROBOTS)]
  for teacher in teachers:
    teacher.start()
  try:
    select.select([done], [], [])
    for teacher in teachers:
      teacher.stopping.set()
    for teacher in teachers:
      teacher.join(60.0)
  finally:
    os.close(end)
    status = os.waitstatus_to_exitcode(os.waitpid(nursery, 0)[1])
    client.RETRY_S = patience
  learned = {name: ids for teacher in teachers for name, ids in teacher.learned.items()}
  report = Report(kills, len(learned), sum(teacher.lost for teacher in teachers))
  report.problems += [teacher.error for teacher in teachers if teacher.error]
  report.problems += [f"robot {i} is still waiting" for i, teacher in enumerate(teachers) if teacher.is_alive()]
  report.problems += ["a server ended by itself"] * bool(status)
  report.problems += verify.verify(folder) + _differences(folder, learned)
  return report


def _differences(folder: pathlib.Path, learned: dict[str, list[int]]) -> list[str]:
  """Returns which episodes are not in the memory as a server that nobody kills would have them."""
  found = collections.defaultdict(dict)
  with Memory.load(folder, capacity=1 << 20) as memory:
    for identity, record in memory.records():
      found[record.provenance["episode"]][identity] = _content(record)
  problems = [f"'{name}' was never told to be learned" for name in found if name not in learned]
  with (tempfile.TemporaryDirectory() as other, Memory.open(other, **HEADER, capacity=1 << 20) as memory):
    teachable = Teachable(cast(Agent, ScriptedAgent()), memory, EpisodeLog(pathlib.Path(other) / LOG_NAME))
    robot = _InProcess(teachable.session())
    for name, ids in learned.items():
      wanted = [_content(record) for record in memory.get(live(robot, name, int(name.split()[-1])))]
      # What is told again of an episode, whose first answer was lost, names no records.
      if (ids and ids != list(found[name])) or list(found[name].values()) != wanted:
        problems.append(f"'{name}' is not as it was taught")
  return problems


class _InProcess(client.TeachingClient):
  """The client, without a socket."""

  def __init__(self, teaching: TeachingSession):
    self._teaching, self._episode, self._did, self._decisions = teaching, {}, {}, 0

  def _ask(self, message) -> dict:
    return dict(self._teaching.infer(message))


def _content(record) -> tuple:
  return (record.kind, record.outcome, record.provenance["source"], record.provenance["tick"],
          *(array.tobytes() for array in (record.key, record.base_chunk, record.corrected_chunk)))


def main(argv: list[str] | None = None) -> int:
  """Runs the kill test and returns 1 if something was lost."""
  parser = argparse.ArgumentParser(prog="python -m eval.teaching_durability", description=__doc__)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args(argv)
  warnings.filterwarnings("ignore", message=".*fork.*")
  started_s = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="pi0rag_kill_") as directory:
    report = run(arguments.kills, arguments.seed, pathlib.Path(directory))
  print(json.dumps(dataclasses.asdict(report) | {"wall_s": round(time.monotonic() - started_s, 1)}, indent=1))
  return 1 if report.problems else 0


if __name__ == "__main__":
  sys.exit(main())
