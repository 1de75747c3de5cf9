"""What scorers see of demonstrations, and of a policy's own rollouts: the same arrays, one row per step."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError


@dataclasses.dataclass(frozen=True)
class Steps:
  """J episodes of T steps each, T of any length."""

  looks: tuple[np.ndarray, ...]  # float32[T, F] of each: what a step looked like, such as an embedding or the state
  chunks: tuple[np.ndarray, ...]  # float32[T, H, A]: what was done from there on
  tool: tuple[np.ndarray, ...]  # float32[T, X]: where the tool was, or the whole state
  step_s: float  # from one step to the next
  success_J: np.ndarray  # float64: 1, 0, or nan where it is not known
  prompts: tuple[Sequence[str], ...] = ()  # T texts of each: what was asked for; none where nobody reads them

  def __post_init__(self):
    lengths = {tuple(map(len, part)) for part in (self.looks, self.chunks, self.tool)}
    if len(lengths) != 1 or len(self.success_J) != len(self.looks):
      raise Pi0RagError(f"steps of {len(self.looks)} episodes whose looks, chunks and tool differ in length, or with "
                        f"{len(self.success_J)} outcomes: one of each per step and episode is wanted")
    if self.prompts and tuple(map(len, self.prompts)) != tuple(map(len, self.looks)):
      raise Pi0RagError(f"prompts of {len(self.prompts)} episodes, of {len(self)}, or of other lengths: one per step")
    if not self.looks or not all(map(len, self.looks)):
      raise Pi0RagError("an episode without a step, or no episode: nothing to score")

  def __len__(self) -> int:
    return len(self.looks)

  @property
  def lengths_J(self) -> np.ndarray:
    """int64[J], steps of each episode."""
    return np.array([len(look) for look in self.looks])

  @property
  def episode_N(self) -> np.ndarray:
    """int64[N], the episode of every step, one after the other."""
    return np.repeat(np.arange(len(self)), self.lengths_J)

  @property
  def looks_NF(self) -> np.ndarray:
    """float32[N, F] of all steps."""
    return np.concatenate(self.looks)

  @property
  def chunks_ND(self) -> np.ndarray:
    """float32[N, H A] of all steps."""
    return np.concatenate([chunk.reshape(len(chunk), -1) for chunk in self.chunks])

  def mean_of(self, values_N: np.ndarray) -> np.ndarray:
    """Returns float64[J], the mean of numbers over each episode's steps."""
    return np.bincount(self.episode_N, values_N, len(self)) / self.lengths_J

  def ended(self, success: bool) -> "Steps":
    """Returns the episodes that ended so."""
    chosen = np.flatnonzero(self.success_J == success)
    pick = lambda part: tuple(part[i] for i in chosen)  # noqa: E731
    return Steps(pick(self.looks), pick(self.chunks), pick(self.tool), self.step_s, self.success_J[chosen],
                 pick(self.prompts) if self.prompts else ())


def joined(parts: Sequence[Steps]) -> Steps:
  """Returns the episodes of several sets, one after the other."""
  every = lambda name: tuple(episode for part in parts for episode in getattr(part, name))  # noqa: E731
  return Steps(every("looks"), every("chunks"), every("tool"), parts[0].step_s,
               np.concatenate([part.success_J for part in parts]),
               every("prompts") if all(part.prompts for part in parts) else ())
