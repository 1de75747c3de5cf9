"""Keyboards and gamepads of this machine: what they say to the operator, as the console's page does.

Keys are those of the page; a terminal tells no release, so that a key is held as long as it repeats. A gamepad is
Linux' joystick device.
"""

import contextlib
import os
import select
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator

from pi0rag_jax.control.operator import AGAIN, FAILURE, NEXT, SUCCESS, UNDO, Operator
from pi0rag_jax.data.validation import EXPERT, HUMAN, POLICY
from pi0rag_jax.errors import Pi0RagError

KEYBOARD, GAMEPAD = HANDS = ("keyboard", "gamepad")
DEVICE = "/dev/input/js0"
HELP = ("W A S D away, left, near, right; Q E down, up; arrows turn; space grips: these take over. T takes over and "
        "holds, H hands back, X the expert. N next episode, R same start again, Y it succeeded, F it failed, U undo")
RELEASED_S = 0.15  # after its last repetition
REPEAT_S = 0.08  # between two messages of a stick that is held
_DRIVES = {"w": ("away", 1), "s": ("away", -1), "d": ("right", 1), "a": ("right", -1), "e": ("up", 1), "q": ("up", -1),
           "\x1b[D": ("turn", 1), "\x1b[C": ("turn", -1)}
_SAYS = {" ": {"gripper": "toggle"}, "t": {"by": HUMAN}, "h": {"by": POLICY}, "x": {"by": EXPERT}, "n": {"press": NEXT},
         "r": {"press": AGAIN}, "y": {"press": SUCCESS}, "f": {"press": FAILURE}, "u": {"press": UNDO}}
_STILL = {"drive": {}}
# Of a gamepad as Linux counts: sticks, then A, B, X, Y, and the two small ones in the middle.
_STICKS = {0: ("right", 1), 1: ("away", -1), 3: ("turn", -1), 4: ("up", -1)}
_BUTTONS = {0: " ", 1: "h", 2: "x", 3: "y", 6: "f", 7: "n"}
_EVENT = struct.Struct("<IhBB")  # ms, value, type, number
_PRESSED, _MOVED, _AT_FIRST = 1, 2, 0x80
_FULL, _DEAD = 32767, 0.15


def keyboard(operator: Operator, fd: int, over: threading.Event) -> None:
  """Tells the operator what is typed until it is over."""
  moving = False
  while not over.is_set():
    if not select.select([fd], [], [], RELEASED_S)[0]:
      if moving:
        operator.tell(_STILL)
      moving = False
      continue
    typed = os.read(fd, 64).decode("utf8", "replace")
    if not typed:
      return
    key = typed if typed in _DRIVES else typed[-1].lower()
    if key in _DRIVES:
      name, way = _DRIVES[key]
      operator.tell({"drive": {name: way}})
      moving = True
    elif key in _SAYS:
      with contextlib.suppress(Pi0RagError):  # there is no expert to call
        operator.tell(_SAYS[key])


def gamepad(operator: Operator, fd: int, over: threading.Event) -> None:
  """Tells the operator what a gamepad does until it is over, or pulled out."""
  drive = {name: 0.0 for name, _ in _STICKS.values()}
  moving = False
  while not over.is_set():
    if select.select([fd], [], [], REPEAT_S)[0]:
      event = os.read(fd, _EVENT.size)
      if len(event) < _EVENT.size:
        operator.tell(_STILL)
        return
      _, value, kind, number = _EVENT.unpack(event)
      if kind == _PRESSED and value and number in _BUTTONS:
        with contextlib.suppress(Pi0RagError):
          operator.tell(_SAYS[_BUTTONS[number]])
      if kind & ~_AT_FIRST != _MOVED or number not in _STICKS:
        continue
      name, way = _STICKS[number]
      share = max(-1.0, min(1.0, way * value / _FULL))
      drive[name] = share if abs(share) >= _DEAD else 0.0
    if any(drive.values()) or moving:
      operator.tell({"drive": dict(drive)})
    moving = any(drive.values())


@contextlib.contextmanager
def listening(operator: Operator, hands: list[str], device: str = DEVICE) -> Iterator[None]:
  """Lets people take over for the length of the block. Errors: Pi0RagError where there is no terminal or gamepad."""
  over = threading.Event()
  with contextlib.ExitStack() as opened:
    opened.callback(over.set)
    for hand in hands:
      if hand == KEYBOARD:
        fd = opened.enter_context(_terminal())
      else:
        try:
          fd = os.open(device, os.O_RDONLY)
        except OSError as error:
          raise Pi0RagError(f"there is no gamepad at {device} ({error.strerror}): plug one in, or name its device with "
                            "--gamepad_device") from error
        opened.callback(os.close, fd)
      listen = keyboard if hand == KEYBOARD else gamepad
      threading.Thread(target=listen, args=[operator, fd, over], name=hand, daemon=True).start()
    yield


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
  """Yields the terminal, which hands over keys one by one meanwhile and does not show them; Ctrl-C still ends all."""
  if not sys.stdin.isatty():
    raise Pi0RagError("the keyboard is the terminal's, and there is none: run this in a terminal, or leave out "
                      f"--takeover={KEYBOARD}")
  fd = sys.stdin.fileno()
  before = termios.tcgetattr(fd)
  try:
    tty.setcbreak(fd)
    yield fd
  finally:
    termios.tcsetattr(fd, termios.TCSADRAIN, before)
