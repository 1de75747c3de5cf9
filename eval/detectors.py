"""Measures failure detectors against the simulation's truth: `python -m eval.detectors --out=FILE.json`.

Episodes come from a policy under some conditions, and from disturbed experts, whom misses and drops are forced on.
Per kind of failure: precision, recall and delay of what was noticed, and whether the kind of a failed episode is right.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from eval import true_failures
from eval.true_failures import Event
from pi0rag_jax import cli
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning import detectors
from pi0rag_jax.learning.detectors import DetectorConfig
from pi0rag_jax.policy import compiling
from pi0rag_jax.sim.tasks import get_task
from pi0rag_jax.statistics import bounds, wilson
from pi0rag_jax.worlds.episode import Job, Trace

COMMAND = "eval.detectors"
# A detection tells of a true failure from so many ticks before it until so many after its end.
EARLY_TICKS, LATE_TICKS = 2, 10


@dataclasses.dataclass
class Score:
  """How well one kind of failure is noticed."""

  detections: int = 0
  right: int = 0  # detections of a true failure
  events: int = 0
  noticed: int = 0  # true failures with a detection
  delays: list[int] = dataclasses.field(default_factory=list)  # ticks from a true failure to its first detection
  confidence_right: list[float] = dataclasses.field(default_factory=list)
  confidence_wrong: list[float] = dataclasses.field(default_factory=list)

  def add(self, found: Sequence[detectors.Detection], events: Sequence[Event]) -> None:
    """Books the detections and true failures of one episode."""
    for detection in found:
      right = any(_tells(detection.tick, event) for event in events)
      self.right += right
      (self.confidence_right if right else self.confidence_wrong).append(detection.confidence)
    self.detections += len(found)
    self.events += len(events)
    for event in events:
      ticks = [detection.tick for detection in found if _tells(detection.tick, event)]
      self.noticed += bool(ticks)
      self.delays += [min(ticks) - event.tick] if ticks else []

  def summary(self) -> dict[str, Any]:
    """Returns rates with 95 % intervals, and delays in ticks."""
    delays = np.quantile(self.delays, (0.5, 0.95)).tolist() if self.delays else []
    return {"precision": _rate(self.right, self.detections), "recall": _rate(self.noticed, self.events),
            "delay_ticks": dict(zip(("median", "p95"), delays)),
            "confidence": {"right": _mean(self.confidence_right), "wrong": _mean(self.confidence_wrong)}}


def measure(traces: Iterable[Trace], config: DetectorConfig) -> dict[str, Any]:
  """Returns the scores of detectors over episodes that have the truth of each tick; crashed ones are left out."""
  scores = {kind: Score() for kind in detectors.KINDS}
  confusion: collections.Counter[tuple[str, str]] = collections.Counter()
  outcomes: collections.Counter[str] = collections.Counter()
  rises_m = []
  for trace in traces:
    outcomes[trace.outcome] += 1
    if trace.outcome == "crashed":
      continue
    findings = detectors.detect(trace.sensors, config, timed_out=trace.outcome == "failure")
    events = true_failures.events(trace)
    for kind, score in scores.items():
      score.add([d for d in findings.detections if d.kind == kind], [e for e in events if e.kind == kind])
    grasps = true_failures.grasps(trace.truths, true_failures.Rules())
    if trace.outcome == "failure":
      confusion[true_failures.kind(events, grasps), findings.kind] += 1
    else:
      rises_m += _rises(trace, grasps)
  return {
      "episodes": dict(outcomes),
      "kinds": {kind: score.summary() for kind, score in scores.items()},
      "failed_episodes": _by_kind(confusion),
      # Where successes let go: `release_height_m` must lie above.
      "release_rise_of_successes_m": np.round(np.quantile(rises_m, (0.5, 0.95, 1.0)), 4).tolist() if rises_m else [],
  }


def _tells(tick: int, event: Event) -> bool:
  return event.tick - EARLY_TICKS <= tick <= event.end + LATE_TICKS


def _by_kind(confusion: collections.Counter[tuple[str, str]]) -> dict[str, Any]:
  """Returns precision and recall of the kind that a failed episode is said to be, and all pairs (true, said)."""
  kinds = {}
  for kind in detectors.KINDS:
    right = confusion[kind, kind]
    kinds[kind] = {"precision": _rate(right, sum(n for (_, said), n in confusion.items() if said == kind)),
                   "recall": _rate(right, sum(n for (true, _), n in confusion.items() if true == kind))}
  return {"kinds": kinds, "true, said": {f"{true}, {said}": n for (true, said), n in sorted(confusion.items())}}


def _rises(trace: Trace, grasps: Sequence[tuple[int, int]]) -> list[float]:
  """Returns by how much the tool rose over each grasp that did not end with a closed hand, m."""
  heights_m = [float(s["tool_measured"][2]) for s in trace.sensors]
  return [heights_m[last - 1] - heights_m[first - 1] for first, last in grasps
          if last < len(heights_m) and trace.sensors[last]["gripper_command"] >= 0.5]


def _rate(count: int, n: int) -> dict[str, Any]:
  if not n:
    return {"n": 0}
  return {"rate": round(count / n, 4), "interval": bounds(wilson(count, n)), "n": n}


def _mean(values: Sequence[float]) -> float | None:
  return round(float(np.mean(values)), 3) if values else None


def policy_traces(policy: str, task: str, condition: str, seeds: Sequence[int], *, slots: int,
                  processes: int) -> Iterator[Trace]:
  """Yields a policy's episodes with the truth of each tick.

  Args:
    policy: the name of a shipped one, or a directory.
  """
  from pi0rag_jax.policy import directory
  from pi0rag_jax.steering.agent import Agent
  from pi0rag_jax.worlds import rollout
  from pi0rag_jax.worlds.batch import BatchEnv

  spec, _ = directory.describe(policy)
  config = rollout.world_config(spec, task, condition, witness=True)
  agent = Agent(directory.load(policy))
  jobs = collections.deque(Job(seed, i) for i, seed in enumerate(seeds))
  with BatchEnv(config, slots=slots, processes=processes) as env:
    yield from rollout.run(env, agent, jobs)


def disturbed_traces(task: str, condition: str, seeds: Sequence[int]) -> Iterator[Trace]:
  """Yields episodes of the task's expert in which misses and drops are forced, with the truth of each tick."""
  from pi0rag_jax.sim.collect import Disturbance, Disturber
  from pi0rag_jax.sim.env import PandaEnv
  from pi0rag_jax.sim.experts import get_expert

  env = PandaEnv(task, condition, render_images=False)
  expert = get_expert(task)
  settings = dataclasses.replace(Disturbance().over(env.task.time_limit), miss_probability=0.4, drop_probability=0.4)
  for seed in seeds:
    env.reset(seed=seed)
    disturber = Disturber(np.random.default_rng([1, seed]), env.action_space.low, env.action_space.high, settings)
    yield _disturbed(env, expert, disturber, Job(seed, 0))


def _disturbed(env, expert, disturber, job: Job) -> Trace:
  from pi0rag_jax.sim.truth import Witness

  witness, trace, info, done = Witness(env.physics), Trace(job), env.info(), False
  while not done:
    action_A = disturber.apply(expert.plan(env, 1, disturber.mistake(env.ticks))[0], tick=env.ticks,
                               grasped=bool(info["privileged"]["grasped"]))
    _, terminated, truncated, info = env.advance(action_A[None])
    trace.sensors.append(info["failure_signals"])
    trace.truths.append(witness.look())
    done = terminated or truncated
  trace.ticks, trace.error = env.ticks, info["sim_error"] or ""
  trace.outcome = "crashed" if trace.error else "success" if info["success"] else "failure"
  return trace


def thresholds(assignments: Sequence[str], task: str) -> DetectorConfig:
  """Returns the detectors' thresholds for a task with some changed, each `name=value`.

  Errors: Pi0RagError for an unknown task, what is no number, or no threshold.
  """
  changes = {"put_height_m": get_task(task).put_height_m}
  for assignment in assignments:
    name, _, value = assignment.partition("=")
    try:
      changes[name] = type(getattr(DetectorConfig(), name))(value)
    except AttributeError:
      raise unknown_name("threshold", name, [f.name for f in dataclasses.fields(DetectorConfig)]) from None
    except ValueError:
      raise Pi0RagError(f"--threshold={assignment}: '{value}' is no number") from None
  return dataclasses.replace(DetectorConfig(), **changes)


def main(_) -> None:
  """Measures what the flags say, writes it as JSON and prints a table."""
  logging.set_verbosity(logging.WARNING)
  compiling.keep_programs()
  with cli.user_errors(COMMAND):
    values = flags.FLAGS
    config = thresholds(values.threshold, values.task)
    traces, sources = _gather(values)
    report = {"task": values.task, "first_seed": values.first_seed, "thresholds": dataclasses.asdict(config),
              "all": measure(traces, config), "sources": {name: measure(t, config) for name, t in sources.items()}}
    pathlib.Path(values.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")
  for kind, score in report["all"]["kinds"].items():
    precision, recall = score["precision"], score["recall"]
    print(f"{kind:10} precision {precision.get('rate', '-'):>6} of {precision['n']:4}   recall "
          f"{recall.get('rate', '-'):>6} of {recall['n']:4}   delay {score['delay_ticks'].get('median', '-')} ticks")


def _gather(values) -> tuple[list[Trace], dict[str, list[Trace]]]:
  """Returns (all episodes, episodes by where they come from)."""
  seeds = range(values.first_seed, values.first_seed + values.episodes)
  sources = {}
  for condition in values.conditions:
    if values.policy:
      sources[f"policy, {condition}"] = list(policy_traces(values.policy, values.task, condition, seeds,
                                                           slots=values.slots, processes=values.processes))
  for condition in values.disturbed:
    sources[f"disturbed expert, {condition}"] = list(disturbed_traces(values.task, condition, seeds))
  return [trace for traces in sources.values() for trace in traces], sources


if __name__ == "__main__":
  flags.DEFINE_string("policy", "panda_small", "A shipped policy or a policy's directory; '': disturbed experts only.")
  flags.DEFINE_string("task", "pick_and_place", "Name of the task.")
  flags.DEFINE_list("conditions", ["camera_shift", "tool_offset", "slippery_heavy", "calibration_region",
                                   "wrist_camera_turn"], "Conditions under which the policy works.")
  flags.DEFINE_list("disturbed", ["nominal", "slippery_heavy"], "Conditions under which a disturbed expert works.")
  flags.DEFINE_integer("episodes", 100, "How many of each; they have the seeds from --first_seed on.")
  flags.DEFINE_integer("first_seed", 200_000, "Thresholds were chosen on seeds from 300,000 on.")
  flags.DEFINE_multi_string("threshold", [], "Another threshold, as held_ticks=2; may be given several times.")
  flags.DEFINE_integer("slots", 16, "Environments that share one policy call.")
  flags.DEFINE_integer("processes", 2, "Worker processes.")
  flags.DEFINE_string("out", None, "JSON file of the results.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
