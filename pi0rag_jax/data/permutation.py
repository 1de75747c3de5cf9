"""Shuffles of any size in constant memory: the place of every number is computed, none is stored."""

import numpy as np

ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffled(places, size: int, key) -> np.ndarray:
  """Returns int64[N], what stands at `places` of a shuffle of 0 to size - 1.

  A balanced Feistel network permutes the numbers of 2 h bits; those at or above `size` are sent through again until
  they fall below it (cycle walking), less than four times on average.

  Args:
    places: int[N] in [0, size).
    size: of what is shuffled.
    key: integers that choose the shuffle.
  Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002); mixing by SplitMix64.
  """
  half = np.uint64(max(1, -(-max(size - 1, 1).bit_length() // 2)))
  mask = np.uint64((1 << int(half)) - 1)
  round_keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
  values = np.asarray(places, np.uint64).copy()
  pending = np.ones(values.shape, bool)
  while pending.any():
    left, right = values[pending] >> half, values[pending] & mask
    for round_key in round_keys:
      left, right = right, left ^ (_mix(right + round_key) & mask)
    values[pending] = (left << half) | right
    pending = values >= size
  return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
  """Returns SplitMix64's mixing of uint64 numbers; overflow is meant."""
  with np.errstate(over="ignore"):
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))
