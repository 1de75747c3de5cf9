"""Mixtures of demonstrators: a share of them bad, in one way or each in their own, drawn from a judged data set."""

from collections.abc import Sequence

import numpy as np

from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.errors import Pi0RagError, unknown_name


def mixture(flaws: Sequence[str], *, share: float, episodes: int, kinds: Sequence[str] = (), seed: int = 0
            ) -> np.ndarray:
  """Returns bool[J], the episodes of a mixture.

  Args:
    flaws: of each episode, see `verdicts.flaws_of`.
    share: of the mixture that is flawed, 0 to 1.
    episodes: of the mixture.
    kinds: flaws that are drawn from, each as often as the others; none: all that occur.
    seed: of the draw.
  Raises:
    Pi0RagError: an unknown kind, or too few episodes of one.
  """
  there = sorted({*flaws} - {"", CLEAN})
  for kind in kinds:
    if kind not in there:
      raise unknown_name("flaw in the data set", kind, there)
  if not 0 <= share <= 1 or episodes < 1:
    raise Pi0RagError(f"a mixture of {episodes} episodes, a share of {share:g} flawed; allowed: 1 or more, and 0 to 1")
  rng, chosen = np.random.default_rng(seed), np.zeros(len(flaws), bool)
  flawed = round(share * episodes)
  wanted = {CLEAN: episodes - flawed} | _even(flawed, tuple(kinds) or there)
  for kind, count in wanted.items():
    known = np.flatnonzero([flaw == kind for flaw in flaws])
    if len(known) < count:
      raise Pi0RagError(f"the mixture takes {count} episodes that are '{kind}', the data set has {len(known)}: fewer "
                        "episodes, another share, or more data")
    chosen[rng.permutation(known)[:count]] = True
  return chosen


def _even(total: int, kinds: Sequence[str]) -> dict[str, int]:
  """Returns how many of each kind make a total, as even as can be."""
  if total and not kinds:
    raise Pi0RagError("no episode of the data set is known to be flawed: collect some with --flaw, or add flaws")
  return {kind: total // len(kinds) + (i < total % len(kinds)) for i, kind in enumerate(kinds)}
