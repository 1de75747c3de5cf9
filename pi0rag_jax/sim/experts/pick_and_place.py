"""The expert of pick_and_place: a rule from the physical state to the next action, rolled forward as a plan.

The rule has no memory. Which phase applies (approach, grasp, carry, release) follows from where the fingertips,
the target and the goal are. Heights are funnels over the horizontal distance to go, so phases blend into each
other and a displaced tool simply finds itself elsewhere in the same funnel.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.experts.base import NO_MISTAKE, Expert, Mistake
from pi0rag_jax.sim.experts.funnel import FAST_M, bounded, descent_speed, sideways_share
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.pick_and_place import HOLD_FORCE_N, TARGET

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.11  # of the fingertips, where they clear every cube
LOWEST_M = 0.018
CARRY_M = 0.09  # of the held cube over its resting height
RETREAT_M = 0.12  # fingertip height after the release
PLACE_GAP_M = 0.002  # of the held cube over its resting height when it is let go
AT_POINT_M, AT_HEIGHT_M = 0.006, 0.004
AT_YAW_RAD = 0.25  # the fingers turn a cube into line as they close, and reach around one that is turned by so much
SETTLED_RAD = 0.03
SETTLED_M = 0.0035  # the tool trails its command; act once it has caught up
OPEN_WIDTH_M = 0.068  # wide enough to go around a cube or to leave one
# A cube this far from the goal's centre stays there; inside the task's own success radius.
PLACED_FRACTION = 0.9
# Along a funnel: horizontal distance at which the tool must be at full height, m (yaw error in rad).
_FUNNEL_M, _FUNNEL_RAD, _FUNNEL_WIDTH_M = 0.03, 0.35, 0.03
_CARRY_FUNNEL_M = 0.04
# The tool turns over the last centimetres, where the wrist camera shows how the target lies; turning on the way would
# teach a policy what it cannot see yet.
_TURN_FROM_M, _TURN_FULLY_M = 0.08, 0.04
# The grip reaches around the target within these distances between the fingertips and its centre.
_REACH_M, _REACH_HEIGHT_M = 0.035, 0.03
# Open fingers are so far from the cube's centre, and need so much room to the centre of another cube.
_FINGER_M, _FINGER_ROOM_M = 0.05, 0.04
# A tool that trails by more is blocked and must come up again; free motion trails by 13 mm at most.
_BLOCKED_M, _FUNNEL_BLOCKED_M = 0.018, 0.02
_YAW_LIMIT_RAD = Workspace().high[3] - 0.08


@dataclasses.dataclass
class _Scene:
  """The imagined task: the robot, the target's centre, its grasp yaw, and whether it is held. Metres, radians."""

  robot: Forecast
  cube: list[float]
  grasp_yaw: float
  held: bool
  goal: tuple[float, float]
  half_size: float
  placed_radius: float


class PickAndPlaceExpert(Expert):
  """Approach with about the target's yaw, descend, close, lift, carry, lower, open, retreat."""

  def plan(self, env: "PandaEnv", horizon: int, mistake: Mistake = NO_MISTAKE) -> np.ndarray:
    """Returns float32[horizon, 5], see `Expert.plan`."""
    scene = _observe(env, mistake)
    return np.array([_tick(scene) for _ in range(horizon)], np.float32)


def _observe(env: "PandaEnv", mistake: Mistake) -> _Scene:
  robot, config = Forecast.of(env), env.task.config
  x, y, z = env.physics.object_pose(TARGET)[0].tolist()
  held = env.physics.contacts().holds(TARGET, HOLD_FORCE_N)
  if not held:
    x, y = x + mistake.x_m, y + mistake.y_m
  return _Scene(
    robot=robot,
    cube=[x, y, z],
    grasp_yaw=_grasp_yaw(env, robot.yaw) + mistake.yaw_rad,
    held=held,
    goal=(env.layout.goal[0] + mistake.x_m, env.layout.goal[1] + mistake.y_m),
    half_size=config.cube_half_size,
    placed_radius=PLACED_FRACTION * config.success_radius,
  )


def _grasp_yaw(env: "PandaEnv", tool_yaw: float) -> float:
  """Returns the yaw, equal to the target's mod 90 degrees, with the smallest turn that leaves the fingers room."""
  x, y = env.physics.object_pose(TARGET)[0][:2].tolist()
  neighbours = [env.physics.object_pose(name)[0][:2].tolist() for name in env.task.cube_names if name != TARGET]
  cube_yaw, quarter = env.physics.object_yaw(TARGET), math.pi / 2
  allowed = [yaw for k in range(-4, 5) if abs(yaw := cube_yaw + k * quarter) <= _YAW_LIMIT_RAD]

  def cost(yaw: float):
    # The fingers come down on both sides of the cube along the closing axis.
    east, north = _FINGER_M * math.sin(yaw), -_FINGER_M * math.cos(yaw)
    tips = ((x + east, y + north), (x - east, y - north))
    blocked = any(math.dist(tip, neighbour) < _FINGER_ROOM_M for tip in tips for neighbour in neighbours)
    return blocked, round(abs(yaw - tool_yaw), 6), yaw

  return min(allowed, key=cost)


def _tick(scene: _Scene) -> tuple[float, ...]:
  """Returns the next action [5] and advances the imagined scene by it."""
  if scene.held:
    step, turn, gripper_open = _carry(scene)
  elif _placed(scene):
    step, turn, gripper_open = _release(scene)
  elif _closing(scene):
    step, turn, gripper_open = (0.0, 0.0, 0.0), 0.0, False
  else:
    step, turn, gripper_open = _approach(scene)
  around = _around(scene)
  before = scene.robot.measured
  action = scene.robot.move(step, turn, gripper_open, 2 * scene.half_size if around else 0.0)
  if scene.held and gripper_open:
    scene.held = False
    scene.cube[2] = scene.half_size
  elif scene.held:
    scene.cube = [c + now - then for c, now, then in zip(scene.cube, scene.robot.measured, before)]
  else:
    scene.held = around and not gripper_open and scene.robot.width < 2 * scene.half_size + 0.001
  return action


def _approach(scene: _Scene):
  """Returns (step [3], turn, gripper open): over the target, then down around it; closes where it sits."""
  robot, cube = scene.robot, scene.cube
  dx, dy = cube[0] - robot.commanded[0], cube[1] - robot.commanded[1]
  distance, turn = math.hypot(dx, dy), _needed_turn(scene.grasp_yaw - robot.yaw)
  lowest = max(cube[2], LOWEST_M)
  height = robot.commanded[2]
  in_place = distance < AT_POINT_M and abs(turn) < SETTLED_RAD and abs(height - lowest) < AT_HEIGHT_M
  if in_place and robot.width > OPEN_WIDTH_M and robot.trail < SETTLED_M:
    return (0.0, 0.0, 0.0), 0.0, False
  up = max(
    (distance - AT_POINT_M) / _FUNNEL_M,
    (abs(turn) - SETTLED_RAD) / _FUNNEL_RAD,
    (OPEN_WIDTH_M - robot.width) / _FUNNEL_WIDTH_M,
    (robot.trail - _BLOCKED_M) / _FUNNEL_BLOCKED_M,
  )
  floor = lowest + (max(HOVER_M, cube[2] + 0.06) - lowest) * min(max(up, 0.0), 1.0)
  sideways = sideways_share(height, floor)
  slow = descent_speed(height - HOVER_M)
  dz = min(max(floor - height, -slow), FAST_M)
  near = min(max((_TURN_FROM_M - distance) / (_TURN_FROM_M - _TURN_FULLY_M), 0.0), 1.0)
  return (*bounded(dx, dy, FAST_M * sideways), dz), turn * sideways * near, True


def _needed_turn(error_rad: float) -> float:
  """Returns the turn that brings a yaw error within what a grasp bears: 0 for most cubes."""
  return math.copysign(max(abs(error_rad) - AT_YAW_RAD, 0.0), error_rad)


def _carry(scene: _Scene):
  """Returns (step [3], turn, gripper open): lift, over to the goal, down; opens where the target sits on it."""
  robot, cube = scene.robot, scene.cube
  # Where the target will be once the tool has caught up with its command.
  x, y, z = (value + lag for value, lag in zip(cube, robot.lag))
  dx, dy = scene.goal[0] - x, scene.goal[1] - y
  distance, above = math.hypot(dx, dy), z - scene.half_size
  if distance < AT_POINT_M and above < PLACE_GAP_M + AT_HEIGHT_M and robot.trail < SETTLED_M:
    return (0.0, 0.0, 0.0), 0.0, True
  up = min(max((distance - AT_POINT_M) / _CARRY_FUNNEL_M, 0.0), 1.0)
  floor = PLACE_GAP_M + (CARRY_M - PLACE_GAP_M) * up
  slow = descent_speed(above - CARRY_M / 2)
  dz = min(max(floor - above, -slow), FAST_M)
  return (*bounded(dx, dy, FAST_M * sideways_share(above, floor)), dz), 0.0, False


def _release(scene: _Scene):
  """Returns (step [3], turn, gripper open): stay until the fingers are open, then straight up."""
  height = scene.robot.commanded[2]
  rise = scene.robot.width > OPEN_WIDTH_M or not _around(scene)
  dz = min(max(RETREAT_M - height, 0.0), FAST_M) if rise else 0.0
  return (0.0, 0.0, dz), 0.0, True


def _placed(scene: _Scene) -> bool:
  """Whether the target rests on the goal."""
  distance = math.hypot(scene.cube[0] - scene.goal[0], scene.cube[1] - scene.goal[1])
  return distance < scene.placed_radius and abs(scene.cube[2] - scene.half_size) < AT_HEIGHT_M


def _closing(scene: _Scene) -> bool:
  """Whether the fingers are on their way to the target between them."""
  return not scene.robot.gripper_open and scene.robot.width > 1.9 * scene.half_size and _around(scene)


def _around(scene: _Scene) -> bool:
  """Whether the target is between the fingers."""
  x, y, z = (c - m for c, m in zip(scene.cube, scene.robot.measured))
  return math.hypot(x, y) < _REACH_M and abs(z) < _REACH_HEIGHT_M
