"""How experts move cubes: a rule from the physical state to the next action, rolled forward as a plan.

The rule has no memory. Which phase applies (approach, grasp, carry, release) follows from where the fingertips,
the cube that moves next and its goal are. Heights are funnels over the horizontal distance to go, so phases blend
into each other and a displaced tool simply finds itself elsewhere in the same funnel.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.experts.base import NO_MISTAKE, Expert, Mistake
from pi0rag_jax.sim.experts.funnel import FAST_M, bounded, descent_speed, sideways_share
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.cubes import HOLD_FORCE_N, Move

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.11  # of the fingertips, where they clear every cube on the table
HOVER_ROOM_M = 0.06  # of the fingertips above the tops or centres of cubes that lie higher
LOWEST_M = 0.018
CARRY_M = 0.09  # of the held cube's underside, where it clears every cube on the table
CARRY_ROOM_M = 0.05  # of the held cube's underside above the tops of cubes that lie higher, and above its place
RETREAT_M = 0.12  # fingertip height after the release, above what the cube rests on
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
_FINGER_M = 0.05  # from the cube's centre to the open fingers
# The palm, so far above the fingertips, reaches so far along the closing axis; its half thickness and a cube's. What
# lies lower than the fingertips by as much is no hindrance to them.
_PALM_M, _PALM_HALF_WIDTH_M, _PALM_ROOM_M = 0.035, 0.1, 0.055
# A tool that trails by more is blocked and must come up again; free motion trails by 13 mm at most.
_BLOCKED_M, _FUNNEL_BLOCKED_M = 0.018, 0.02
_YAW_LIMIT_RAD = Workspace().high[3] - 0.08


@dataclasses.dataclass
class Scene:
  """The imagined task: the robot, the cubes' believed centres and grasp yaws, what is held. Metres, radians."""

  robot: Forecast
  cubes: dict[str, list[float]]
  grasp_yaws: dict[str, float]
  held: str | None
  half_size: float
  placed_radius: float

  def around(self, cube: str) -> bool:
    """Returns whether `cube` is between the fingers."""
    x, y, z = (c - m for c, m in zip(self.cubes[cube], self.robot.measured))
    return math.hypot(x, y) < _REACH_M and abs(z) < _REACH_HEIGHT_M

  def top(self, but: str) -> float:
    """Returns the height of the highest cube `but` one that lies on another, 0 if there is none."""
    heights = [z for name, (_, _, z) in self.cubes.items() if name != but and z > 2 * self.half_size]
    return max(heights) + self.half_size if heights else 0.0


# What moves next in an imagined scene.
MoveRule = Callable[[Scene], Move]


class CubeExpert(Expert):
  """For each move: approach with about the cube's yaw, descend, close, lift, carry, lower, open, retreat."""

  finger_room_m = 0.04  # that the open fingers need to the centre of another cube

  def plan(self, env: "PandaEnv", horizon: int, mistake: Mistake = NO_MISTAKE) -> np.ndarray:
    """Returns float32[horizon, 5], see `Expert.plan`."""
    scene, rule = self._observe(env, mistake), self.move_rule(env, mistake)
    return np.array([_tick(scene, rule(scene)) for _ in range(horizon)], np.float32)

  @abc.abstractmethod
  def move_rule(self, env: "PandaEnv", mistake: Mistake) -> MoveRule:
    """Returns what decides which cube moves next, and where to, given the believed scene."""

  @abc.abstractmethod
  def placed_radius(self, env: "PandaEnv") -> float:
    """Returns how far from its goal a cube may lie, m."""

  def _observe(self, env: "PandaEnv", mistake: Mistake) -> Scene:
    robot, contacts = Forecast.of(env), env.physics.contacts()
    cubes = {name: env.physics.object_pose(name)[0].tolist() for name in env.task.cube_names}
    yaws = {name: self._grasp_yaw(cubes, name, env.physics.object_yaw(name), robot.yaw) for name in cubes}
    held = next((name for name in cubes if contacts.holds(name, HOLD_FORCE_N)), None)
    for name in cubes:
      x, y, z = cubes[name]
      cubes[name] = [x, y, z] if name == held else [x + mistake.x_m, y + mistake.y_m, z]
      yaws[name] += mistake.yaw_rad
    return Scene(robot, cubes, yaws, held, env.task.config.cube_half_size, PLACED_FRACTION * self.placed_radius(env))

  def _grasp_yaw(self, cubes: dict[str, list[float]], cube: str, cube_yaw: float, tool_yaw: float) -> float:
    """Returns the yaw, equal to the cube's mod 90 degrees, with the smallest turn that leaves the hand room."""
    x, y, z = cubes[cube]
    others = [(*centre[:2], centre[2] - z) for name, centre in cubes.items() if name != cube]
    neighbours = [(east, north) for east, north, above in others if above > -_PALM_M]
    towers = [(east - x, north - y) for east, north, above in others if above > _PALM_M]
    quarter = math.pi / 2
    allowed = [yaw for k in range(-4, 5) if abs(yaw := cube_yaw + k * quarter) <= _YAW_LIMIT_RAD]

    def cost(yaw: float):
      # The fingers come down on both sides of the cube along the closing axis.
      east, north = _FINGER_M * math.sin(yaw), -_FINGER_M * math.cos(yaw)
      tips = ((x + east, y + north), (x - east, y - north))
      blocked = any(math.dist(tip, neighbour) < self.finger_room_m for tip in tips for neighbour in neighbours)
      return blocked or _palm_meets(towers, yaw), round(abs(yaw - tool_yaw), 6), yaw

    return min(allowed, key=cost)


def _palm_meets(towers: list[tuple[float, float]], yaw: float) -> bool:
  """Whether a palm of heading `yaw` overlaps one of the things at `towers`, relative to it."""
  s, c = math.sin(yaw), math.cos(yaw)
  reach = _PALM_HALF_WIDTH_M + _PALM_ROOM_M / 2
  return any(abs(s * dx - c * dy) < reach and abs(c * dx + s * dy) < _PALM_ROOM_M for dx, dy in towers)


def _tick(scene: Scene, move: Move) -> tuple[float, ...]:
  """Returns the next action [5] and advances the imagined scene by it."""
  if scene.held == move.cube:
    step, turn, gripper_open = _carry(scene, move)
  elif _placed(scene, move):
    step, turn, gripper_open = _release(scene, move)
  elif _closing(scene, move):
    step, turn, gripper_open = (0.0, 0.0, 0.0), 0.0, False
  else:
    step, turn, gripper_open = _approach(scene, move)
  around = scene.around(move.cube)
  before = scene.robot.measured
  action = scene.robot.move(step, turn, gripper_open, 2 * scene.half_size if around else 0.0)
  if scene.held and gripper_open:
    scene.cubes[scene.held][2] = move.support + scene.half_size
    scene.held = None
  elif scene.held:
    moved = zip(scene.cubes[scene.held], scene.robot.measured, before)
    scene.cubes[scene.held] = [c + now - then for c, now, then in moved]
  elif around and not gripper_open and scene.robot.width < 2 * scene.half_size + 0.001:
    scene.held = move.cube
  return action


def _approach(scene: Scene, move: Move):
  """Returns (step [3], turn, gripper open): over the target, then down around it; closes where it sits."""
  robot, cube = scene.robot, scene.cubes[move.cube]
  dx, dy = cube[0] - robot.commanded[0], cube[1] - robot.commanded[1]
  distance, turn = math.hypot(dx, dy), _needed_turn(scene.grasp_yaws[move.cube] - robot.yaw)
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
  hover = max(HOVER_M, cube[2] + HOVER_ROOM_M, scene.top(but=move.cube) + HOVER_ROOM_M)
  floor = lowest + (hover - lowest) * min(max(up, 0.0), 1.0)
  sideways = sideways_share(height, floor)
  slow = descent_speed(height - HOVER_M)
  dz = min(max(floor - height, -slow), FAST_M)
  near = min(max((_TURN_FROM_M - distance) / (_TURN_FROM_M - _TURN_FULLY_M), 0.0), 1.0)
  return (*bounded(dx, dy, FAST_M * sideways), dz), turn * sideways * near, True


def _needed_turn(error_rad: float) -> float:
  """Returns the turn that brings a yaw error within what a grasp bears: 0 for most cubes."""
  return math.copysign(max(abs(error_rad) - AT_YAW_RAD, 0.0), error_rad)


def _carry(scene: Scene, move: Move):
  """Returns (step [3], turn, gripper open): lift, over to the goal, down; opens where the target sits on it."""
  robot = scene.robot
  # Where the target will be once the tool has caught up with its command.
  x, y, z = (value + lag for value, lag in zip(scene.cubes[move.cube], robot.lag))
  dx, dy = move.goal[0] - x, move.goal[1] - y
  distance, above = math.hypot(dx, dy), z - (move.support + scene.half_size)
  if distance < AT_POINT_M and above < PLACE_GAP_M + AT_HEIGHT_M and robot.trail < SETTLED_M:
    return (0.0, 0.0, 0.0), 0.0, True
  highest = max(CARRY_M, max(scene.top(but=move.cube), move.support) + CARRY_ROOM_M) - move.support
  up = min(max((distance - AT_POINT_M) / _CARRY_FUNNEL_M, 0.0), 1.0)
  floor = PLACE_GAP_M + (highest - PLACE_GAP_M) * up
  slow = descent_speed(above - highest / 2)
  dz = min(max(floor - above, -slow), FAST_M)
  return (*bounded(dx, dy, FAST_M * sideways_share(above, floor)), dz), 0.0, False


def _release(scene: Scene, move: Move):
  """Returns (step [3], turn, gripper open): stay until the fingers are open, then straight up."""
  height = scene.robot.commanded[2]
  rise = scene.robot.width > OPEN_WIDTH_M or not scene.around(move.cube)
  dz = min(max(move.support + RETREAT_M - height, 0.0), FAST_M) if rise else 0.0
  return (0.0, 0.0, dz), 0.0, True


def _placed(scene: Scene, move: Move) -> bool:
  """Whether the target rests on the goal."""
  x, y, z = scene.cubes[move.cube]
  distance = math.hypot(x - move.goal[0], y - move.goal[1])
  return distance < scene.placed_radius and abs(z - (move.support + scene.half_size)) < AT_HEIGHT_M


def _closing(scene: Scene, move: Move) -> bool:
  """Whether the fingers are on their way to the target between them."""
  robot = scene.robot
  return not robot.gripper_open and robot.width > 1.9 * scene.half_size and scene.around(move.cube)
