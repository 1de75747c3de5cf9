"""All frames of a data set in memory, split by episode, and batches that are a pure function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pi0rag_jax.data import episodes as episodes_lib
from pi0rag_jax.errors import Pi0RagError


@dataclasses.dataclass(frozen=True)
class Frames:
  """F frames of many episodes, one after the other; images stay uint8, so 40,000 frames are 1 GB."""

  images: Mapping[str, np.ndarray]  # camera -> uint8[F, S, S, 3]
  state: np.ndarray  # float32[F, P]
  action_chunks: np.ndarray  # float32[F, T, A]
  privileged: Mapping[str, np.ndarray]  # name -> float32[F, ...]
  prompt_index: np.ndarray  # int32[F], into `prompts`
  prompts: tuple[str, ...]
  seeds: np.ndarray  # int64[F], of the frame's episode
  renderer: str
  task: str

  def __len__(self) -> int:
    return self.state.shape[0]

  def take(self, rows) -> "Frames":
    """Returns the frames at `rows` (integers or a boolean mask)."""
    pick = lambda values: {name: value[rows] for name, value in values.items()}  # noqa: E731
    return dataclasses.replace(
      self,
      images=pick(self.images),
      state=self.state[rows],
      action_chunks=self.action_chunks[rows],
      privileged=pick(self.privileged),
      prompt_index=self.prompt_index[rows],
      seeds=self.seeds[rows],
    )


def load_frames(folder: str | Path, *, successes_only: bool = True) -> Frames:
  """Returns every frame of a data set's folder.

  Args:
    folder: with episode files.
    successes_only: leaves out the episodes that failed.
  Raises:
    Pi0RagError: no files, a broken one, or episodes of several renderers.
  """
  episodes = (e for path in episodes_lib.episode_files(folder) for e in episodes_lib.read_episodes(path))
  kept = [e for e in episodes if e.success or not successes_only]
  if not kept:
    raise Pi0RagError(f"'{folder}' holds no successful episode")
  return join_episodes(kept)


def join_episodes(episodes: Sequence[episodes_lib.Episode]) -> Frames:
  """Returns the frames of the episodes, in order."""
  renderers = sorted({e.renderer for e in episodes})
  if len(renderers) != 1:
    raise Pi0RagError(f"one data set needs one renderer, seen: {', '.join(renderers)}")
  prompts = tuple(sorted({e.prompt for e in episodes}))
  lengths = [len(e) for e in episodes]
  repeat = lambda values, dtype: np.repeat(np.asarray(values, dtype), lengths)  # noqa: E731
  return Frames(
    images=_join(e.images for e in episodes),
    state=np.concatenate([e.state for e in episodes]),
    action_chunks=np.concatenate([e.action_chunks for e in episodes]),
    privileged=_join(e.privileged for e in episodes),
    prompt_index=repeat([prompts.index(e.prompt) for e in episodes], np.int32),
    prompts=prompts,
    seeds=repeat([e.seed for e in episodes], np.int64),
    renderer=renderers[0],
    task="+".join(sorted({e.task for e in episodes})),
  )


def split_by_episode(frames: Frames, *, fraction: float, seed: int) -> tuple[Frames, Frames]:
  """Returns (training, validation) frames; an episode is wholly in one of them.

  Args:
    frames: all of them.
    fraction: of the episodes that validate; at least one does, and at least one trains.
    seed: of the draw.
  """
  unique = np.unique(frames.seeds)
  if len(unique) < 2:
    raise Pi0RagError(f"a split needs two episodes or more, the data set has {len(unique)}: collect more")
  count = int(np.clip(round(fraction * len(unique)), 1, len(unique) - 1))
  chosen = np.random.default_rng(seed).permutation(unique)[:count]
  validates = np.isin(frames.seeds, chosen)
  return frames.take(~validates), frames.take(validates)


def batch_rows(size: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
  """Returns int[batch_size], the rows of batch `step`: each epoch is its own shuffle, its remainder dropped.

  Depends on nothing but the arguments, so a resumed run continues the same sequence.
  """
  if size < batch_size:
    raise Pi0RagError(f"{size} frames make no batch of {batch_size}: collect more or lower batch_size")
  epoch, index = divmod(step, size // batch_size)
  return _epoch_order(size, seed, epoch)[index * batch_size : (index + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the shuffled rows of one epoch."""
  return np.random.default_rng([seed, epoch]).permutation(size)


def _join(dicts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns the arrays of dicts with the same keys, concatenated per key."""
  dicts = list(dicts)
  names = set(dicts[0])
  different = next((set(d) for d in dicts if set(d) != names), None)
  if different is not None:
    raise Pi0RagError(f"episodes differ in their arrays: {sorted(names)} and {sorted(different)}")
  return {name: np.concatenate([d[name] for d in dicts]) for name in sorted(names)}

