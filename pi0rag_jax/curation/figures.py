"""Charts of scores, by class, as ROC curves, against outcomes and lengths, and of embeddings in two dimensions."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from pi0rag_jax.curation import metrics
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.pages.panels import LIGHT, Panel

BINS = 20  # of a distribution
_UNKNOWN = "not known"
_SQUARE_INCHES = 3.2


@dataclasses.dataclass(frozen=True)
class Scored:
  """J episodes with their scores: demonstrations, or rollouts that a classifier did not learn from."""

  name: str
  scores_J: np.ndarray  # float64, nan where an episode has none
  positive_J: np.ndarray  # float64: 1, 0, or nan where the class is not known
  lengths_J: np.ndarray  # int64, frames
  classes: tuple[str, str] = ("failed", "succeeded")  # what 0 and 1 are called
  threshold: float | None = None  # of what is kept

  def __post_init__(self):
    if len({len(self.scores_J), len(self.positive_J), len(self.lengths_J)}) != 1:
      raise Pi0RagError(f"'{self.name}' has {len(self.scores_J)} scores, {len(self.positive_J)} classes and "
                        f"{len(self.lengths_J)} lengths: one of each per episode is wanted")

  @property
  def groups(self) -> dict[str, np.ndarray]:
    """Which episodes with a score are of which class, bool[J]; classes without one are left out."""
    scored = np.isfinite(self.scores_J)
    found = {name: scored & (self.positive_J == value) for value, name in enumerate(self.classes)}
    found[_UNKNOWN] = scored & np.isnan(self.positive_J)
    return {name: chosen for name, chosen in found.items() if chosen.any()}

  @property
  def tells(self) -> bool:
    """Whether there are scored episodes of both classes."""
    return set(self.classes) <= set(self.groups)

  def colour(self, group: str) -> str:
    """Returns how a class is drawn."""
    return dict(zip((*self.classes, _UNKNOWN), (LIGHT["red"], LIGHT["green"], LIGHT["grey"])))[group]


@dataclasses.dataclass(frozen=True)
class Embedded:
  """N embeddings, of frames or of episodes."""

  name: str
  values_NF: np.ndarray  # float32
  positive_N: np.ndarray  # float64: 1, 0, or nan where the outcome is not known
  classes: tuple[str, str] = ("failed", "succeeded")


def project(values_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (float64[N, 2], float64[2]): the first two principal components, and their shares of the variance.

  The sign of a component is such that its largest entry is positive, so that pictures repeat.
  """
  centred_NF = np.asarray(values_NF, np.float64) - np.mean(values_NF, axis=0, dtype=np.float64)
  if min(centred_NF.shape) < 2:
    raise Pi0RagError(f"{centred_NF.shape[0]} embeddings of {centred_NF.shape[1]} numbers have no two dimensions")
  _, scales_K, axes_KF = np.linalg.svd(centred_NF, full_matrices=False)
  axes_2F = axes_KF[:2]
  largest = np.abs(axes_2F).argmax(axis=1)
  axes_2F = axes_2F * np.sign(axes_2F[[0, 1], largest])[:, None]
  total = np.square(scales_K).sum()
  return centred_NF @ axes_2F.T, np.square(scales_K[:2]) / (total or 1.0)


def rank_correlation(first_J: np.ndarray, second_J: np.ndarray) -> float:
  """Returns Spearman's correlation; nan where one of them does not vary."""
  if len(first_J) < 2 or not (np.ptp(first_J) and np.ptp(second_J)):
    return float("nan")
  return float(np.asarray(stats.spearmanr(first_J, second_J).statistic))


def score_panels(sets: Sequence[Scored]) -> list[Panel]:
  """Returns one panel per set: how its scores are distributed, by class."""
  panels = []
  for scored in sets:
    words = [f"{name}: {int(chosen.sum())} episodes, mean {scored.scores_J[chosen].mean():.2f}"
             for name, chosen in scored.groups.items()]
    panels.append(Panel(scored.name, f"Scores of {scored.name}; {'; '.join(words)}.", _score_drawing(scored)))
  return panels


def _score_drawing(scored: Scored) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    known = scored.scores_J[np.isfinite(scored.scores_J)]
    edges = np.linspace(min(known.min(), 0.0), max(known.max(), 1.0), BINS + 1)
    for name, chosen in scored.groups.items():
      share = np.full(chosen.sum(), 100 / chosen.sum())
      axes.hist(scored.scores_J[chosen], edges.tolist(), weights=share, color=scored.colour(name), alpha=0.45,
                label=f"{name} ({chosen.sum()})")
    if scored.threshold is not None:
      axes.axvline(scored.threshold, color=LIGHT["ink"], linestyle=(0, (4, 3)), linewidth=1.2,
                   label=f"from {scored.threshold:.2f} on kept")
    axes.set_xlabel("score")
    axes.set_ylabel("% of a class")
    _legend(axes)
    axes.grid(axis="y")

  return draw


def roc_panels(sets: Sequence[Scored]) -> list[Panel]:
  """Returns one panel per set with both classes: the ROC curve of its scores, and that of its lengths either way."""
  panels = []
  for scored in filter(lambda scored: scored.tells, sets):
    negative, positive = scored.classes
    values, positive_J = _telling(scored)
    area, by_length = (metrics.auroc(each, positive_J) for each in values)
    alt = (f"ROC curve of {scored.name}, {positive} against {negative}: area {area:.3f}; by length alone "
           f"{by_length:.3f}.")
    panels.append(Panel(scored.name, alt, _roc_drawing(scored), _SQUARE_INCHES))
  return panels


def _roc_drawing(scored: Scored) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    styles = (("score", LIGHT["green"], 2.0), ("length alone", LIGHT["grey"], 1.2))
    both, positive_J = _telling(scored)
    for (name, colour, width), values in zip(styles, both):
      curve, area = metrics.roc_curve(values, positive_J), metrics.auroc(values, positive_J)
      axes.plot(100 * curve.false_positive_K, 100 * curve.true_positive_K, color=colour, linewidth=width,
                label=f"{name}, area {area:.3f}")
    axes.plot([0, 100], [0, 100], color=LIGHT["line"], linewidth=1)
    axes.set_xlabel(f"% of {scored.classes[0]} above the threshold")
    axes.set_ylabel(f"% of {scored.classes[1]}")
    axes.set_aspect("equal")
    _legend(axes)
    axes.grid()

  return draw


def calibration_panels(sets: Sequence[Scored]) -> list[Panel]:
  """Returns one panel per set with both classes and scores that are probabilities: what share came true, by score."""
  panels = []
  for scored in filter(lambda scored: scored.tells, sets):
    (scores_J, _), positive_J = _telling(scored)
    if scores_J.min() < 0 or scores_J.max() > 1:
      continue
    bins = metrics.calibration(scores_J, positive_J)
    filled = [each for each in bins if each.n]
    words = [f"{each.score:.2f} gives {100 * each.rate:.0f} % of {each.n}" for each in filled]
    alt = f"Share of {scored.classes[1]} by score, {scored.name}: {'; '.join(words)}."
    drawing = _calibration_drawing(filled, scored.classes[1], metrics.calibration_error(bins))
    panels.append(Panel(scored.name, alt, drawing, _SQUARE_INCHES))
  return panels


def _calibration_drawing(
  bins: Sequence[metrics.CalibrationBin], positive: str, error: float
) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    axes.plot([0, 1], [0, 100], color=LIGHT["line"], linewidth=1)
    axes.plot([each.score for each in bins], [100 * each.rate for each in bins], color=LIGHT["blue"], linewidth=1.2)
    most = max(each.n for each in bins)
    axes.scatter([each.score for each in bins], [100 * each.rate for each in bins], color=LIGHT["blue"],
                 s=[15 + 60 * each.n / most for each in bins])
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"mean score (a larger mark is more episodes; error {error:.2f})")
    axes.set_ylabel(f"% {positive}")
    axes.grid()

  return draw


def length_panels(sets: Sequence[Scored]) -> list[Panel]:
  """Returns one panel per set: its scores against the lengths of the episodes."""
  panels = []
  for scored in sets:
    known = np.isfinite(scored.scores_J)
    found = rank_correlation(scored.scores_J[known], scored.lengths_J[known])
    words = "one of them does not vary" if np.isnan(found) else f"rank correlation {found:.2f}"
    alt = f"Scores against lengths, {scored.name}: {words}, {int(known.sum())} episodes."
    panels.append(Panel(scored.name, alt, _length_drawing(scored, words)))
  return panels


def _length_drawing(scored: Scored, words: str) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    for name, chosen in scored.groups.items():
      axes.scatter(scored.lengths_J[chosen], scored.scores_J[chosen], s=12, alpha=0.6, linewidths=0,
                   color=scored.colour(name), label=name)
    axes.set_xlabel(f"frames ({words})")
    axes.set_ylabel("score")
    _legend(axes)
    axes.grid()

  return draw


def projection_panels(sets: Sequence[Embedded]) -> list[Panel]:
  """Returns one panel per set: its first two principal components, by outcome."""
  panels = []
  for embedded in sets:
    points_N2, shares = project(embedded.values_NF)
    first, second = (100 * share for share in shares)
    alt = (f"Embeddings of {embedded.name}: {len(points_N2)} points in the first two principal components, which hold "
           f"{first:.0f} and {second:.0f} % of the variance.")
    panels.append(Panel(embedded.name, alt, _projection_drawing(embedded, points_N2, shares), _SQUARE_INCHES))
  return panels


def _projection_drawing(embedded: Embedded, points_N2: np.ndarray, shares: np.ndarray) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    kinds = zip((embedded.positive_N == 1, embedded.positive_N == 0, np.isnan(embedded.positive_N)),
                (*embedded.classes[::-1], _UNKNOWN), (LIGHT["green"], LIGHT["red"], LIGHT["grey"]))
    for chosen, name, colour in kinds:
      if chosen.any():
        axes.scatter(*points_N2[chosen].T, s=9, alpha=0.5, linewidths=0, color=colour, label=f"{name} ({chosen.sum()})")
    axes.set_xlabel(f"first component, {100 * shares[0]:.0f} % of the variance")
    axes.set_ylabel(f"second, {100 * shares[1]:.0f} %")
    axes.set_xticks([])
    axes.set_yticks([])
    _legend(axes)

  return draw


def _telling(scored: Scored) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
  """Returns ((scores, what length alone would say), classes), of the episodes with a score."""
  known = np.isfinite(scored.scores_J)
  positive_J = scored.positive_J[known]
  return (scored.scores_J[known], metrics.either_way(scored.lengths_J[known], positive_J)), positive_J


def _legend(axes: Axes) -> None:
  axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0.1,
              handlelength=1.2, columnspacing=1.0)
