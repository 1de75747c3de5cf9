"""All frames of the simulator's data sets, split by episode, and batches that are a pure function of (seed, step)."""

import dataclasses
import functools
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pi0rag_jax.data import episodes as episodes_lib
from pi0rag_jax.errors import Pi0RagError


@dataclasses.dataclass(frozen=True)
class Frames:
  """F frames of many episodes, one after the other; the images are mapped from a file, 1 GB for 40,000 frames."""

  images: Mapping[str, np.ndarray]  # camera -> uint8[F, S, S, 3]
  state: np.ndarray  # float32[F, P]
  action_chunks: np.ndarray  # float32[F, T, A]
  privileged: Mapping[str, np.ndarray]  # name -> float32[F, ...]
  prompt_index: np.ndarray  # int32[F], into `prompts`
  prompts: tuple[str, ...]
  seeds: np.ndarray  # int64[F], of the frame's episode; episodes of two tasks may share one
  task_index: np.ndarray  # int32[F], into `tasks`
  tasks: tuple[str, ...]
  renderer: str

  def __len__(self) -> int:
    return self.state.shape[0]


# Files and groups of episodes, as `Hdf5Dataset.place` returns them.
Places = Collection[tuple[Path, str]]


def load_frames(folder: str | Path, *, successes_only: bool = True, kept: Places | None = None) -> Frames:
  """Returns every frame of a data set's folder and the folders in it.

  Args:
    folder: with episode files.
    successes_only: leaves out the episodes that failed.
    kept: leaves out the others; None keeps all.
  Raises:
    Pi0RagError: no files, a broken one, or episodes of several renderers.
  """
  episodes = read_kept(episodes_lib.episode_files(folder), kept)
  frames = join_episodes(e for e in episodes if e.success or not successes_only)
  if not len(frames):
    raise Pi0RagError(f"'{folder}' holds no successful episode")
  return frames


def read_kept(files: Iterable[Path], kept: Places | None) -> Iterator[episodes_lib.Episode]:
  """Yields the episodes of some files; those at `kept` only, where it is given."""
  for path in files:
    for episode in episodes_lib.read_episodes(path):
      if kept is None or (path, episodes_lib.group_name(episode.seed)) in kept:
        yield episode


def join_episodes(episodes: Iterable[episodes_lib.Episode]) -> Frames:
  """Returns the frames of the episodes, in order; pictures are never all in memory."""
  pictures = _Pictures()
  heads, state, chunks, privileged = [], [], [], []
  for episode in episodes:
    pictures.append(episode.images)
    heads.append((len(episode), episode.prompt, episode.task, episode.seed, episode.renderer))
    state.append(episode.state)
    chunks.append(episode.action_chunks)
    privileged.append(episode.privileged)
  if not heads:
    return _NO_FRAMES
  lengths, prompts, tasks, seeds, renderers = zip(*heads)
  if len(set(renderers)) != 1:
    raise Pi0RagError(f"one data set needs one renderer, seen: {', '.join(sorted(set(renderers)))}")
  all_prompts, prompt_N = np.unique(prompts, return_inverse=True)
  all_tasks, task_N = np.unique(tasks, return_inverse=True)
  return Frames(
    images=pictures.arrays(),
    state=np.concatenate(state),
    action_chunks=np.concatenate(chunks),
    privileged=_join(privileged),
    prompt_index=np.repeat(prompt_N.astype(np.int32), lengths),
    prompts=tuple(all_prompts.tolist()),
    seeds=np.repeat(np.asarray(seeds, np.int64), lengths),
    task_index=np.repeat(task_N.astype(np.int32), lengths),
    tasks=tuple(all_tasks.tolist()),
    renderer=renderers[0],
  )


_NO_FRAMES = Frames(
  images={}, state=np.zeros((0, 0)), action_chunks=np.zeros((0, 0, 0)), privileged={},
  prompt_index=np.zeros(0, np.int32), prompts=(), seeds=np.zeros(0, np.int64),
  task_index=np.zeros(0, np.int32), tasks=(), renderer="")


class _Pictures:
  """Collects pictures per camera in unnamed temporary files (in $TMPDIR), which vanish with the arrays."""

  def __init__(self):
    self._files, self._shapes, self._count = {}, {}, 0

  def append(self, images: Mapping[str, np.ndarray]) -> None:
    """Adds the frames uint8[F, S, S, 3] of every camera."""
    shapes = {camera: pictures.shape[1:] for camera, pictures in images.items()}
    if not self._files:
      self._shapes = shapes
      self._files = {camera: tempfile.TemporaryFile() for camera in images}  # noqa: SIM115 the arrays keep them
    if shapes != self._shapes:
      raise Pi0RagError(f"episodes differ in their pictures: {self._shapes} and {shapes}")
    for camera, pictures in images.items():
      self._files[camera].write(np.ascontiguousarray(pictures, np.uint8).data)
    self._count += len(next(iter(images.values())))

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns uint8[F, S, S, 3] for each camera."""
    for file in self._files.values():
      file.flush()
    return {camera: np.memmap(file, np.uint8, "r", shape=(self._count, *self._shapes[camera]))
            for camera, file in self._files.items()}


def split_by_episode(frames: Frames, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows of (training, validation); an episode is wholly in one of them.

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
  return np.flatnonzero(~validates), np.flatnonzero(validates)


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

