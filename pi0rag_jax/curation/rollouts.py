"""A policy's own episodes in the simulator, recorded as a data set: what it saw, what it did, and whether it succeeded.

Every decision is a frame: its action is the one executed in the tick that starts there, its `action_chunks` are what
the policy decided. One file per seed, so that what was stopped goes on with the seeds that are missing.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data.episodes import Episode, episode_path, write_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import NEW, ZERO
from pi0rag_jax.sim.tasks import Task
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Job, Trace

SETTINGS_NAME = "rollouts.json"
CRASHED = "crashed"


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Where a policy runs, and how."""

  task: str | Task
  condition: str = "nominal"
  stochastic: bool = True  # denoising starts at a Gaussian draw of the seed, as pi0 does; else at zero
  slots: int = 24  # environments that share a policy call
  processes: int = 2  # that simulate them; 0: none beside this one

  @property
  def task_name(self) -> str:
    """The task's name, whether it was given by that or is one's own."""
    return self.task if isinstance(self.task, str) else self.task.name


def facts(policy: Policy, config: RolloutConfig) -> dict[str, Any]:
  """Returns what decides a policy's episodes beside their seeds."""
  return {"policy": policy.fingerprint, "task": config.task_name, "condition": config.condition,
          "stochastic": config.stochastic}


def run(policy: Policy, seeds: Sequence[int], config: RolloutConfig, *, keep_observations: bool = False
        ) -> Iterator[Trace]:
  """Yields the episodes of some seeds, by the policy alone, as they end.

  Args:
    policy: of the simulated robot.
    seeds: of the episodes.
    config: see RolloutConfig.
    keep_observations: see `learning.rollout.run`.
  """
  place = rollout.world_config(policy.spec, config.task, config.condition)
  jobs = collections.deque(Job(seed, i) for i, seed in enumerate(seeds))
  with BatchEnv(place, slots=config.slots, processes=config.processes) as env:
    yield from rollout.run(env, Agent(policy), jobs, start=NEW if config.stochastic else ZERO,
                           keep_observations=keep_observations)


def missing(folder, seeds: Sequence[int]) -> list[int]:
  """Returns the seeds whose rollouts a folder does not have."""
  return [seed for seed in seeds if not episode_path(Path(folder), seed).exists()]


def written(policy: Policy, folder, seeds: Sequence[int], config: RolloutConfig, *, first_seed: int
            ) -> Iterator[tuple[int, str]]:
  """Yields (seed, why it crashed) of each rollout; '' once one is on disk that did not.

  Args:
    policy: of the simulated robot.
    folder: becomes a data set that `open_dataset` reads.
    seeds: of the episodes.
    config: see RolloutConfig.
    first_seed: of all rollouts of the policy.
  Errors: Pi0RagError where the folder holds rollouts of another policy, task, condition or first seed.
  """
  folder = Path(folder)
  _claim(folder, {**facts(policy, config), "first_seed": first_seed})
  for trace in run(policy, seeds, config, keep_observations=True):
    if trace.outcome == CRASHED:
      yield trace.job.seed, trace.error or CRASHED
      continue
    write_episodes(episode_path(folder, trace.job.seed), [as_episode(trace, policy, config)])
    yield trace.job.seed, ""


def as_episode(trace: Trace, policy: Policy, config: RolloutConfig) -> Episode:
  """Returns what is recorded of an episode that kept its observations."""
  seen = [step.observation for step in trace.steps if step.observation is not None]
  if not seen or len(seen) != len(trace.steps):
    raise Pi0RagError(f"the episode of seed {trace.job.seed} kept {len(seen)} observations of {len(trace.steps)} "
                      "decisions: run it with keep_observations")
  chunks = np.stack([step.actions_TA for step in trace.steps])
  return Episode(
    images={name: np.stack([each["image"][name] for each in seen]) for name in seen[0]["image"]},
    state=np.stack([each["state"] for each in seen]), actions=chunks[:, 0], action_chunks=chunks, privileged={},
    prompt=trace.prompt, task=config.task_name, condition=config.condition, renderer=policy.spec.renderer,
    seed=trace.job.seed, success=trace.outcome == "success", fps=policy.spec.control_hz / policy.spec.execute_steps)


def _claim(folder: Path, wanted: Mapping[str, Any]) -> None:
  """Writes down whose rollouts a folder holds, or raises where they are another's."""
  file = folder / SETTINGS_NAME
  if not file.exists():
    files.write_json(file, wanted)
    return
  found = schema.read(file, dict[str, Any])
  different = [f"{name} {found.get(name)}, wanted {value}"
               for name, value in wanted.items() if found.get(name) != value]
  if different:
    raise Pi0RagError(f"'{folder}' holds other rollouts: {'; '.join(different)}. Remove it, or use another --workdir")
