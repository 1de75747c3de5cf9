"""What the person at the page wants: told by its messages, asked by the robot's loop, which is another thread."""

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from pi0rag_jax.data.validation import EXPERT, HUMAN, POLICY
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.robots.teleop import Drive

SUCCESS, FAILURE, NEXT, AGAIN, UNDO = PRESSES = ("success", "failure", "next", "again", "undo")
# A page that went away holds no key.
DRIVE_S = 0.5
# Fingers take this long to open or close.
GRIPPER_S = 0.6
_DRIVE = ("away", "right", "up", "turn")


class Operator:
  """One person, at however many pages."""

  def __init__(self, *, expert: bool, clock=time.monotonic):
    """Args: expert: whether there is one to call."""
    self._expert, self._clock = expert, clock
    self._changed = threading.Condition()
    self._drive, self._driven_s, self._moves_until_s = Drive(), -math.inf, -math.inf
    self._pressed: list[str] = []
    self.by = POLICY
    self.is_open = True
    self.auto = False  # whether the next episode begins by itself

  def tell(self, message: Any) -> None:
    """Takes a message of the page: `drive` {away, right, up, turn}, `gripper`, `by`, `press` or `auto`.

    Whoever drives or moves the gripper takes over. Errors: Pi0RagError for anything else.
    """
    if not isinstance(message, Mapping):
      raise Pi0RagError(f"a message is a map, got a {type(message).__name__}")
    with self._changed:
      for name, value in message.items():
        if name not in self._TOLD:
          raise unknown_name("entry of a message", str(name)[:40], self._TOLD)
        self._TOLD[name](self, value)
      self._changed.notify_all()

  def _drives(self, values: Any) -> None:
    if not isinstance(values, Mapping) or not set(values) <= set(_DRIVE):
      raise Pi0RagError(f"drive is a map of {', '.join(_DRIVE)}")
    numbers = {name: value for name, value in values.items()
               if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 1}
    if len(numbers) < len(values):
      raise Pi0RagError("drive has numbers from -1 to 1")
    self._drive, self._driven_s = Drive(**numbers), self._clock()
    if self._drive.moves:
      self.by = HUMAN

  def _toggles(self, value: Any) -> None:
    del value
    self.is_open, self.by = not self.is_open, HUMAN
    self._moves_until_s = self._clock() + GRIPPER_S

  def _hands(self, by: Any) -> None:
    allowed = (POLICY, HUMAN, *((EXPERT,) if self._expert else ()))
    if by not in allowed:
      raise unknown_name("actor ('by')", str(by)[:40], allowed)
    self.by = by

  def _presses(self, name: Any) -> None:
    if name not in PRESSES:
      raise unknown_name("button", str(name)[:40], PRESSES)
    if len(self._pressed) < len(PRESSES):
      self._pressed.append(name)

  def _lets_run(self, value: Any) -> None:
    self.auto = value is True

  _TOLD = {"drive": _drives, "gripper": _toggles, "by": _hands, "press": _presses, "auto": _lets_run}

  def begins(self) -> None:
    """An episode begins: the policy acts, and nothing is pressed yet."""
    with self._changed:
      self.by, self.is_open = POLICY, True
      self._pressed, self._drive, self._moves_until_s = [], Drive(), -math.inf

  def gripper_is(self, is_open: bool) -> None:
    """The gripper was moved by somebody else; a person's wish stays."""
    with self._changed:
      if self.by != HUMAN:
        self.is_open = is_open

  def wants(self) -> Drive | None:
    """Returns where the tool is to go; None where nothing is to move, and time may stand still."""
    now_s = self._clock()
    drive = self._drive if now_s - self._driven_s < DRIVE_S else Drive()
    return drive if drive.moves or now_s < self._moves_until_s else None

  @property
  def pressed(self) -> bool:
    """Whether a button waits to be looked at."""
    return bool(self._pressed)

  def take(self) -> str:
    """Returns the button that was pressed first, '' if none."""
    with self._changed:
      return self._pressed.pop(0) if self._pressed else ""

  def wait(self, seconds: float) -> None:
    """Waits for the next message, at most so long."""
    with self._changed:
      self._changed.wait(seconds)
