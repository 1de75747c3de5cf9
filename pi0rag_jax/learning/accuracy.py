"""How often predictions say what a data set's actions say: the share of right steps.

A step is right where each of its entries is within a tolerance of the recorded one: a share of the entry's range, which
is the robot's where that is finite, else that of the recorded actions.
"""

import dataclasses
import pathlib

import numpy as np

from pi0rag_jax.data.dataset import DamagedEpisode, Dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.robot import ActionSpace

FILE_NAME = "accuracy.json"
TOLERANCE = 0.1
_RESAMPLES, _SEED = 2_000, 0


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Shares of steps; the interval is a bootstrap's over episodes."""

  episodes: int
  steps: int
  right: float
  interval_95: tuple[float, float]
  first: float  # of the first step of each decision alone
  entries: tuple[float, ...]  # [A] of the entries, each by itself
  tolerance: tuple[float, ...]  # [A] in the robot's units


def measure(folder, dataset: Dataset, space: ActionSpace, *, steps: int, tolerance: float = TOLERANCE) -> Accuracy:
  """Returns how right the predictions in a folder are.

  Args:
    folder: what `predict.predict` wrote of the data set.
    space: of the policy's robot.
    steps: of every chunk, those that are executed.
    tolerance: share of an entry's range.
  Errors: Pi0RagError where there are no predictions.
  """
  numbers = [number for number in range(dataset.num_episodes) if _path(folder, number).is_file()]
  found = [pair for number in numbers if (pair := _pair(folder, dataset, number, steps)) is not None]
  if not found:
    raise Pi0RagError(f"'{folder}' has no predictions of '{dataset.path}'")
  recorded = np.concatenate([recorded_NTA[valid_NT] for _, recorded_NTA, valid_NT in found])
  low_A, high_A = np.asarray(space.low), np.asarray(space.high)
  range_A = np.where(np.isfinite(high_A - low_A), high_A - low_A, np.ptp(recorded, axis=0))
  close = [np.abs(predicted - wanted) <= tolerance * range_A + 1e-6 for predicted, wanted, _ in found]
  valid = [valid_NT for *_, valid_NT in found]
  right_J = np.array([close_NTA.all(axis=-1)[valid_NT].sum() for close_NTA, valid_NT in zip(close, valid)])
  steps_J = np.array([valid_NT.sum() for valid_NT in valid])
  drawn_RJ = np.random.default_rng(_SEED).integers(len(found), size=(_RESAMPLES, len(found)))
  low, high = np.quantile(right_J[drawn_RJ].sum(axis=1) / steps_J[drawn_RJ].sum(axis=1), (0.025, 0.975))
  entries_A = np.concatenate([close_NTA[valid_NT] for close_NTA, valid_NT in zip(close, valid)]).mean(axis=0)
  first = np.concatenate([close_NTA[:, 0].all(axis=-1) for close_NTA in close]).mean()
  return Accuracy(len(found), int(steps_J.sum()), float(right_J.sum() / steps_J.sum()), (float(low), float(high)),
                  float(first), tuple(entries_A.tolist()), tuple((tolerance * range_A).tolist()))


def _path(folder, number: int) -> pathlib.Path:
  return pathlib.Path(folder).expanduser() / f"episode_{number:06d}.npz"


def _pair(folder, dataset: Dataset, number: int, steps: int):
  """Returns (predicted, recorded float[N, T, A], valid bool[N, T]) of an episode; None where it is damaged."""
  try:
    actions_FA = dataset.read_episode(number, images=False).actions
  except DamagedEpisode:
    return None
  actions_FA = actions_FA if actions_FA.ndim == 2 else actions_FA[:, 0]
  with np.load(_path(folder, number)) as arrays:
    frames_N, predicted_NTA = arrays["frames"], arrays["actions"][:, :steps]
  rows_NT = frames_N[:, None] + np.arange(predicted_NTA.shape[1])
  valid_NT = rows_NT < len(actions_FA)
  return predicted_NTA, actions_FA[np.minimum(rows_NT, len(actions_FA) - 1)], valid_NT
