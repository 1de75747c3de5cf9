"""Tests that may be looked at after every episode, against the enumeration of all that can happen."""

import itertools
import math

import numpy as np
import pytest

from pi0rag_jax import anytime


def chance_of_ever(contradicts, rate: float, n: int) -> float:
  """Returns the exact probability that `contradicts(successes, failures)` holds at one of n looks at a rate."""
  alive, ever = {(0, 0): 1.0}, 0.0
  for _ in range(n):
    after: dict[tuple[int, int], float] = {}
    for (s, f), chance in alive.items():
      for place, share in (((s + 1, f), rate), ((s, f + 1), 1 - rate)):
        after[place] = after.get(place, 0.0) + chance * share
    ever += sum(chance for place, chance in after.items() if contradicts(*place))
    alive = {place: chance for place, chance in after.items() if not contradicts(*place)}
  return ever


def test_capital_is_an_average_of_bets():
  q = (np.arange(200_000) + 0.5) / 200_000
  weight = 1 / np.sqrt(q * (1 - q))
  for high in (1.0, 0.3):
    inside = q < high
    bets = (q / 0.3) ** 2 * ((1 - q) / 0.7) ** 9
    expected = (bets * weight)[inside].sum() / weight[inside].sum()
    assert np.exp(anytime.log_e_value(2, 9, 0.3, high=high)) == pytest.approx(expected, rel=1e-2)


def test_capital_is_not_expected_to_grow():
  for better_D in (np.array(list(itertools.product([0, 1], repeat=d)), bool) for d in (1, 4, 9)):
    capital = [np.exp(anytime.fair_log_capital(row))[-1] for row in better_D]
    assert np.mean(capital) == pytest.approx(1, rel=1e-9)


def test_all_sequences_of_fair_changes_are_called_clear_as_rarely_as_promised():
  all_D = np.array(list(itertools.product([False, True], repeat=12)))
  p = np.array([anytime.fair_p_value(row) for row in all_D])
  for alpha in (0.05, 0.2):
    assert 0 < (p <= alpha).mean() <= alpha
  clear = lambda s, f: abs(anytime.log_e_value(s, f, 0.5)) >= math.log(20) and s != f  # noqa: E731
  assert (p <= 0.05).mean() == pytest.approx(chance_of_ever(clear, 0.5, 12), rel=1e-9)


def test_a_changed_mind_does_not_take_back_what_was_clear():
  better = [True] * 9
  assert anytime.fair_p_value(better) < 0.02
  assert anytime.fair_p_value([*better, *[False] * 9]) == anytime.fair_p_value(better)
  assert anytime.fair_p_value([]) == 1.0


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.9])
def test_intervals_miss_at_any_look_as_rarely_as_promised(rate):
  def misses(s, f):
    low, high = anytime.interval(s, f)
    return not low <= rate <= high

  assert chance_of_ever(misses, rate, 25) <= 0.05


def test_intervals_by_hand():
  assert anytime.interval(0, 0) == (0.0, 1.0)
  low, high = anytime.interval(0, 10)
  assert low == 0 and anytime.log_e_value(0, 10, high) == pytest.approx(math.log(20))
  low, high = anytime.interval(7, 3)
  assert low < 0.7 < high and anytime.interval(3, 7) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5])
def test_upper_bounds_are_below_the_rate_as_rarely_as_promised(rate):
  assert chance_of_ever(lambda s, f: anytime.upper_bound(s, f) < 0.1, rate, 45) <= 0.05


def test_upper_bounds_by_hand():
  assert anytime.upper_bound(0, 0) == anytime.upper_bound(3, 0) == 1
  bound = anytime.upper_bound(1, 99)
  assert 0.01 < bound < anytime.interval(1, 99)[1], "one side is cheaper than two"
  assert anytime.log_e_value(1, 99, bound, high=bound) == pytest.approx(math.log(20), rel=1e-6)


def test_holm_by_hand():
  # The least of three counts three times, the next twice, and none less than one before it.
  assert anytime.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert anytime.holm([0.9, 0.8]) == [1.0, 1.0] and anytime.holm([]) == []
