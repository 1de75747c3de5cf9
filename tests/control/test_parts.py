"""What the loop is made of: its clock, its watchdog, how soon it plans anew, and what hands say."""

import os
import struct
import threading

import numpy as np
import pytest

from pi0rag_jax.control import hands
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.pacer import Pacer
from pi0rag_jax.control.replanning import ADAPTIVE, COARSE, FINE, OWN, Replanning
from pi0rag_jax.control.watchdog import Watchdog
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import panda
from pi0rag_jax.steering import paths


def test_ticks_lie_on_an_absolute_clock():
  now = [0.0]
  pacer = Pacer(0.1, lambda: now[0], lambda seconds: now.__setitem__(0, now[0] + seconds))
  beginnings = []
  for work_s in (0.03, 0.09, 0.12, 0.03, 0.37, 0.0):
    now[0] += work_s
    pacer.wait()
    beginnings.append(round(now[0], 6))
  # The tick after a late one begins at once and is shorter; one that is later than a tick leaves others out.
  assert beginnings == [0.1, 0.2, 0.32, 0.4, 0.8, 0.9]
  assert (pacer.ticks, pacer.overruns) == (6, 2) and pacer.late_s == pytest.approx(0.27)


def test_how_soon_it_plans_anew():
  assert [Replanning(rate, 8, 16).first for rate in (OWN, COARSE, FINE, ADAPTIVE)] == [8, 16, 1, 8]
  adaptive = Replanning(ADAPTIVE, 8, 16)
  for steps, apart, spoke, wanted in [(8, 0.1, False, 12), (12, 0.0, False, 12), (12, 2.0, False, 8),
                                      (12, 0.0, True, 8)]:
    assert adaptive.following(steps, contradiction=apart, spoke=spoke) == wanted
  assert Replanning(ADAPTIVE, 16, 16).following(16, contradiction=0, spoke=False) == 16
  assert Replanning(FINE, 8, 16).following(1, contradiction=0, spoke=False) == 1
  with pytest.raises(Pi0RagError, match="unknown rate of planning 'often'"):
    Replanning("often", 8, 16)


def test_plans_contradict_each_other_where_they_overlap():
  before_TA, after_TA = np.zeros((2, 8, 5), np.float32)
  before_TA[:, 0] = after_TA[:, 0] = 0.01
  assert paths.contradiction(before_TA, after_TA, 4, panda.ACTIONS) == pytest.approx(0, abs=1e-5)
  after_TA[:, 0] = 0.0
  assert paths.contradiction(before_TA, after_TA, 4, panda.ACTIONS) == pytest.approx(2.5, rel=1e-4)
  assert paths.contradiction(before_TA, after_TA, 8, panda.ACTIONS) == 0


class Arm:
  """Counts what it is told."""

  def __init__(self):
    self.actions, self.holds, self.held = [], 0, threading.Event()

  def act(self, action_A):
    self.actions.append(action_A)

  def hold(self):
    self.holds += 1
    self.held.set()


def test_nothing_is_sent_after_the_watchdog_has_spoken():
  arm, faults = Arm(), [""]
  watchdog = Watchdog(arm, lambda: faults[0])
  watchdog.start()
  assert watchdog.act(np.zeros(2))
  faults[0] = "the camera is gone"
  assert arm.held.wait(5.0), "on a thread of its own"
  assert not watchdog.act(np.zeros(2)) and watchdog.look() == "the camera is gone"
  assert (len(arm.actions), arm.holds, watchdog.trips) == (1, 1, 1)
  faults[0] = ""
  assert watchdog.look() == "" and watchdog.act(np.zeros(2))
  faults.clear()  # what is asked breaks
  assert watchdog.look() == "the robot's driver: IndexError: list index out of range" and not watchdog.act(np.zeros(2))
  watchdog.close()


def heard(listen, writes):
  """Returns what an operator is told of what is written into a device, which is then pulled out."""
  told, (here, there) = [], os.pipe()
  operator = Operator(expert=False)
  operator.tell = lambda message: (Operator.tell(operator, message), told.append(message))
  for data in writes:
    os.write(there, data)
  os.close(there)
  listen(operator, here, threading.Event())
  os.close(here)
  return told


def test_keys_drive_and_press():
  assert heard(hands.keyboard, [b"w"]) == [{"drive": {"away": 1}}]
  assert heard(hands.keyboard, [b"\x1b[D"]) == [{"drive": {"turn": 1}}]
  assert heard(hands.keyboard, [b"N"]) == [{"press": "next"}] and heard(hands.keyboard, [b"z"]) == []
  assert heard(hands.keyboard, [b"x"]) == [], "there is no expert to call"


def test_a_gamepad_drives_presses_and_is_pulled_out():
  event = struct.Struct("<IhBB")
  told = heard(hands.gamepad, [event.pack(0, -32767, 2, 1), event.pack(0, 3000, 2, 0), event.pack(0, 1, 1, 0),
                               event.pack(0, 0, 1, 0)])
  assert told[0] == {"drive": {"right": 0.0, "away": 1.0, "turn": 0.0, "up": 0.0}}
  assert {"gripper": "toggle"} in told and told[-1] == {"drive": {}}


def test_hands_that_are_not_there_are_named(tmp_path):
  with pytest.raises(Pi0RagError, match="there is no gamepad at"), \
      hands.listening(Operator(expert=False), ["gamepad"], str(tmp_path / "js0")):
    pass
  with pytest.raises(Pi0RagError, match="the keyboard is the terminal's"), \
      hands.listening(Operator(expert=False), ["keyboard"]):
    pass
