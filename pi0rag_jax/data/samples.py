"""Samples: a frame with the chunk of actions that starts there, alone or stacked to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError


def action_chunks(actions_FA: np.ndarray, frames: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the chunks that start at frames, and where they are padding.

  After the episode's end the last action is repeated, as LeRobot's `delta_timestamps` do for openpi.

  Args:
    actions_FA: [F, A] of one episode, or [F, T, A], whole chunks, of which `horizon` steps are taken.
    frames: int[N].
    horizon: T.
  Returns:
    (chunks_NTA, is_pad_NT): is_pad is bool, True beyond the end.
  """
  if actions_FA.ndim == 3:
    if actions_FA.shape[1] < horizon:
      raise Pi0RagError(f"stored chunks have {actions_FA.shape[1]} steps, {horizon} are asked for")
    return actions_FA[frames, :horizon], np.zeros((len(frames), horizon), bool)
  steps_NT = np.asarray(frames)[:, None] + np.arange(horizon)
  last = len(actions_FA) - 1
  return actions_FA[np.minimum(steps_NT, last)], steps_NT > last


def from_episode(data: Any, images: Mapping[str, np.ndarray], frames: np.ndarray, horizon: int) -> dict[str, Any]:
  """Returns the stacked samples at frames of one episode, as `Dataset.read_samples` describes them.

  Args:
    data: dataset.EpisodeData.
    images: camera -> uint8[N, H, W, 3], of these frames.
    frames: int[N].
    horizon: T.
  """
  actions_NTA, is_pad_NT = action_chunks(data.actions, frames, horizon)
  return {
    "image": dict(images),
    "state": np.asarray(data.state[frames], np.float32),
    "actions": np.asarray(actions_NTA, np.float32),
    "actions_is_pad": is_pad_NT,
    "prompt": [data.prompts[frame] for frame in frames.tolist()],
  }


def unstack(batch: Mapping[str, Any], slot: int) -> dict[str, Any]:
  """Returns one sample of a batch."""
  return {name: unstack(value, slot) if isinstance(value, Mapping) else value[slot] for name, value in batch.items()}


def stack(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the batch of samples: arrays and numbers get an axis in front, texts become a list."""
  stacked = {}
  for name, value in samples[0].items():
    values = [sample[name] for sample in samples]
    if isinstance(value, Mapping):
      stacked[name] = stack(values)
    else:
      stacked[name] = values if isinstance(value, str) or value is None else np.stack(values)
  return stacked


def interleave(parts: Sequence[Mapping[str, Any]], slots: Sequence[np.ndarray], *, path: str = "") -> dict[str, Any]:
  """Returns one batch out of several.

  Args:
    parts: batches with the same entries.
    slots: int[N] per batch, where its samples go.
    path: of the entry, for messages.
  Raises:
    Pi0RagError: the batches differ in their entries or shapes.
  """
  if len(parts) == 1 and np.array_equal(slots[0], np.arange(len(slots[0]))):
    return dict(parts[0])
  names = [set(part) for part in parts]
  if different := next((n for n in names if n != names[0]), None):
    raise Pi0RagError(f"the sources of a batch differ in {path or 'their entries'}: {sorted(names[0])} and "
                      f"{sorted(different)}; rename with Fields(cameras=...) or a transform of the source")
  size = sum(len(s) for s in slots)
  joined = {}
  for name, value in parts[0].items():
    values = [part[name] for part in parts]
    if isinstance(value, Mapping):
      joined[name] = interleave(values, slots, path=f"{path}{name}/")
    elif isinstance(value, list):
      joined[name] = [None] * size
      for places, entries in zip(slots, values):
        for place, entry in zip(places.tolist(), entries):
          joined[name][place] = entry
    else:
      shapes = {v.shape[1:] for v in values}
      if len(shapes) > 1:
        raise Pi0RagError(f"the samples of a batch differ in the shape of {path}{name}: "
                          f"{sorted(shapes)}; give an image size, or the sources a transform")
      joined[name] = np.empty((size, *value.shape[1:]), np.result_type(*values))
      for places, entries in zip(slots, values):
        joined[name][places] = entries
  return joined
