"""`sweep`: episodes per minute by the number of environments that share a policy call. The simulator is needed."""

import argparse
import collections
import time

from pi0rag_jax.learning import rollout
from pi0rag_jax.learning.trace import Job
from pi0rag_jax.policy import shipped
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.rag_policy import SteeredPolicy
from pi0rag_jax.sim.batch import BatchEnv, EnvConfig

POLICY, TASK, CONDITION = "panda_tasks", "pick_and_place", "camera_shift"
FIRST_SEED = 390_000  # of the tuning range
PROCESSES = 2


def sweep(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each number of environments: the same episodes, of the shipped policy from z = 0."""
  policy = SteeredPolicy(Policy.load(shipped.directory(POLICY)))
  spec = policy.policy.spec
  config = EnvConfig(TASK, CONDITION, spec.renderer, spec.image_size, spec.model.action_horizon)
  rows = []
  for slots in flags.slots:
    with BatchEnv(config, slots=slots, processes=min(slots, PROCESSES)) as env:
      _run(env, policy, slots, FIRST_SEED - slots)  # compiles
      start = time.perf_counter()
      decisions = _run(env, policy, flags.episodes, FIRST_SEED)
      seconds = time.perf_counter() - start
    rows.append({"task": TASK, "condition": CONDITION, "environments": slots, "episodes": flags.episodes,
                 "episodes_per_minute": round(60 * flags.episodes / seconds, 1),
                 "decisions_per_s": round(decisions / seconds, 1)})
  for row in rows:
    row["vs_first"] = round(row["episodes_per_minute"] / rows[0]["episodes_per_minute"], 2)
  return rows


def _run(env: BatchEnv, policy: SteeredPolicy, episodes: int, first_seed: int) -> int:
  """Returns the number of decisions of so many episodes."""
  jobs = collections.deque(Job(first_seed + i, i) for i in range(episodes))
  return sum(len(trace.steps) for trace in rollout.run(env, policy, jobs, stochastic=False))
