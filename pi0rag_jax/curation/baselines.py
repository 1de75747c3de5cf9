"""What one number of an episode tells: were it enough, a classifier would have learned no more than that."""

from collections.abc import Sequence

import numpy as np

from pi0rag_jax.data.dataset import Dataset

LENGTH_ONLY, PACE_ONLY = "length_only", "pace_only"
# Slower than that, per second in the unit of the state, is standing still.
STILL = 1e-3


def scores(dataset: Dataset, *, tool_dims: Sequence[int] = (), frames: int | None = None) -> dict[str, np.ndarray]:
  """Returns {baseline: float64[J]}: each episode's number of frames, and the pace of its tool; nan where unreadable.

  Args:
    dataset: of J episodes.
    tool_dims: of the state, the tool's position; none: the whole state.
    frames: looks at the first ones only; None at all.
  """
  found = {name: np.full(dataset.num_episodes, np.nan) for name in (LENGTH_ONLY, PACE_ONLY)}
  for episode, data in dataset.iterate():
    state_FP = data.state[:frames]
    found[LENGTH_ONLY][episode] = len(state_FP)
    found[PACE_ONLY][episode] = pace(state_FP[:, list(tool_dims)] if tool_dims else state_FP, dataset.fps)
  return found


def pace(position_FX: np.ndarray, fps: float) -> float:
  """Returns the median speed while something moves, per second; 0 where nothing ever does."""
  speed_F = fps * np.linalg.norm(np.diff(np.asarray(position_FX, float), axis=0), axis=-1)
  moving = speed_F[speed_F > STILL]
  return float(np.median(moving)) if len(moving) else 0.0
