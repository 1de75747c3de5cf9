"""Rates and comparisons of success arrays: pure functions; a point and its 95 % interval come together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pi0rag_jax import anytime

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05  # Below it a change is called clear.


@dataclass(frozen=True)
class Estimate:
  """A number and its 95 % interval, from `n` observations; nan where there is nothing to estimate."""

  value: float
  low: float
  high: float
  n: int


@dataclass(frozen=True)
class PairedComparison:
  """A treatment against a baseline on the same `n` seeds."""

  n: int
  fixed: int  # Failed with the baseline, succeeded with the treatment.
  regressed: int  # The reverse.
  both_succeeded: int
  both_failed: int
  p_value: float  # Exact McNemar, two-sided.
  p_value_anytime: float  # The same claim, tested at every pair: it holds wherever the comparison stopped.
  failures_removed: Estimate  # Net, as a fraction of the baseline's failures.
  regressions: Estimate  # Fraction of the baseline's successes that were lost.
  regressions_at_most: float  # Bound of that fraction which holds at every look, see docs/guarantee.md.
  difference: Estimate  # Success rate of the treatment minus the baseline's.
  better_of_changed: Estimate  # Share of the pairs that differ in which the treatment succeeded; holds at every look.


@dataclass(frozen=True)
class Block:
  """The success rate of the episodes start <= index < stop of a stream."""

  start: int
  stop: int
  rate: Estimate


def success_rate(succeeded_N) -> Estimate:
  """Returns the share of successes with Wilson's interval; nan in [0, 1] for no episode.

  Args:
    succeeded_N: bool[N].
  """
  return wilson(int(np.sum(succeeded_N)), len(succeeded_N))


def wilson(successes: int, n: int) -> Estimate:
  """Returns successes / n with Wilson's interval, which stays inside [0, 1] and keeps a width at 0 and n."""
  if n == 0:
    return Estimate(math.nan, 0.0, 1.0, 0)
  interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
  return Estimate(successes / n, float(interval.low), float(interval.high), n)


def paired_comparison(
  baseline_N, treatment_N, rng: np.random.Generator, *, resamples: int = 10_000
) -> PairedComparison:
  """Returns what the treatment fixed and broke on shared seeds.

  Args:
    baseline_N: bool[N], success of the baseline, by seed, in the order in which the pairs were seen.
    treatment_N: bool[N], success of the treatment on the same seeds in the same order.
    rng: draws the bootstrap of `failures_removed`.
    resamples: of that bootstrap.
  """
  baseline_N, treatment_N = np.asarray(baseline_N, bool), np.asarray(treatment_N, bool)
  if baseline_N.shape != treatment_N.shape:
    raise ValueError(f"paired arrays have {baseline_N.size} and {treatment_N.size} seeds")
  fixed = int(np.sum(~baseline_N & treatment_N))
  regressed = int(np.sum(baseline_N & ~treatment_N))
  both_succeeded = int(np.sum(baseline_N & treatment_N))
  both_failed = int(np.sum(~baseline_N & ~treatment_N))
  counts = (fixed, regressed, both_succeeded, both_failed)
  return PairedComparison(
    baseline_N.size,
    *counts,
    p_value=mcnemar_p_value(fixed, regressed),
    p_value_anytime=anytime.fair_p_value(treatment_N[baseline_N != treatment_N]),
    failures_removed=failures_removed(*counts, rng, resamples=resamples),
    regressions=wilson(regressed, regressed + both_succeeded),
    regressions_at_most=anytime.upper_bound(regressed, both_succeeded),
    difference=paired_difference(*counts),
    better_of_changed=anytime_rate(fixed, regressed),
  )


def anytime_rate(successes: int, failures: int) -> Estimate:
  """Returns a rate with an interval that holds at every look (`anytime.interval`)."""
  n = successes + failures
  return Estimate(successes / n if n else math.nan, *anytime.interval(successes, failures), n)


def mcnemar_p_value(fixed: int, regressed: int) -> float:
  """Returns the exact two-sided probability of a split this uneven were fixing and breaking equally likely."""
  changed = fixed + regressed
  return float(binomtest(fixed, changed, 0.5).pvalue) if changed else 1.0


def failures_removed(
  fixed: int,
  regressed: int,
  both_succeeded: int,
  both_failed: int,
  rng: np.random.Generator,
  *,
  resamples: int = 10_000,
) -> Estimate:
  """Returns (fixed - regressed) / the baseline's failures, negative when more broke than was fixed.

  The interval is the percentile one of a paired bootstrap over seeds. A seed is one of four kinds, so that
  drawing N seeds with replacement is one multinomial draw of the four counts. Resamples without a failure of
  the baseline have no fraction and are left out. Where every resample agrees (all fixed, or nothing changed)
  the bootstrap has no width; then Wilson's interval of fixed / failures stands in. No failure: nan throughout.
  """
  failures = fixed + both_failed
  if failures == 0:
    return Estimate(math.nan, math.nan, math.nan, 0)
  counts_4 = np.array([fixed, regressed, both_succeeded, both_failed])
  drawn_R4 = rng.multinomial(counts_4.sum(), counts_4 / counts_4.sum(), size=resamples)
  failures_R = drawn_R4[:, 0] + drawn_R4[:, 3]
  net_R = drawn_R4[:, 0] - drawn_R4[:, 1]
  share_R = net_R[failures_R > 0] / failures_R[failures_R > 0]
  tail = (1 - CONFIDENCE) / 2
  low, high = (float(bound) for bound in np.quantile(share_R, [tail, 1 - tail]))
  if share_R.min() == share_R.max():
    exact = wilson(fixed, failures)
    low, high = exact.low, exact.high
  return Estimate((fixed - regressed) / failures, low, high, failures)


def paired_difference(fixed: int, regressed: int, both_succeeded: int, both_failed: int) -> Estimate:
  """Returns the difference of two success rates on shared seeds; nan in [-1, 1] without seeds.

  Source of the interval: Newcombe 1998, Statistics in Medicine 17:2635, method 10 (Wilson intervals of both
  rates, combined with the correlation of the pairs).
  """
  n = fixed + regressed + both_succeeded + both_failed
  if n == 0:
    return Estimate(math.nan, -1.0, 1.0, 0)
  after, before = wilson(both_succeeded + fixed, n), wilson(both_succeeded + regressed, n)
  phi = _pair_correlation(fixed, regressed, both_succeeded, both_failed)
  below = _combine(after.value - after.low, before.high - before.value, phi)
  above = _combine(after.high - after.value, before.value - before.low, phi)
  difference = (fixed - regressed) / n
  return Estimate(difference, difference - below, difference + above, n)


def _pair_correlation(fixed: int, regressed: int, both_succeeded: int, both_failed: int) -> float:
  """Returns the phi coefficient of the pairs with Newcombe's continuity correction, 0 for an empty margin."""
  margins = (both_succeeded + fixed) * (regressed + both_failed)
  margins *= (both_succeeded + regressed) * (fixed + both_failed)
  if margins == 0:
    return 0.0
  excess = both_succeeded * both_failed - fixed * regressed
  half = (fixed + regressed + both_succeeded + both_failed) / 2
  if excess > 0:
    excess = max(excess - half, 0)
  return excess / math.sqrt(margins)


def _combine(first: float, second: float, phi: float) -> float:
  """Returns the length of the difference of two deviations with correlation `phi`."""
  return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def learning_curve(index_N, succeeded_N, *, block: int = 50) -> list[Block]:
  """Returns the success rate of every `block` positions of a stream that hold an episode, in order.

  Args:
    index_N: int[N], positions in the stream, from 0; a crashed episode leaves a gap, not a failure.
    succeeded_N: bool[N].
    block: positions per point; the last block may be cut short and says so by its stop.
  """
  index_N, succeeded_N = np.asarray(index_N, int), np.asarray(succeeded_N, bool)
  blocks = []
  for number in np.unique(index_N // block):
    inside_N = index_N // block == number
    stop = min((number + 1) * block, index_N.max() + 1)
    blocks.append(Block(int(number * block), int(stop), success_rate(succeeded_N[inside_N])))
  return blocks


def verdict(fixed: int, regressed: int, both_failed: int, p_value: float) -> str:
  """Returns 'better' or 'worse' where a test is below SIGNIFICANCE, else 'unclear' or 'nothing' to fix."""
  if p_value < SIGNIFICANCE:
    return "better" if fixed > regressed else "worse"
  return "unclear" if fixed + both_failed else "nothing"


def percentiles(values_N) -> dict[str, float | None]:
  """Returns the p50, p95 and p99 of the values, None for no value."""
  if len(values_N) == 0:
    return {"p50": None, "p95": None, "p99": None}
  p50, p95, p99 = np.percentile(values_N, [50, 95, 99])
  return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def pooled_percentiles(groups: Sequence[Sequence[float] | Mapping[str, float]]) -> dict[str, float | None]:
  """Returns the percentiles over all values; where a group is only percentiles, the median over the groups."""
  lists = [np.asarray(group, float) for group in groups if not isinstance(group, Mapping)]
  summaries: list[Mapping[str, Any]] = [group for group in groups if isinstance(group, Mapping)]
  if not summaries:
    return percentiles(np.concatenate(lists) if lists else [])
  summaries += [percentiles(values) for values in lists if len(values)]
  return {name: float(np.median([s[name] for s in summaries])) for name in ("p50", "p95", "p99")}


def number(value: float) -> float | None:
  """Returns the value, None for nan, which JSON does not have."""
  return None if math.isnan(value) else value


def bounds(estimate: Estimate) -> list[float | None]:
  """Returns the interval as JSON holds it."""
  return [number(estimate.low), number(estimate.high)]


def pair_to_json(pair: PairedComparison) -> dict[str, Any]:
  """Returns the comparison with each estimate as a number and, beside it, its interval."""
  values: dict[str, Any] = {}
  for field in fields(pair):
    value = getattr(pair, field.name)
    if isinstance(value, Estimate):
      values[field.name] = number(value.value)
      values[f"{field.name}_interval_95"] = bounds(value)
    else:
      values[field.name] = value
  return values
