"""`options`: ways to decide sooner that change what is decided, judged by success rate. The simulator is needed."""

import argparse
import collections
import functools
from collections.abc import Callable

import jax
import numpy as np

from eval.benchmarks import timing
from pi0rag_jax import statistics
from pi0rag_jax.models import flow as flow_matching
from pi0rag_jax.policy import shipped
from pi0rag_jax.policy.policy import Encoded, Policy
from pi0rag_jax.steering.agent import SteeredPolicy
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, EnvConfig, Start
from pi0rag_jax.worlds.episode import Job, Trace

POLICY, TASK, CONDITIONS = "panda_tasks", "pick_and_place", ("nominal", "camera_shift")
FIRST_SEED = 380_000  # of the tuning range
SLOTS, PROCESSES = 24, 2


def options(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each condition and option: success on the same seeds, and one robot's decision in turn.

  `ratio` is the decision's time against that of the first option, `fixed` and `regressed` count the episodes that only
  it, or only the first option, brought to an end. Intervals are of 95 %.
  """
  policies = {name: load() for name, load in OPTIONS.items()}
  taken_ms = _decisions(policies, repeats=flags.repeats)
  rows = []
  for condition in CONDITIONS:
    succeeded = _successes(policies, condition, flags.episodes)
    reference = next(iter(OPTIONS))
    for name, by_seed in succeeded.items():
      rate = statistics.success_rate(by_seed)
      paired = statistics.paired_comparison(succeeded[reference], by_seed, np.random.default_rng(0))
      rows.append({"task": TASK, "condition": condition, "option": name, "episodes": rate.n,
                   "success": round(rate.value, 4), "success_low": round(rate.low, 4),
                   "success_high": round(rate.high, 4), "fixed": paired.fixed, "regressed": paired.regressed,
                   "p50_ms": timing.summary(taken_ms[name])["p50_ms"],
                   **timing.ratio(taken_ms[name], taken_ms[reference])})
  return rows


def _decisions(policies: dict[str, Policy], *, repeats: int) -> dict[str, np.ndarray]:
  """Returns the ms of a decision for one robot, of all options in turn; it has a last chunk to go on from."""
  policy = next(iter(policies.values()))
  with BatchEnv(_env_config(policy, CONDITIONS[0]), slots=1, processes=0) as env:
    observation = env.run({0: Start(FIRST_SEED - 1)})[0].observation
  calls = {}
  for name, policy in policies.items():
    start = np.zeros((1, *policy.chunk_shape)) if isinstance(policy, WarmStarted) else None
    calls[name] = functools.partial(_actions, SteeredPolicy(policy), observation, start)
  return timing.interleaved(calls, repeats=repeats)


def _actions(policy: SteeredPolicy, observation: dict, start: np.ndarray | None) -> np.ndarray:
  return policy.infer([observation], start).actions_BTA


def _successes(policies: dict[str, Policy], condition: str, episodes: int) -> dict[str, np.ndarray]:
  """Returns bool[episodes] of each option, by seed."""
  config = _env_config(next(iter(policies.values())), condition)
  succeeded = {}
  with BatchEnv(config, slots=SLOTS, processes=PROCESSES) as env:
    for name, policy in policies.items():
      jobs = collections.deque(Job(FIRST_SEED + i, i) for i in range(episodes))
      start = policy.last_chunk if isinstance(policy, WarmStarted) else None
      traces = list(rollout.run(env, SteeredPolicy(policy), jobs, stochastic=False, start=start))
      crashed = [trace.error for trace in traces if trace.outcome == "crashed"]
      assert not crashed, crashed[0]
      succeeded[name] = np.array([t.outcome == "success" for t in sorted(traces, key=lambda t: t.job.seed)])
  return succeeded


def _env_config(policy: Policy, condition: str) -> EnvConfig:
  spec = policy.spec
  return EnvConfig(TASK, condition, spec.renderer, spec.image_size, spec.model.action_horizon)


class WarmStarted(Policy):
  """A policy that takes only the last steps of its flow, from where its last chunk was going."""

  first_step = 0

  def last_chunk(self, trace: Trace) -> np.ndarray:
    """Returns what is left of an episode's last chunk, held at its end, float[T, A]; NaN where it has none."""
    if not trace.steps:
      return np.full(self.chunk_shape, np.nan)
    chunk_TA = trace.steps[-1].base_TA
    return chunk_TA[np.minimum(np.arange(len(chunk_TA)) + self.spec.execute_steps, len(chunk_TA) - 1)]

  def denoise(self, encoded: Encoded, noise_BTA: np.ndarray | None) -> jax.Array:
    """As `Policy.denoise`, from last chunks in the robot's units; all steps from z = 0 for rows without one."""
    own = functools.partial(super().denoise, encoded, None)
    if noise_BTA is None:
      return own()
    chunk_BTA = np.zeros((len(encoded.state_BA), *self.chunk_shape), np.float32)
    chunk_BTA[: len(noise_BTA)] = noise_BTA
    first_B = np.isnan(chunk_BTA[:, 0, 0])
    resumed_BTA = self._resumed(self.params, encoded.prefix, encoded.state_BA, np.nan_to_num(chunk_BTA))
    return jax.numpy.where(first_B[:, None, None], own(), resumed_BTA) if first_B.any() else resumed_BTA

  @functools.cached_property
  def _resumed(self) -> Callable[..., jax.Array]:
    time = float(flow_matching.times(self.spec.denoising_steps)[self.first_step])

    def resumed(params, prefix, state_BA, chunk_BTA):
      flow = self.flow_fn(params, prefix, state_BA, jax.numpy.zeros((len(chunk_BTA), *self.noise_shape)))
      # On the straight way from z = 0 to the chunk.
      return flow.to_robot(flow.run((1 - time) * flow.to_model(chunk_BTA), first=self.first_step))

    return jax.jit(resumed)


def _load(**options) -> Policy:
  return Policy.load(shipped.directory(POLICY), **options)


def _warm(steps: int) -> Policy:
  """Returns the policy that takes the last steps alone."""
  policy = WarmStarted.load(shipped.directory(POLICY))
  policy.first_step = policy.spec.denoising_steps - steps
  return policy


# What loads each; the first is what the others are compared with.
OPTIONS: dict[str, Callable[[], Policy]] = {
    **{f"{n} steps": functools.partial(_load, denoising_steps=n) for n in (10, 5, 3, 2, 1)},
    "int8 weights": functools.partial(_load, weights="int8"),
    **{f"last {n} of 10 steps": functools.partial(_warm, n) for n in (7, 5, 3)},
}
