"""The 1 kHz cycle of a Franka, in a process of its own that nothing else holds up; it needs numpy and pylibfranka.

The other process writes goals into shared numbers and reads the state from them. Between goals the arm moves by a
motion of its own whose speed, acceleration and jerk are bounded, since the robot stops where they are not.
"""

import importlib
import time
from typing import Any

import numpy as np

JOINTS = 7
# What both processes share, float64 each: the goal with the fingers' width, what is wanted, the state with the width,
# when it came (time.monotonic s), and how often the cycle was late so far.
GOAL, WANTED, STATE, CAME, LATE = slice(0, 8), 8, slice(9, 17), 17, 18
SHARED = 19
HOLD, MOVE, QUIT = 0.0, 1.0, 2.0
SPEED, ACCELERATION, JERK = 1.0, 6.0, 2000.0  # rad/s, /s^2, /s^3: less than the robot's own bounds
STIFFNESS = 12.0  # rad/s: the motion has come most of the way to a goal after two tenths of a second
EASE = 30.0  # 1/s
BRAKE, MARGIN = 1.0, 0.02  # rad/s for a rad that is left to where a joint ends, rad
CYCLE_S, MOST_S = 0.001, 0.02
FINGERS_M, FINGERS_M_S = 0.004, 0.1  # by which a goal has to differ before the fingers move, and how fast
FINGERS_N = 40.0  # of force on what is between them
GRIPPER_S = 0.05


class Motion:
  """A motion towards goals that change at any time, the slower the nearer to where a joint ends."""

  def __init__(self, at_A: np.ndarray, low_A: np.ndarray, high_A: np.ndarray):
    self._low_A, self._high_A = np.asarray(low_A, float) + MARGIN, np.asarray(high_A, float) - MARGIN
    self.at_A, self.speed_A, self.push_A = np.array(at_A, float), np.zeros(len(at_A)), np.zeros(len(at_A))

  def step(self, goal_A: np.ndarray, seconds: float) -> np.ndarray:
    """Returns where to be after some seconds."""
    wanted_A = STIFFNESS**2 * (goal_A - self.at_A) - 2 * STIFFNESS * self.speed_A
    back_A = np.maximum(-SPEED, np.minimum(0.0, BRAKE * (self._low_A - self.at_A)))
    forth_A = np.minimum(SPEED, np.maximum(0.0, BRAKE * (self._high_A - self.at_A)))
    # The nearer to full speed, the less it speeds up.
    wanted_A = np.clip(wanted_A, EASE * (back_A - self.speed_A), EASE * (forth_A - self.speed_A))
    wanted_A = np.clip(wanted_A, -ACCELERATION, ACCELERATION)
    self.push_A = self.push_A + np.clip(wanted_A - self.push_A, -JERK * seconds, JERK * seconds)
    speed_A = self.speed_A + self.push_A * seconds
    self.at_A = self.at_A + (self.speed_A + speed_A) / 2 * seconds
    self.speed_A = speed_A
    return self.at_A

  def rest_A(self) -> np.ndarray:
    """Returns where it comes to rest soonest."""
    return self.at_A + self.speed_A / (2 * STIFFNESS)


def run(address: str, shared: Any, told: Any, low: list[float], high: list[float]) -> None:
  """Runs the cycle until the other process is gone or wants it to end.

  Args:
    shared: SHARED numbers of multiprocessing's.
    told: end of a pipe, for what is wrong; an empty text says that nothing is any more.
    low, high: rad, where the joints end.
  """
  pylibfranka = importlib.import_module("pylibfranka")
  numbers, stopped = np.frombuffer(shared), False
  try:
    robot = pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore)
    _see(numbers, robot.read_once())
    told.send("")
    while numbers[WANTED] != QUIT:
      if told.poll():
        told.recv()  # the other process wants to go on after a reflex
        robot.automatic_error_recovery()
        stopped = False
        told.send("")
      if numbers[WANTED] == MOVE and not stopped:
        try:
          _control(pylibfranka, robot, numbers, (np.array(low), np.array(high)))
        except (pylibfranka.ControlException, pylibfranka.CommandException) as error:
          stopped = True
          told.send(_text(error))
      _see(numbers, robot.read_once())
      time.sleep(0.01)
  except (*_errors(pylibfranka), EOFError, OSError) as error:
    told.send(_text(error))


def _control(pylibfranka: Any, robot: Any, numbers: np.ndarray, ends: tuple[np.ndarray, np.ndarray]) -> None:
  """Moves until the cycle is to end; a goal that is held is where the motion comes to rest."""
  control = robot.start_joint_position_control(pylibfranka.ControllerMode.JointImpedance)
  state, _ = control.readOnce()
  motion, seconds, held_A = Motion(np.array(state.q_d), *ends), CYCLE_S, None
  while True:
    ending = numbers[WANTED] == QUIT
    if numbers[WANTED] == MOVE:
      goal_A, held_A = numbers[GOAL][:JOINTS].copy(), None
    else:
      held_A = motion.rest_A() if held_A is None else held_A
      goal_A = held_A
    still = np.abs(motion.speed_A).max() < 1e-3
    command = pylibfranka.JointPositions(list(motion.step(goal_A, seconds)))
    command.motion_finished = bool(ending and still)
    control.writeOnce(command)
    if command.motion_finished:
      return
    state, passed = control.readOnce()
    # Where the robot had to do without a command it went on as before, and time did too.
    seconds = max(CYCLE_S, min(passed.to_sec(), MOST_S))
    numbers[LATE] += seconds > 1.5 * CYCLE_S
    _see(numbers, state)


def _errors(pylibfranka: Any) -> tuple[type[Exception], ...]:
  """Returns libfranka's exceptions, which the binding does not derive from one another."""
  return tuple(getattr(pylibfranka, name) for name in dir(pylibfranka) if name.endswith("Exception"))


def _text(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


def _see(numbers: np.ndarray, state: Any) -> None:
  numbers[STATE][:JOINTS] = state.q
  numbers[CAME] = time.monotonic()


def grip(address: str, shared: Any, told: Any) -> None:
  """Moves the fingers, which takes its time, until the other process is gone or wants it to end."""
  pylibfranka = importlib.import_module("pylibfranka")
  numbers = np.frombuffer(shared)
  try:
    gripper = pylibfranka.Gripper(address)
    state = gripper.read_once()
    goal_m = numbers[STATE][JOINTS] = numbers[GOAL][JOINTS] = state.width
    told.send("")
    while numbers[WANTED] != QUIT:
      if numbers[WANTED] == MOVE and abs(numbers[GOAL][JOINTS] - goal_m) > FINGERS_M:
        goal_m = float(np.clip(numbers[GOAL][JOINTS], 0.0, state.max_width))
        close_or_open(gripper, goal_m)
      state = gripper.read_once()
      numbers[STATE][JOINTS] = state.width
      time.sleep(GRIPPER_S)
  except (*_errors(pylibfranka), EOFError, OSError) as error:
    told.send(f"the hand: {_text(error)}")


def close_or_open(gripper: Any, goal_m: float) -> None:
  """Moves the fingers, and holds what stops them on their way: a move alone holds nothing."""
  before = gripper.read_once()
  if before.is_grasped and goal_m < before.width:
    return
  gripper.move(goal_m, FINGERS_M_S)
  width_m = gripper.read_once().width
  if width_m > goal_m + FINGERS_M:
    gripper.grasp(width_m, FINGERS_M_S, FINGERS_N)
