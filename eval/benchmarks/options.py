"""`options`: ways to decide sooner, or in less memory, that change what is decided, judged by success rate.

The world's simulator is needed.
"""

import argparse
import collections
import functools
from collections.abc import Callable, Iterator
from typing import cast

import jax.numpy as jnp
import numpy as np

from eval import plan
from eval.benchmarks import timing
from pi0rag_jax import statistics
from pi0rag_jax.errors import unknown_name
from pi0rag_jax.models import flow as flow_matching
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Encoded, Policy
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.typing import Array
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.batch import BatchEnv, Start
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.world import WorldConfig

FIRST_SEED = 380_000  # of the tuning range
PROCESSES = 2


def options(flags: argparse.Namespace) -> Iterator[dict]:
  """Yields a row for each place and option: success on the same seeds, and one robot's decision in turn.

  `ratio` is the decision's time against that of the first option, `fixed` and `regressed` count the episodes that only
  it, or only the first option, brought to an end. Intervals are of 95 %.
  """
  reference, *others = OPTIONS
  unknown = set(flags.options) - set(OPTIONS)
  if unknown:
    raise unknown_name("option", unknown.pop(), OPTIONS)
  family, (spec, _) = registry.family(flags.world), directory.describe(flags.policy)
  places = [plan.place(entry, "", family) for entry in flags.places]
  worlds = [rollout.world_config(spec, place.task, place.condition, world=flags.world) for place in places]
  policies = {name: OPTIONS[name](flags.policy) for name in (reference, *others)
              if name == reference or name in flags.options or not flags.options}
  taken_ms = _decisions(policies, worlds[0], repeats=flags.repeats)
  for world in worlds:
    expected: np.ndarray | None = None
    for name, by_seed in _successes(policies, world, flags):
      expected = by_seed if expected is None else expected
      rate = statistics.success_rate(by_seed)
      paired = statistics.paired_comparison(expected, by_seed, np.random.default_rng(0))
      yield {"policy": flags.policy, "world": flags.world, "task": world.task_name, "condition": world.condition,
             "option": name, "episodes": rate.n, "success": round(rate.value, 4), "success_low": round(rate.low, 4),
             "success_high": round(rate.high, 4), "fixed": paired.fixed, "regressed": paired.regressed,
             "p50_ms": timing.summary(taken_ms[name])["p50_ms"],
             **timing.ratio(taken_ms[name], taken_ms[reference])}


def _decisions(policies: "dict[str, Policy | WarmStarted]", world: WorldConfig, *, repeats: int
               ) -> dict[str, np.ndarray]:
  """Returns the ms of a decision for one robot, of all options in turn; it has a last chunk to go on from."""
  with BatchEnv(world, slots=1, processes=0) as env:
    observation = env.run({0: Start(FIRST_SEED - 1)})[0].observation
  calls = {}
  for name, policy in policies.items():
    start = np.zeros((1, *policy.chunk_shape)) if isinstance(policy, WarmStarted) else None
    calls[name] = functools.partial(_actions, Agent(cast("Policy", policy)), observation, start)
  return timing.interleaved(calls, repeats=repeats)


def _actions(agent: Agent, observation: dict, start: np.ndarray | None) -> np.ndarray:
  return agent.decide(agent.policy.start(1), [observation], start)[1].actions_BTA


def _successes(policies: "dict[str, Policy | WarmStarted]", world: WorldConfig, flags: argparse.Namespace
               ) -> Iterator[tuple[str, np.ndarray]]:
  """Yields each option and bool[episodes], by seed."""
  with BatchEnv(world, slots=flags.slots[-1], processes=PROCESSES) as env:
    for name, policy in policies.items():
      jobs = collections.deque(Job(FIRST_SEED + i, i) for i in range(flags.episodes))
      start = policy.last_chunk if isinstance(policy, WarmStarted) else None
      traces = list(rollout.run(env, Agent(cast("Policy", policy)), jobs, start=start))
      crashed = [trace.error for trace in traces if trace.outcome == "crashed"]
      assert not crashed, crashed[0]
      yield name, np.array([t.outcome == "success" for t in sorted(traces, key=lambda t: t.job.seed)])


class WarmStarted:
  """A policy that takes only the last steps of its flow, from where its last chunk was going."""

  def __init__(self, policy: Policy, steps: int):
    self._policy, self._first_step = policy, policy.spec.denoising_steps - steps
    self._resumed = policy.compiled(self._resume)

  def __getattr__(self, name: str):
    return getattr(self._policy, name)

  def last_chunk(self, trace: Trace) -> np.ndarray:
    """Returns what is left of an episode's last chunk, held at its end, float[T, A]; NaN where it has none."""
    if not trace.steps:
      return np.full(self.chunk_shape, np.nan)
    chunk_TA = trace.steps[-1].base_TA
    return chunk_TA[np.minimum(np.arange(len(chunk_TA)) + self.spec.execute_steps, len(chunk_TA) - 1)]

  def decode(self, encoded: Encoded, chunk_BTA: np.ndarray | None = None) -> Array:
    """As `Policy.decode`, from last chunks in the robot's units; all steps from z = 0 for rows without one."""
    if chunk_BTA is None:
      return self._policy.decode(encoded)
    padded_BTA = np.zeros((len(encoded.state_BP), *self.chunk_shape), np.float32)
    padded_BTA[: len(chunk_BTA)] = chunk_BTA
    first_B = np.isnan(padded_BTA[:, 0, 0])
    resumed_BTA = self._resumed(encoded, np.nan_to_num(padded_BTA))
    if not first_B.any():
      return resumed_BTA
    return jnp.where(first_B[:, None, None], self._policy.decode(encoded), resumed_BTA)

  def _resume(self, params, encoded: Encoded, chunk_BTA):
    flow = self._policy.flow_fn(params, encoded, jnp.zeros((len(chunk_BTA), *self.noise_shape)))
    time = float(flow_matching.times(self.spec.denoising_steps)[self._first_step])
    # On the straight way from z = 0 to the chunk.
    return flow.to_robot(flow.run((1 - time) * flow.to_model(chunk_BTA), first=self._first_step))


def _loading(**options) -> Callable[[str], Policy]:
  return functools.partial(directory.load, **options)


def _warm_started(steps: int) -> Callable[[str], WarmStarted]:
  return lambda policy: WarmStarted(directory.load(policy), steps)


# What makes each of a policy's name; the first is what the others are compared with.
OPTIONS: dict[str, Callable[[str], Policy | WarmStarted]] = {
    **{f"{n} steps": _loading(denoising_steps=n) for n in (10, 5, 4, 3, 2, 1)},
    "int8 weights": _loading(weights="int8"), **{name: _loading(weights=name) for name in ("w8a8", "fp8", "bfloat16")},
    **{f"last {n} of 10 steps": _warm_started(n) for n in (7, 5, 3)},
}
