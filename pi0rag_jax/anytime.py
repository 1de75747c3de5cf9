"""Tests and intervals of counts that hold at every look: whoever watches may stop whenever they like.

All rest on one bet. Against a rate r of successes, capital is multiplied by q/r at a success and by (1-q)/(1-r) at a
failure; q is drawn once, from Jeffreys' Beta(1/2, 1/2) or the part of it that contradicts the claim. If the claim is
true, capital is not expected to grow, whatever came before, and by Ville's inequality it reaches 1/alpha with
probability alpha at most, however long one plays. `e_value` is that capital.

Source: Robbins 1970 (Annals of Mathematical Statistics 41:1397); Waudby-Smith and Ramdas, arXiv 2010.09686.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaln, xlogy

ALPHA = 0.05
_TINY = 1e-9
_PRIOR = 0.5  # both parameters of the Beta distribution that bets are drawn from


def log_e_value(successes, failures, rate: float, *, low: float = 0.0, high: float = 1.0) -> np.ndarray:
  """Returns the log of the capital against the claim that the rate of successes is `rate`, float of the counts' shape.

  Args:
    successes, failures: counts, whole or not; arrays are taken entry by entry.
    low, high: rates that bets are made on. `high=rate` bets against "at least `rate`", `low=rate` against "at most".
  """
  s, f = np.asarray(successes, float), np.asarray(failures, float)
  with np.errstate(divide="ignore"):  # bets on rates that cannot be have lost all
    share = np.log(_between(s + _PRIOR, f + _PRIOR, low, high)) - np.log(_between(_PRIOR, _PRIOR, low, high))
  likelihood = betaln(s + _PRIOR, f + _PRIOR) - betaln(_PRIOR, _PRIOR)
  return share + likelihood - xlogy(s, rate) - xlogy(f, 1.0 - rate)


def _between(a, b, low: float, high: float):
  return betainc(a, b, high) - betainc(a, b, low)


def interval(successes: int, failures: int, alpha: float = ALPHA) -> tuple[float, float]:
  """Returns the rates that the bet does not contradict: all of these intervals together miss with probability alpha."""
  n = successes + failures
  if n == 0:
    return 0.0, 1.0

  def excess(rate: float) -> float:
    return float(log_e_value(successes, failures, rate)) - math.log(1 / alpha)

  low = _root(excess, _TINY, successes / n) if successes else 0.0
  high = _root(excess, 1 - _TINY, successes / n) if failures else 1.0
  return low, high


def upper_bound(successes: int, failures: int, alpha: float = ALPHA) -> float:
  """Returns the least rate above the observed one that a bet on smaller ones contradicts; 1 where none is."""

  def excess(rate: float) -> float:
    return float(log_e_value(successes, failures, rate, high=rate)) - math.log(1 / alpha)

  return _root(excess, 1 - _TINY, max(successes / (successes + failures), _TINY)) if failures else 1.0


def _root(excess: Callable[[float], float], far: float, near: float) -> float:
  """Returns where a function that is negative at `near` becomes positive; the end of [0, 1] that `far` is next to."""
  if excess(far) <= 0:
    return float(round(far))
  root: Any = brentq(excess, far, near)
  return float(root)


def fair_log_capital(better_D: Sequence[bool] | np.ndarray) -> np.ndarray:
  """Returns the log of the capital after each change against "better and worse are equally likely", float[D].

  Args:
    better_D: bool[D], of the pairs that differ, in the order in which they were seen. It is the sequential form of
      McNemar's test.
  """
  better = np.cumsum(np.asarray(better_D, bool))
  return log_e_value(better, np.arange(1, len(better) + 1) - better, 0.5)


def fair_p_value(better_D: Sequence[bool] | np.ndarray) -> float:
  """Returns a p-value of the same claim that holds whenever one stops: one over the largest capital so far."""
  return float(np.exp(-max(0.0, fair_log_capital(better_D).max(initial=0.0))))


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns the p-values of a family of tests, such that all below alpha are true but with probability alpha.

  Source: Holm 1979 (Scandinavian Journal of Statistics 6:65). However they depend on each other.
  """
  p_P = np.asarray(p_values, float)
  order = np.argsort(p_P, kind="stable")
  adjusted_P = np.empty(len(p_P))
  adjusted_P[order] = np.minimum(np.maximum.accumulate(p_P[order] * np.arange(len(p_P), 0, -1)), 1.0)
  return adjusted_P.tolist()
