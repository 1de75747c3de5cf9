"""Failures from hand-made sensors: what is told, when, and what it is not confused with."""

import numpy as np
import pytest

from pi0rag_jax.learning import detectors
from pi0rag_jax.learning.detectors import Detector, DetectorConfig, detect


def tick(arm=0.0, pads=(0.0, 0.0), width=0.08, command=1.0, height=0.1, lag=0.0):
  """Returns what the sensors of one tick tell; by default an open hand in free motion."""
  measured = np.array([0.5, 0.0, height, 0.0])
  return {"contact_force_arm_N": arm, "pad_forces_N": np.array(pads), "gripper_width_m": width,
          "gripper_command": command, "tool_measured": measured, "tool_commanded": measured - [0, 0, lag, 0]}


def held(height=0.1, *, pads=(18.0, 18.0)):
  """Returns a tick with something between the pads."""
  return tick(pads=pads, width=0.05, command=0.0, height=height)


OPEN, SHUT = tick(), tick(width=0.001, command=0.0)
RISING = [held(0.02 + 0.01 * i) for i in range(8)]


def found(sensors, **changes):
  return [(d.kind, d.tick) for d in detect(sensors, DetectorConfig(**changes), timed_out=False).detections]


@pytest.mark.parametrize(("sensors", "expected"), [
    ([OPEN] * 20, []),
    ([], []),
    ([OPEN] * 5 + [tick(arm=9.0)] * 3, [("collision", 7)]),
    ([OPEN] * 5 + [tick(arm=9.0)] + [OPEN] * 5, []),  # a touch
    ([OPEN] * 2 + [tick(pads=(150.0, 0.0))] * 3, [("collision", 3)]),
    ([OPEN] * 2 + [tick(pads=(60.0, 0.0))] * 4, [("collision", 5)]),  # weaker, so it takes longer to be one
    ([OPEN] * 2 + [held(pads=(30.0, 30.0))] * 4, []),  # a grasp that is put down firmly
    ([OPEN] * 2 + [tick(lag=0.03)] * 3, [("collision", 4)]),  # held up without any force on arm or pads
    ([OPEN] * 3 + [SHUT] * 4, [("miss", 5)]),
    ([OPEN] * 3 + [SHUT] + [OPEN], []),
    ([OPEN] * 3 + [tick(pads=(20.0, 0.0), width=0.05, command=0.0)] * 14, [("miss", 15)]),  # one finger on top
    ([OPEN, *[held()] * 6, *[SHUT] * 4], [("drop", 10)]),
    ([OPEN, *[held()] * 6, SHUT, SHUT, *[held()] * 4], []),  # back before it was lost
    ([OPEN, *[held()] * 6, *[OPEN] * 6], []),  # put down where it was
    ([OPEN, *RISING, *[tick(height=0.1)] * 6], [("drop", 12)]),  # let fall
    ([OPEN, *RISING, *[tick(width=0.0, command=0.0, height=0.1)] * 9], [("drop", 12)]),  # no miss on top of it
])
def test_what_is_noticed(sensors, expected):
  assert found(sensors) == expected


def test_a_release_may_be_sensible_anywhere():
  assert found([OPEN, *RISING, *[tick(height=0.1)] * 6], release_height_m=float("inf")) == []


def test_what_is_put_on_something_was_not_dropped():
  let_go = [OPEN, *RISING, *[tick(height=0.1)] * 6]
  assert found(let_go, put_height_m=0.04) == [("drop", 12)]
  assert found(let_go, put_height_m=0.1) == []


def test_a_long_contact_is_told_once_and_the_next_one_again():
  contact, pause = [tick(arm=9.0)] * 6, [OPEN] * 4
  assert found([*contact, OPEN, *contact, *pause, *contact]) == [("collision", 2), ("collision", 19)]


def test_confidence_rises_with_the_signal():
  weak, strong = (detect([tick(arm=force)] * 2, DetectorConfig(), timed_out=False).detections[0].confidence
                  for force in (5.1, 50.0))
  assert 0.5 < weak < strong <= 1.0


def test_a_detector_tells_at_the_tick_itself():
  detector = Detector(time_limit=4)
  told = [detector.update(sensors) for sensors in (OPEN, SHUT, SHUT, SHUT)]
  assert [[d.kind for d in ds] for ds in told] == [[], [], ["miss"], ["timeout"]]
  assert told[2][0].onset == 2


def test_a_grasp_makes_up_for_what_was_before():
  missed_then_held = [SHUT] * 4 + [OPEN] + [held()] * 5
  findings = detect(missed_then_held, DetectorConfig(), timed_out=True)
  assert [d.kind for d in findings.detections] == ["miss", "timeout"]
  assert findings.recovered == 8 and findings.kind == "timeout"
  again = detect(missed_then_held + [OPEN] + [SHUT] * 4, DetectorConfig(), timed_out=True)
  assert again.kind == "miss" and again.cause and again.cause.tick == 13
  assert set(detectors.KINDS) == {"collision", "drop", "miss", "timeout"}
