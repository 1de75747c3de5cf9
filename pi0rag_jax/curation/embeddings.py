"""Prefix embeddings of a data set's frames by a policy: real pictures and prompt, computed once and kept on disk."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pi0rag_jax.data.dataset import DamagedEpisode, Dataset, EpisodeData
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import PaliGemmaBackbone
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import directory, feature_cache, head
from pi0rag_jax.policy.feature_cache import CacheKey, FeatureCache
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.spec import HEAD

# What a build holds in memory and a kill loses: a 3.2 B model's tokens are 6.7 MB a frame.
SHARD_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """The embeddings of every `every`-th frame of a data set, on disk."""

  cache: FeatureCache
  every: int
  first_J: np.ndarray  # int64[J + 1], the row of each episode's first frame, and the number of rows
  computed: int  # rows that were not there before
  seconds: float  # that they took

  @property
  def frames_per_s(self) -> float:
    """Throughput of what was computed; 0 where everything was there."""
    return self.computed / self.seconds if self.computed else 0.0

  def episode(self, episode: int) -> np.ndarray:
    """Returns float32[T, D] of the frames 0, every, 2 every, ... of an episode."""
    return self.cache.take(np.arange(self.first_J[episode], self.first_J[episode + 1]))


def policy_extractor(policy, *, layer: str = "hidden", pool: str = "mean") -> FeatureExtractor:
  """Returns what embeds observations as a policy sees them, whose robot speaks the model's entries.

  Args:
    policy: see `directory.load`.
    layer, pool: see `models.embedding`; the pool 'tokens' keeps the prefix as a sequence. A head has its own.
  """
  spec, where = directory.describe(policy)
  if spec.family == HEAD:
    return head.build(spec, where).extractor
  backbone = PaliGemmaBackbone(spec.network, layer, pool)
  params = checkpoints.load_params(where, template=jax.eval_shape(backbone.init, jax.random.key(0)))
  return FeatureExtractor(
    backbone, params, directory.load_stats(spec, where)["state"],
    tokenizer=directory.tokenizer_of(Path(where), spec.network),
    quantile=spec.model.use_quantile_norm, state_in_prompt=bool(spec.model.discrete_state_input))


def build(dataset: Dataset, extractor: FeatureExtractor, root, *, every: int = 1, batch_size: int = 64,
          dtype: str = "float32", progress: Callable[[int, int], None] | None = None) -> Embeddings:
  """Returns the embeddings of a data set, after computing those that are missing below `root`.

  Args:
    dataset: with the pictures and prompts that the extractor reads; see `check`.
    extractor: of a policy, or any other.
    root: of the caches; weights, preprocessing and data set decide which one it is.
    every: takes the frames 0, every, 2 every, ... of each episode.
    batch_size: frames that go to the device together.
    dtype: of the files: float32 or float16.
    progress: is told (rows that are there, rows).
  Raises:
    Pi0RagError: pictures or prompts are missing or do not fit.
  """
  check(dataset, extractor)
  first_J = _first_rows(dataset, every)
  frames, width = _Frames(dataset, extractor, first_J, every), extractor.backbone.hidden_size
  shard_rows = int(np.clip(SHARD_BYTES // (4 * width), 1, feature_cache.SHARD_ROWS))
  started = time.monotonic()
  cache = feature_cache.build(
    root, cache_key(dataset, extractor, every), frames.encode, int(first_J[-1]), width=width, batch_size=batch_size,
    shard_rows=shard_rows, dtype=dtype, progress=progress)
  return Embeddings(cache, every, first_J, frames.computed, time.monotonic() - started)


def load(dataset: Dataset, extractor: FeatureExtractor, root, *, every: int = 1) -> Embeddings:
  """Returns the embeddings that `build` left below `root`.

  Raises:
    Pi0RagError: there are none of these weights, preprocessing, frames and data, or only a part.
  """
  cache = feature_cache.load(root, cache_key(dataset, extractor, every))
  return Embeddings(cache, every, _first_rows(dataset, every), 0, 0.0)


def cache_key(dataset: Dataset, extractor: FeatureExtractor, every: int) -> CacheKey:
  """Returns what decides the embeddings of a data set."""
  return extractor.cache_key(feature_cache.fingerprint({"frames": dataset.fingerprint(), "every": every}))


def check(dataset: Dataset, extractor: FeatureExtractor) -> None:
  """Raises Pi0RagError where a data set lacks pictures that the extractor reads, or its first episode a prompt."""
  missing = [name for name in extractor.backbone.image_keys if name not in dataset.cameras]
  if missing:
    cameras = ", ".join(dataset.cameras) or "none"
    raise Pi0RagError(f"'{dataset.path}' has no pictures of {', '.join(missing)}, which the policy looks at (cameras: "
                      f"{cameras}): map the names with fields.cameras, or leave the embeddings out of the inputs")
  if extractor.backbone.max_token_len:
    check_prompts(dataset, 0, dataset.read_episode(0, images=False))


def check_prompts(dataset: Dataset, episode: int, data: EpisodeData) -> None:
  """Raises Pi0RagError for an episode with a frame that has no prompt."""
  if not all(prompt and prompt.strip() for prompt in data.prompts):
    raise Pi0RagError(f"{dataset.episode_name(episode)} has no prompt: name the field with fields.prompt, give one "
                      "with fields.default_prompt, or leave the embeddings out of the inputs")


def _first_rows(dataset: Dataset, every: int) -> np.ndarray:
  if every < 1:
    raise Pi0RagError(f"embeddings of every {every}-th frame; allowed: whole numbers from 1")
  return np.concatenate([[0], np.cumsum(-(-dataset.lengths // every))])


class _Frames:
  """Reads the frames of rows and embeds them; the numbers of one episode stay in memory."""

  def __init__(self, dataset: Dataset, extractor: FeatureExtractor, first_J: np.ndarray, every: int):
    self._dataset, self._extractor, self._first_E, self._every = dataset, extractor, first_J, every
    self._episode = functools.lru_cache(maxsize=2)(self._read)
    self.computed = 0

  def encode(self, rows: np.ndarray):
    """Returns the features [B, D] of rows int[B], which rise."""
    observations: list[dict[str, Any]] = []
    episode_B = np.searchsorted(self._first_E, rows, side="right") - 1
    for episode in np.unique(episode_B).tolist():
      frames = (rows[episode_B == episode] - self._first_E[episode]) * self._every
      observations += self._observations(episode, frames)
    self.computed += len(np.unique(rows))
    return self._extractor.encode(observations)

  def _read(self, episode: int) -> EpisodeData:
    data = self._dataset.read_episode(episode, images=False)
    if self._extractor.backbone.max_token_len:
      check_prompts(self._dataset, episode, data)
    return data

  def _pictures(self, episode: int, frames: np.ndarray) -> dict[str, np.ndarray]:
    cameras = self._extractor.backbone.image_keys
    try:
      return self._dataset.read_frames(episode, frames, cameras)
    except DamagedEpisode as error:
      raise Pi0RagError(
        f"{self._dataset.episode_name(episode)} has no whole pictures of {', '.join(cameras)}, which the policy looks "
        f"at: remove the episode, or leave the embeddings out of the inputs ({error})") from error

  def _observations(self, episode: int, frames: np.ndarray) -> list[dict[str, Any]]:
    data, pictures = self._episode(episode), self._pictures(episode, frames)
    return [{"image": {name: images[i] for name, images in pictures.items()}, "state": data.state[frame],
             "prompt": data.prompts[frame]} for i, frame in enumerate(frames.tolist())]
