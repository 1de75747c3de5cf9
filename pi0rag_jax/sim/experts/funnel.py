"""How experts move: heights are funnels over the distance to go, so that phases of a motion blend into each other."""

import math

# Per tick; below the bound, so that the demonstrations do not saturate. Slow is the last part of every descent.
FAST_M, SLOW_M = 0.012, 0.006
# So far below the funnel the tool first rises and does not move sideways.
RISE_FIRST_M = 0.04


def sideways_share(height: float, floor: float) -> float:
  """Returns the share [0, 1] of the sideways speed allowed at `height` when the funnel's floor is at `floor`."""
  return min(max(1.0 - (floor - height) / RISE_FIRST_M, 0.0), 1.0)


def descent_speed(clearance: float) -> float:
  """Returns m per tick: fast where the way down is free by 3 cm, slow at the end."""
  return SLOW_M + (FAST_M - SLOW_M) * min(max(clearance / 0.03, 0.0), 1.0)


def bounded(dx: float, dy: float, limit: float) -> tuple[float, float]:
  """Returns (dx, dy), shortened to `limit` where it is longer."""
  length = math.hypot(dx, dy)
  scale = 1.0 if length <= limit else limit / length
  return dx * scale, dy * scale
