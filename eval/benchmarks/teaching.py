"""`teaching`: what learning costs a server; `wire`: whether a memory is as good when it is taught over the wire."""

import argparse
import collections
import contextlib
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from eval.benchmarks import timing
from eval.server_durability import Server
from pi0rag_jax import statistics
from pi0rag_jax.learning.online import TAKEOVER, OnlineConfig, OnlineLearner
from pi0rag_jax.memory import verify
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.serving.client import TeachingClient, WebsocketClientPolicy
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, STREAM_SEEDS

POLICY, TASK, CONDITIONS = "panda_small", "pick_and_place", ("camera_shift", "wrist_camera_turn")
HOST = "127.0.0.1"
DECISIONS = 12  # of a robot's episode in `teaching`
TURN_S = 0.4  # that a robot executes between two of them


def teaching(flags: argparse.Namespace) -> list[dict]:
  """Returns rows: decisions of a server that learns against one that does not, both with the same memory; how soon a
  record is found; and what robots meet that teach one memory at the same time.
  """
  with tempfile.TemporaryDirectory() as folder:
    root, seen = pathlib.Path(folder), observations()
    rows = _on_and_off(root, seen, flags.repeats)
    return [*rows, _fleet(root, seen, flags.robots, 60.0 * flags.minutes)]


def wire(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each condition: a memory taught over the wire, what it holds against one taught in process by the
  same episodes, and the success of the policy with and without it.
  """
  return [_taught(condition, flags) for condition in CONDITIONS]


@contextlib.contextmanager
def serving(root: pathlib.Path, memory: pathlib.Path | None, *options: str) -> Iterator[int]:
  """Yields the port of a server."""
  with Server(POLICY, memory, root / f"{time.monotonic_ns()}.log", *options) as server:
    yield server.port()


def observations(count: int = 16) -> list[dict[str, Any]]:
  """Returns what the robot sees in an episode of the expert's."""
  spec, _ = directory.describe(POLICY)
  with contextlib.closing(registry.make_world(rollout.world_config(spec, TASK, CONDITIONS[0]))) as world:
    world.begin(STREAM_SEEDS[0])
    seen = []
    for _ in range(count):
      seen.append(world.observe())
      world.advance(world.plan(spec.horizon)[:4])
  return seen


def _varied(look: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
  """Returns an observation like another one: no two looks of a robot are the same."""
  images = {name: np.clip(picture + rng.integers(-4, 5, picture.shape), 0, 255).astype(np.uint8)
            for name, picture in look["image"].items()}
  return {**look, "image": images, "state": look["state"] + rng.normal(0, 1e-3, look["state"].shape).astype(np.float32)}


def _live(robot: TeachingClient, name: str, seen: list[dict], pace_s: float, taken_ms: list[float]) -> list[int]:
  """Returns the records of an episode in which a person acts from the middle on."""
  rng = np.random.default_rng(list(name.encode()))
  robot.begin(name, task=TASK, robot=name.split()[0])
  for decision in range(DECISIONS):
    due_s = time.perf_counter() + pace_s
    look = _varied(seen[decision % len(seen)], rng)
    start_s = time.perf_counter()
    chunk_TA = robot.infer(look)["actions"]
    taken_ms.append(1000 * (time.perf_counter() - start_s))
    helped = decision > DECISIONS // 2
    robot.did(np.clip(0.5 * chunk_TA[:8], -1, 1) if helped else chunk_TA[:8], by="human" if helped else "policy")
    time.sleep(max(0.0, due_s - time.perf_counter()))
  return robot.end(True)["records"]


def _on_and_off(root: pathlib.Path, seen: list[dict], repeats: int) -> list[dict]:
  """Returns the rows of a decision with teaching on and off, taken in turn, and of when a record is found."""
  taught, same = root / "taught", root / "same"
  with serving(root, taught, "--learn") as port, contextlib.closing(TeachingClient(HOST, port)) as robot:
    for i in range(8):
      _live(robot, f"before {i}", seen, 0.0, [])
  shutil.copytree(taught, same)
  with (serving(root, taught, "--learn") as on, serving(root, same) as off,
        contextlib.closing(TeachingClient(HOST, on)) as robot,
        contextlib.closing(WebsocketClientPolicy(HOST, off)) as plain,
        contextlib.closing(WebsocketClientPolicy(HOST, on)) as other):
    robot.begin("timed")
    turn = iter(range(10**9))

    def learning():
      answer = robot.infer(seen[next(turn) % len(seen)])
      robot.did(by="policy")
      return answer["actions"]

    taken = timing.interleaved({"off": lambda: plain.infer(seen[0])["actions"], "on": learning,
                                "on_other_client": lambda: other.infer(seen[0])["actions"]}, repeats=20 * repeats)
    with contextlib.closing(TeachingClient(HOST, on)) as asking:
      rng = np.random.default_rng(0)
      found_ms = [_found_after(robot, asking, f"found {i}", _varied(seen[0], rng)) for i in range(repeats)]
  against = {name: timing.ratio(taken[name], taken["off"]) for name in ("on", "on_other_client")}
  rows = [{"decision": name, **timing.summary(ms), **against.get(name, {})} for name, ms in taken.items()]
  return [*rows, {"decision": "found after its acknowledgement", "episodes": repeats, **timing.summary(found_ms)}]


def _found_after(robot: TeachingClient, other: TeachingClient, name: str, look: dict) -> float:
  """Returns ms from the acknowledgement of an episode until another client's answer rests on its record most."""
  robot.begin(name, task=TASK)
  for _ in range(2):
    chunk_TA = robot.infer(look)["actions"]
    robot.did(np.clip(0.5 * chunk_TA[:8], -1, 1), by="human")
  records = robot.end(True)["records"]
  acknowledged_s = time.perf_counter()
  other.begin(f"{name}, looked at")
  while other.infer(look)["episode"].get("surest", {}).get("record") not in records:
    other.did(ticks=0)
  return 1000 * (time.perf_counter() - acknowledged_s)


class _Robot(threading.Thread):
  """A robot that teaches until time is over."""

  def __init__(self, port: int, number: int, seen: list[dict], until_s: float):
    super().__init__(daemon=True)
    self._port, self._number, self._seen, self._until_s = port, number, seen, until_s
    self.taken_ms: list[float] = []
    self.learned: dict[str, list[int]] = {}
    self.error = ""

  def run(self) -> None:
    """Lives through one episode after the other."""
    try:
      with contextlib.closing(TeachingClient(HOST, self._port)) as robot:
        robot.infer(self._seen[0])
        while time.perf_counter() < self._until_s:
          name = f"robot-{self._number} {len(self.learned)}"
          self.learned[name] = _live(robot, name, self._seen, TURN_S, self.taken_ms)
    except Exception as error:  # whatever ends a robot is what is looked for
      self.error = f"{type(error).__name__}: {error}"


def _fleet(root: pathlib.Path, seen: list[dict], count: int, seconds: float) -> dict:
  """Returns the row of robots that teach one memory at the same time."""
  folder = root / "fleet"
  with serving(root, folder, "--learn", "--capacity=1000000") as port:
    robots = [_Robot(port, number, seen, time.perf_counter() + seconds) for number in range(count)]
    for robot in robots:
      robot.start()
      time.sleep(TURN_S / count)
    for robot in robots:
      robot.join(seconds + 120.0)
  taken_ms = np.concatenate([robot.taken_ms for robot in robots])
  found = collections.defaultdict(list)
  with Memory.load(folder) as memory:
    for identity, record in memory.records():
      found[record.provenance["episode"]].append(identity)
  told = {name: ids for robot in robots for name, ids in robot.learned.items()}
  times = timing.summary(taken_ms)
  return {"robots": count, "seconds": seconds, "episodes": len(told), "decisions": len(taken_ms), **times,
          "p99_over_p50": round(times["p99_ms"] / times["p50_ms"], 2),
          "episodes_not_as_told": sum(ids != found.get(name, []) for name, ids in told.items()),
          "episodes_never_told": len(found.keys() - told.keys()),
          "robots_waiting": sum(robot.is_alive() for robot in robots),
          "errors": [robot.error for robot in robots if robot.error], "problems": verify.verify(folder)}


def _taught(condition: str, flags: argparse.Namespace) -> dict:
  """Returns the row of a condition, see `wire`."""
  policy, learning = directory.load(POLICY), OnlineConfig(taught_by=TAKEOVER, corrected_max=flags.corrected)
  seeds = range(STREAM_SEEDS[0], STREAM_SEEDS[0] + flags.episodes)
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    traces = _in_process(policy, condition, seeds, learning, root / "in_process")
    with (serving(root, root / "wire", "--learn") as port, contextlib.closing(TeachingClient(HOST, port)) as robot,
          contextlib.closing(WebsocketClientPolicy(HOST, port)) as other):
      unequal = sum(_told(robot, trace, kind) for trace, kind in traces)
      with (serving(root, root / "wire") as alone,
            contextlib.closing(WebsocketClientPolicy(HOST, alone)) as unlearned):
        same = all(_plain(other.infer(seen)) == _plain(unlearned.infer(seen)) for seen in _seen(traces[0][0]))
    records = {name: _said(root / name) for name in ("in_process", "wire")}
    succeeded = {name: _evaluated(policy, condition, root / name if name else None, flags.evaluated)
                 for name in ("", "wire")}
  rate = statistics.success_rate(succeeded["wire"])
  taken_over = sum(trace.helped for trace, _ in traces)
  return {"condition": condition, "episodes": len(traces), "taken_over": taken_over, "records": len(records["wire"]),
          "same_records": records["wire"] == records["in_process"], "answers_unlike_in_process": unequal,
          "other_client_same": same, "evaluated": flags.evaluated, "success_alone": int(succeeded[""].sum()),
          "success": int(succeeded["wire"].sum()), "low": round(rate.low, 3), "high": round(rate.high, 3),
          "mended": int((succeeded["wire"] & ~succeeded[""]).sum()),
          "broken": int((~succeeded["wire"] & succeeded[""]).sum())}


def _in_process(policy: Policy, condition: str, seeds: range, learning: OnlineConfig, folder: pathlib.Path
                ) -> list[tuple[Trace, str]]:
  """Returns the episodes of a stream, one at a time, and what kind of failure each was."""
  with (Memory.open(folder, **policy.memory_header()) as memory,
        BatchEnv(rollout.world_config(policy.spec, TASK, condition), slots=1, processes=0) as env):
    agent, tick_s = Agent(policy, memory), 1 / policy.spec.control_hz
    learner = OnlineLearner(memory, policy.space, task=TASK, condition=condition, config=learning, stream="s",
                            tick_s=tick_s, time_limit_s=registry.family("panda").time_limit(TASK) * tick_s,
                            expert_plan=lambda moments: np.zeros((0, 0, 0)))
    jobs = collections.deque(Job(seed, i) for i, seed in enumerate(seeds))
    traces = [(trace, learner.learn(trace).failure_kind) for trace in rollout.run(
        env, agent, jobs, launch=learner.launch, watch=learner.watch, keep_observations=True)]
    agent.close()
  return traces


def _told(robot: TeachingClient, trace: Trace, kind: str) -> int:
  """Teaches an episode as the robot lived it; returns how many of the answers differ from what it acted on."""
  robot.begin(f"seed {trace.job.seed}", task=TASK)
  ends, unequal = [*(step.tick for step in trace.steps[1:]), trace.ticks], 0
  for step, end, seen in zip(trace.steps, ends, _seen(trace)):
    answer = robot.infer(seen)
    unequal += step.by == "policy" and not np.array_equal(answer["actions"], step.actions_TA.astype(np.float64))
    robot.did(step.actions_TA[: end - step.tick], by=step.by)
  robot.end(trace.outcome == "success", failure_kind=kind)
  return int(unequal)


def _seen(trace: Trace) -> list[Mapping[str, Any]]:
  return [step.observation for step in trace.steps if step.observation is not None]


def _plain(answer: Mapping) -> dict:
  """Returns the bytes of what an answer says, without its times."""
  return {name: np.asarray(value).tobytes() for name, value in answer.items() if not name.endswith("timing")}


def _said(folder: pathlib.Path) -> list[tuple]:
  """Returns what the records of a memory say, but for where they come from."""
  with Memory.load(folder) as memory:
    return [(r.kind, r.outcome, r.failure_kind, r.task, r.prompt, r.provenance["source"], r.provenance["tick"],
             *(array.tobytes() for array in (r.key, r.base_chunk, r.corrected_chunk)), r.helped, r.hurt)
            for _, r in memory.records()]


def _evaluated(policy: Policy, condition: str, memory: pathlib.Path | None, count: int) -> np.ndarray:
  """Returns bool[count]: in which evaluation episodes the policy succeeds, with a memory or without."""
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(Memory.load(memory)) if memory else None
    env = stack.enter_context(BatchEnv(rollout.world_config(policy.spec, TASK, condition), slots=16, processes=2))
    agent = Agent(policy, held)
    jobs = collections.deque(Job(EVALUATION_SEEDS[i], i) for i in range(count))
    outcome = {trace.job.index: trace.outcome == "success" for trace in rollout.run(env, agent, jobs)}
    agent.close()
  return np.array([outcome[i] for i in range(count)])
