"""The expert of insertion: a rule from the physical state to the next action, rolled forward as a plan.

It has no memory, and heights are funnels over the distance to go, as those of the cubes' expert. What it lowers into
the socket is the peg's tip, wherever that hangs under the fingers: the grasp's error is subtracted by looking.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.experts.base import NO_MISTAKE, Expert, Mistake
from pi0rag_jax.sim.experts.funnel import FAST_M, bounded, descent_speed, sideways_share
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.cubes import HOLD_FORCE_N
from pi0rag_jax.sim.tasks.insertion import PEG, InsertionConfig, peg_axis

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.12  # of the fingertips, where they clear every peg
GRIP_M = 0.072  # along the peg from its tip
CARRY_M = 0.1  # of the held peg's tip, where it clears every peg
MOUTH_GAP_M = 0.006  # of the tip over the socket until it is above the hole
LOWEST_TIP_M = 0.002  # commanded
RELEASE_M = 0.008  # of the tip over the table, when the fingers let go
RETREAT_M = 0.12  # fingertip height after the release
AT_POINT_M, AT_HEIGHT_M = 0.006, 0.006
AT_HOLE_M = 0.004  # of the tip from the hole's middle when it goes in; the chamfer takes twice as much
SETTLED_RAD = 0.03
SETTLED_M = 0.0035  # the tool trails its command; act once it has caught up
OPEN_WIDTH_M = 0.068  # wide enough to go around a peg or to leave one
# Along a funnel: horizontal distance at which the tool must be at full height, m (angles in rad).
_FUNNEL_M, _FUNNEL_RAD, _FUNNEL_WIDTH_M = 0.03, 0.35, 0.03
_CARRY_FUNNEL_M = 0.04
# A peg that leans by more rights itself, once the fingers are out of its way.
_UPRIGHT_RAD, _FUNNEL_LEAN_RAD = 0.55, 0.1
# Closing fingers of which one presses so much more than the other push a peg that cannot give way.
_JAMMED_N = 15.0
# A peg that lies in the fingers by more is let go of.
_LYING_RAD = 0.65
# The fingers rise from the peg as they open: their distance from its sides, both together, at which they begin to.
_FREE_M = 0.004
# Of the fingers over the socket's rim while they open; in the mouth they have no room to.
_RIM_GAP_M, _FUNNEL_RIM_M = 0.004, 0.01
# The grip reaches around the peg within these distances between the fingertips and the place where to grasp it.
_REACH_M, _REACH_HEIGHT_M = 0.04, 0.03
# Open fingers are so far from the peg's axis, and need so much room to the middle of another peg.
_FINGER_M, _FINGER_ROOM_M = 0.05, 0.035
_TURNS_RAD = (0.0, math.pi / 4, -math.pi / 4, math.pi / 2, -math.pi / 2)
_YAW_LIMIT_RAD = Workspace().high[3] - 0.08
# A tool that trails by more is blocked and must come up again; free motion trails by 13 mm at most.
_BLOCKED_M, _FUNNEL_BLOCKED_M = 0.018, 0.02


@dataclasses.dataclass
class _Scene:
  """The imagined task: robot, peg (tip, place to grasp, lean), whether it is held, and the hole. Metres, radians."""

  robot: Forecast
  tip: list[float]
  grip: list[float]
  lean: float
  grasp_yaw: float
  held: bool
  jammed: bool
  goal: tuple[float, float]
  config: InsertionConfig

  @property
  def around(self) -> bool:
    """Whether the peg is between the fingers."""
    x, y, z = (g - m for g, m in zip(self.grip, self.robot.measured))
    return math.hypot(x, y) < _REACH_M and abs(z) < _REACH_HEIGHT_M

  @property
  def over_hole(self) -> bool:
    """Whether the tip is above the hole or in it."""
    return math.dist(self.tip[:2], self.goal) < self.config.peg_radius

  @property
  def lowest(self) -> float:
    """The fingertip height at which the fingers clear the socket's rim."""
    return self.config.hole_depth + panda.FINGERTIP_REACH_M + _RIM_GAP_M

  @property
  def inserted(self) -> bool:
    """Whether the tip is at the bottom of the hole."""
    deep = (1.0 - self.config.success_depth) * self.config.hole_depth
    return self.over_hole and self.tip[2] < deep

  def shift(self, step) -> None:
    """Moves the peg by `step` [3]."""
    self.tip = [value + by for value, by in zip(self.tip, step)]
    self.grip = [value + by for value, by in zip(self.grip, step)]


class InsertionExpert(Expert):
  """Approach, descend around the peg's upper end, close, lift, carry, lower into the socket, open, retreat."""

  def plan(self, env: "PandaEnv", horizon: int, mistake: Mistake = NO_MISTAKE) -> np.ndarray:
    """Returns float32[horizon, 5], see `Expert.plan`. A peg is round: no mistake about its yaw matters."""
    scene = _observe(env, mistake)
    return np.array([_tick(scene) for _ in range(horizon)], np.float32)


def _observe(env: "PandaEnv", mistake: Mistake) -> _Scene:
  robot, (tip, axis) = Forecast.of(env), peg_axis(env.physics)
  contacts = env.physics.contacts()
  held = contacts.holds(PEG, HOLD_FORCE_N)
  grip = [start + GRIP_M * along for start, along in zip(tip, axis)]
  scene = _Scene(
    robot=robot,
    tip=list(tip),
    grip=grip,
    lean=math.acos(min(max(axis[2], -1.0), 1.0)),
    grasp_yaw=_grasp_yaw(env, grip, robot.yaw),
    held=held,
    jammed=not held and abs(contacts.pad_left_N - contacts.pad_right_N) > _JAMMED_N,
    goal=(env.layout.socket[0] + mistake.x_m, env.layout.socket[1] + mistake.y_m),
    config=env.task.config,
  )
  if not held:
    scene.shift((mistake.x_m, mistake.y_m, 0.0))
  return scene


def _grasp_yaw(env: "PandaEnv", grip, tool_yaw: float) -> float:
  """Returns the yaw nearest to the tool's that leaves the fingers room beside the other pegs."""
  others = [env.physics.object_pose(name)[0][:2].tolist() for name in env.task.peg_names if name != PEG]

  def cost(yaw: float):
    east, north = _FINGER_M * math.sin(yaw), -_FINGER_M * math.cos(yaw)
    tips = ((grip[0] + east, grip[1] + north), (grip[0] - east, grip[1] - north))
    return any(math.dist(tip, other) < _FINGER_ROOM_M for tip in tips for other in others), abs(yaw - tool_yaw)

  return min((yaw for turn in _TURNS_RAD if abs(yaw := tool_yaw + turn) <= _YAW_LIMIT_RAD), key=cost, default=tool_yaw)


def _tick(scene: _Scene) -> tuple[float, ...]:
  """Returns the next action [5] and advances the imagined scene by it."""
  robot = scene.robot
  if scene.inserted and (not scene.held or scene.tip[2] < RELEASE_M):
    step, turn, gripper_open = _release(scene)
  elif scene.held and scene.lean > _LYING_RAD:
    step, turn, gripper_open = (0.0, 0.0, 0.0), 0.0, True
  elif scene.held:
    step, turn, gripper_open = _carry(scene)
  elif _closing(scene):
    step, turn, gripper_open = (0.0, 0.0, 0.0), 0.0, False  # the fingers are on their way to the peg between them
  else:
    step, turn, gripper_open = _approach(scene)
  around, before, thick = scene.around, robot.measured, 2 * scene.config.peg_radius
  action = robot.move(step, turn, gripper_open, thick if around else 0.0)
  if scene.held and gripper_open:
    scene.held = False
    scene.shift((0.0, 0.0, -scene.tip[2]))
  elif scene.held:
    scene.shift([now - then for now, then in zip(robot.measured, before)])
  else:
    scene.held = around and not gripper_open and robot.width < thick + 0.001
  return action


def _closing(scene: _Scene) -> bool:
  """Whether the fingers are on their way to the peg between them."""
  on_the_way = not scene.robot.gripper_open and scene.robot.width > 1.9 * scene.config.peg_radius
  return on_the_way and scene.around and not scene.jammed and scene.lean < _UPRIGHT_RAD


def _approach(scene: _Scene):
  """Returns (step [3], turn, gripper open): over the peg, then down around it; closes where it stands."""
  robot, (x, y, lowest) = scene.robot, scene.grip
  dx, dy = x - robot.commanded[0], y - robot.commanded[1]
  distance, turn = math.hypot(dx, dy), scene.grasp_yaw - robot.yaw
  height = robot.commanded[2]
  in_place = distance < AT_POINT_M and abs(turn) < SETTLED_RAD and abs(height - lowest) < AT_HEIGHT_M
  if in_place and robot.width > OPEN_WIDTH_M and robot.trail < SETTLED_M and scene.lean < _UPRIGHT_RAD:
    return (0.0, 0.0, 0.0), 0.0, False
  up = max(
    (distance - AT_POINT_M) / _FUNNEL_M,
    (abs(turn) - SETTLED_RAD) / _FUNNEL_RAD,
    (OPEN_WIDTH_M - robot.width) / _FUNNEL_WIDTH_M,
    (robot.trail - _BLOCKED_M) / _FUNNEL_BLOCKED_M,
    (scene.lean - _UPRIGHT_RAD) / _FUNNEL_LEAN_RAD,
  )
  floor = lowest + (HOVER_M - lowest) * min(max(up, 0.0), 1.0)
  sideways = sideways_share(height, floor)
  dz = min(max(floor - height, -descent_speed(height - HOVER_M)), FAST_M)
  return (*bounded(dx, dy, FAST_M * sideways), dz), turn * sideways, True


def _carry(scene: _Scene):
  """Returns (step [3], turn, gripper open): lift, over to the socket, down into it."""
  robot, mouth = scene.robot, scene.config.hole_depth
  # Where the tip will be once the tool has caught up with its command.
  x, y, z = (value + lag for value, lag in zip(scene.tip, robot.lag))
  dx, dy = scene.goal[0] - x, scene.goal[1] - y
  distance = math.hypot(dx, dy)
  inside = scene.over_hole and scene.tip[2] < mouth
  if inside and robot.measured[2] < scene.lowest:
    return (0.0, 0.0, 0.0), 0.0, True  # the fingers are at the rim: a peg held so low falls the rest
  floor = LOWEST_TIP_M
  if not inside and distance > AT_HOLE_M:
    up = max((distance - AT_HOLE_M) / _CARRY_FUNNEL_M, (robot.trail - _BLOCKED_M) / _FUNNEL_BLOCKED_M)
    gap = mouth + MOUTH_GAP_M
    floor = gap + (CARRY_M - gap) * min(max(up, 0.0), 1.0)
  dz = min(max(floor - z, -descent_speed(z - CARRY_M / 2)), FAST_M)
  return (*bounded(dx, dy, FAST_M * sideways_share(z, floor)), dz), 0.0, False


def _release(scene: _Scene):
  """Returns (step [3], turn, gripper open): open, and straight up as the fingers come free."""
  robot, thick = scene.robot, 2 * scene.config.peg_radius
  free = (robot.width - thick - _FREE_M) / (OPEN_WIDTH_M - thick - _FREE_M) if scene.around else 1.0
  free = max(free, (scene.lowest - robot.commanded[2]) / _FUNNEL_RIM_M)
  dz = min(max(RETREAT_M - robot.commanded[2], 0.0), FAST_M) * min(max(free, 0.0), 1.0)
  return (0.0, 0.0, dz), 0.0, True
