"""What kind of failure an episode was, from what a robot can measure: forces, gripper width, time.

Thresholds were measured on the simulated Panda (simulation notes): a nominal episode has no contact force on
the arm and about 15 N on each pad; pads pressed into the table show 137 N and more.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class FailureThresholds:
  """When a signal means a failure."""

  arm_force_N: float = 5.0  # on links and hand, pads excluded
  pad_force_N: float = 50.0  # far above a grasp
  held_force_N: float = 1.0  # on both pads: something is held
  empty_width_m: float = 0.002  # closed on nothing
  debounce_ticks: int = 3


def failure_kind(sensors: Sequence[dict], thresholds: FailureThresholds | None = None) -> str:
  """Returns 'collision', 'drop', 'miss' or 'timeout' for an episode that did not reach its goal.

  Args:
    sensors: one dict per control tick with `contact_force_arm_N`, `pad_forces_N` [2], `gripper_width_m` and
      `gripper_command` (1 open, 0 closed).
  """
  limits = thresholds or FailureThresholds()
  if not sensors:
    return "timeout"
  arm_N = np.array([s["contact_force_arm_N"] for s in sensors])
  pads_N2 = np.array([s["pad_forces_N"] for s in sensors])
  width_N = np.array([s["gripper_width_m"] for s in sensors])
  closing_N = np.array([s["gripper_command"] for s in sensors]) < 0.5
  held_N = (pads_N2 > limits.held_force_N).all(axis=1)
  if lasts((arm_N > limits.arm_force_N) | (pads_N2 > limits.pad_force_N).any(axis=1), limits.debounce_ticks):
    return "collision"
  if _dropped(held_N, closing_N, limits.debounce_ticks):
    return "drop"
  if lasts(closing_N & (width_N < limits.empty_width_m) & ~held_N, limits.debounce_ticks):
    return "miss"
  return "timeout"


def lasts(signal_N: np.ndarray, ticks: int) -> bool:
  """Returns whether a boolean signal stays on for at least so many ticks in a row."""
  if len(signal_N) < ticks:
    return False
  return bool((np.convolve(signal_N.astype(int), np.ones(ticks, int), "valid") == ticks).any())


def _dropped(held_N, closing_N, ticks: int) -> bool:
  """Returns whether something held was lost for a while with the gripper still commanded closed."""
  for end in np.flatnonzero(held_N[:-1] & ~held_N[1:]) + 1:
    held_before = held_N[max(0, end - ticks) : end].all() and end >= ticks
    lost_after = (~held_N[end : end + ticks] & closing_N[end : end + ticks]).all() and end + ticks <= len(held_N)
    if held_before and lost_after:
      return True
  return False
