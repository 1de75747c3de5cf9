"""What a policy would do at the frames of a data set: `python -m pi0rag_jax.policy predict --data=DIR --out=DIR`.

One .npz file per episode, with `frames` int[N], `actions` float32[N, T, A] in the robot's units and `keys`
float32[N, E]; with a memory also `base`, the policy's own chunks, `used` int[N], how many records had a say, and their
`ids`, `weights` and `distances` [N, K]. A file is whole or absent, so that a killed run goes on where it was, and an
episode's depends on nothing but the episode and the settings.
"""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data.dataset import DamagedEpisode, Dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.interventions import Seen, ToRobot
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import NEW
from pi0rag_jax.steering.agent import Agent, Decision

SETTINGS = "predict.json"
# Of a decision, by the names in a file.
_ALWAYS = {"actions": "actions_BTA", "keys": "key_BE"}
_WITH_MEMORY = {"base": "base_BTA", "used": "used_B", "ids": "ids_BK", "weights": "weight_BK",
                "distances": "distance_BK"}


@dataclasses.dataclass(frozen=True)
class Counts:
  """What is in a folder of predictions at the end."""

  episodes: int = 0
  decisions: int = 0
  found: int = 0  # episodes that were there already


def predict(agent: Agent, dataset: Dataset, out, *, to_robot: ToRobot = dict, stride: int | None = None,
            batch: int = 32, progress: Callable[[int, int, float], None] | None = None) -> Counts:
  """Writes a file per episode, and returns what is there then.

  Args:
    out: a folder; what an earlier run with the same settings wrote is kept.
    to_robot: makes the robot's dictionary of a sample.
    stride: frames between two decisions; None is each frame, or the pace of a policy that remembers.
    batch: frames that the policy sees at once.
    progress: is told (episodes that are there, episodes, decisions per s) after each one written.
  Errors: Pi0RagError for a folder of other settings, and a stride that is not the pace of a policy that remembers;
    damaged episodes raise or are left out as the data set was opened.
  """
  remembers = bool(jax.tree.leaves(agent.policy.start(1)))
  stride = _checked_stride(agent.policy, stride, remembers)
  out = pathlib.Path(out).expanduser()
  _check_settings(out / SETTINGS, _settings(agent, dataset, stride, batch))
  counts, began, decided = Counts(), time.perf_counter(), 0
  for episode in range(dataset.num_episodes):
    path = out / f"episode_{episode:06d}.npz"
    decisions = -(-dataset.episode_length(episode) // stride)
    if there := path.is_file():
      counts = dataclasses.replace(counts, found=counts.found + 1)
    else:
      try:
        seen = Seen(dataset, episode, dataset.read_episode(episode, images=False), to_robot)
        arrays = _decided(agent, seen, stride, 1 if remembers else batch)
      except DamagedEpisode as error:
        dataset.count_damage(dataset.episode_name(episode), error)
        continue
      files.write(path, lambda file, arrays=arrays: np.savez(file, **arrays))
      decided += decisions
    counts = dataclasses.replace(counts, episodes=counts.episodes + 1, decisions=counts.decisions + decisions)
    if progress is not None and not there:
      progress(counts.episodes, dataset.num_episodes, decided / (time.perf_counter() - began))
  return counts


def _decided(agent: Agent, seen: Seen, stride: int, batch: int) -> dict[str, Any]:
  """Returns what a file of an episode holds."""
  policy, frames, parts = agent.policy, np.arange(0, len(seen.data), stride), []
  carry = policy.start(1) if batch == 1 else ()
  # By the episode's number: a run that goes on draws what it would have drawn.
  rng = np.random.default_rng([0, seen.episode]) if policy.spec.start == NEW and policy.noise_shape else None
  for first in range(0, len(frames), batch):
    raws = seen.observations(frames[first : first + batch].tolist())
    noise_BTX = None if rng is None else rng.standard_normal((len(raws), *policy.noise_shape)).astype(np.float32)
    carry, decision = agent.decide(carry, raws, noise_BTX)
    parts.append(decision)
  return {"frames": frames, **{name: _joined(parts, field) for name, field in _ALWAYS.items()},
          **({} if agent.memory is None else {name: _joined(parts, field) for name, field in _WITH_MEMORY.items()})}


def _joined(decisions: list[Decision], field: str) -> np.ndarray:
  return np.concatenate([np.asarray(getattr(decision, field)) for decision in decisions])


def _checked_stride(policy: Policy, stride: int | None, remembers: bool) -> int:
  if not remembers:
    return stride or 1
  pace = policy.spec.execute_steps
  if stride not in (None, pace):
    raise Pi0RagError(f"policy '{policy.spec.name}' remembers what it saw, and decides every {pace} frames; --stride "
                      f"is {stride}: leave it out")
  return pace


def _settings(agent: Agent, dataset: Dataset, stride: int, batch: int) -> dict[str, Any]:
  memory = None if agent.memory is None else {"rule": str(agent.rule), "digest": _digest(agent.memory)}
  return {"policy": agent.policy.fingerprint, "start": agent.policy.spec.start,
          "denoising_steps": agent.policy.spec.denoising_steps, "data": dataset.fingerprint(), "stride": stride,
          "batch": batch, "memory": memory}


def _digest(memory: Memory) -> str:
  """Returns a short hash of what a memory's records ask for."""
  digest = hashlib.sha256()
  for identity, record in memory.records():
    for array in (np.int64(identity), record.key, record.base_chunk, record.corrected_chunk):
      digest.update(array.tobytes())
  return digest.hexdigest()[:16]


def _check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
  """Writes the settings of a folder, or compares them with those of the run that goes on there."""
  if not path.is_file():
    if path.parent.exists() and (not path.parent.is_dir() or any(path.parent.iterdir())):
      raise Pi0RagError(f"'{path.parent}' has no {path.name}: it is no folder of predictions; give another one")
    files.write_json(path, settings)
    return
  known = schema.read(path, dict[str, Any])
  for name, value in settings.items():
    if known.get(name) != value:
      raise Pi0RagError(f"'{path.parent}' holds predictions with {name} {known.get(name)!r}, now it is {value!r}: give "
                        "another folder")
