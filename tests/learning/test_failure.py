"""Failure kinds from hand-made sensor traces."""

import numpy as np
import pytest

from pi0rag_jax.learning.failure import failure_kind, lasts


def tick(arm=0.0, pads=(0.0, 0.0), width=0.08, command=1.0):
  return {"contact_force_arm_N": arm, "pad_forces_N": np.array(pads), "gripper_width_m": width,
          "gripper_command": command}


HELD = tick(pads=(15.0, 15.0), width=0.05, command=0.0)
OPEN = tick()


@pytest.mark.parametrize(("sensors", "kind"), [
    ([OPEN] * 20, "timeout"),
    ([], "timeout"),
    ([OPEN] * 5 + [tick(arm=9.0)] * 3, "collision"),
    ([OPEN] * 5 + [tick(arm=9.0)] * 2 + [OPEN], "timeout"),  # shorter than the debounce
    ([OPEN] * 5 + [tick(pads=(80.0, 0.0))] * 3, "collision"),
    ([OPEN] * 3 + [tick(width=0.001, command=0.0)] * 4, "miss"),
    ([OPEN] + [HELD] * 6 + [tick(width=0.03, command=0.0)] * 4, "drop"),
    ([OPEN] + [HELD] * 6 + [OPEN] * 6, "timeout"),  # let go on purpose
])
def test_kind(sensors, kind):
  assert failure_kind(sensors) == kind


def test_lasts_needs_ticks_in_a_row():
  signal = np.array([1, 1, 0, 1, 1, 0], bool)
  assert lasts(signal, 2) and not lasts(signal, 3) and not lasts(signal[:1], 2)
