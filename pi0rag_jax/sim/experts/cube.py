"""How experts move cubes: approach, grasp, carry and release the one that moves next.

Heights are funnels over the horizontal distance to go, so phases blend into each other and a displaced tool simply
finds itself elsewhere in the same funnel.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pi0rag_jax.sim.experts.base import Expert, Mistake
from pi0rag_jax.sim.experts.funnel import AT_POINT_M, CLOSE, FAST_M, OPEN, SETTLED_M, Motion, descend, share
from pi0rag_jax.sim.experts.grasp import YAW_LIMIT_RAD, Aim, Grasp, approach, fingers_meet
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.cubes import Move
from pi0rag_jax.sim.tasks.table import is_held

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.11  # of the fingertips, where they clear every cube on the table
HOVER_ROOM_M = 0.06  # of the fingertips above the tops or centres of cubes that lie higher
LOWEST_M = 0.018
CARRY_M = 0.09  # of the held cube's underside, where it clears every cube on the table
CARRY_ROOM_M = 0.05  # of the held cube's underside above the tops of cubes that lie higher, and above its place
RETREAT_M = 0.12  # fingertip height after the release, above what the cube rests on
PLACE_GAP_M = 0.002  # of the held cube over its resting height when it is let go
AT_HEIGHT_M = 0.004
AT_YAW_RAD = 0.25  # the fingers turn a cube into line as they close, and reach around one that is turned by so much
# A cube this far from the goal's centre stays there; inside the task's own success radius.
PLACED_FRACTION = 0.9
_CARRY_FUNNEL_M = 0.04  # from the goal, where the cube must be at full height
# The tool turns over the last centimetres, where the wrist camera shows how the target lies; turning on the way would
# teach a policy what it cannot see yet.
_TURN_FROM_M, _TURN_FULLY_M = 0.08, 0.04
# The palm, so far above the fingertips, reaches so far along the closing axis; its half thickness and a cube's. What
# lies lower than the fingertips by as much is no hindrance to them.
_PALM_M, _PALM_HALF_WIDTH_M, _PALM_ROOM_M = 0.035, 0.1, 0.055


@dataclasses.dataclass
class Scene:
  """The imagined task: the robot, the cubes' believed centres and grasp yaws, what is held. Metres, radians."""

  robot: Forecast
  grasp: Grasp
  cubes: dict[str, list[float]]
  grasp_yaws: dict[str, float]
  held: str | None
  half_size: float
  placed_radius: float

  def around(self, cube: str) -> bool:
    """Returns whether `cube` is between the fingers."""
    return self.grasp.around(self.robot, self.cubes[cube])

  def top(self, but: str) -> float:
    """Returns the height of the highest cube `but` one that lies on another, 0 if there is none."""
    heights = [z for name, (_, _, z) in self.cubes.items() if name != but and z > 2 * self.half_size]
    return max(heights) + self.half_size if heights else 0.0


# What moves next in an imagined scene.
MoveRule = Callable[[Scene], Move]


class CubeExpert(Expert):
  """For each move: approach with about the cube's yaw, descend, close, lift, carry, lower, open, retreat."""

  finger_room_m = 0.04  # that the open fingers need to the centre of another cube

  def imagine(self, env: "PandaEnv", mistake: Mistake) -> Callable[[], tuple[float, ...]]:
    """Returns what gives the next action, see `Expert.imagine`."""
    scene, rule = self._observe(env, mistake), self.move_rule(env, mistake)
    return lambda: _tick(scene, rule(scene))

  @abc.abstractmethod
  def move_rule(self, env: "PandaEnv", mistake: Mistake) -> MoveRule:
    """Returns what decides which cube moves next, and where to, given the believed scene."""

  @abc.abstractmethod
  def placed_radius(self, env: "PandaEnv") -> float:
    """Returns how far from its goal a cube may lie, m."""

  def _observe(self, env: "PandaEnv", mistake: Mistake) -> Scene:
    robot, half_size = Forecast.of(env), env.task.config.cube_half_size
    cubes = {name: env.physics.object_pose(name)[0].tolist() for name in env.task.cube_names}
    yaws = {name: self._grasp_yaw(cubes, name, env.physics.object_yaw(name), robot.yaw) for name in cubes}
    held = next((name for name in cubes if is_held(env.physics, name)), None)
    for name in cubes:
      x, y, z = cubes[name]
      cubes[name] = [x, y, z] if name == held else [x + mistake.x_m, y + mistake.y_m, z]
      yaws[name] += mistake.yaw_rad
    grasp = Grasp(2 * half_size, HOVER_M)
    return Scene(robot, grasp, cubes, yaws, held, half_size, PLACED_FRACTION * self.placed_radius(env))

  def _grasp_yaw(self, cubes: dict[str, list[float]], cube: str, cube_yaw: float, tool_yaw: float) -> float:
    """Returns the yaw, equal to the cube's mod 90 degrees, with the smallest turn that leaves the hand room."""
    x, y, z = cubes[cube]
    others = [(*centre[:2], centre[2] - z) for name, centre in cubes.items() if name != cube]
    neighbours = [(east, north) for east, north, above in others if above > -_PALM_M]
    towers = [(east - x, north - y) for east, north, above in others if above > _PALM_M]
    quarter = math.pi / 2
    allowed = [yaw for k in range(-4, 5) if abs(yaw := cube_yaw + k * quarter) <= YAW_LIMIT_RAD]

    def cost(yaw: float):
      blocked = fingers_meet((x, y), yaw, neighbours, self.finger_room_m)
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
    motion = _carry(scene, move)
  elif _placed(scene, move):
    motion = _release(scene, move)
  elif scene.grasp.closing(scene.robot, scene.cubes[move.cube]):
    motion = CLOSE
  else:
    motion = _approach(scene, move)
  before = scene.robot.measured
  action, caught = scene.grasp.move(scene.robot, motion, around=scene.around(move.cube))
  if scene.held and motion.gripper_open:
    scene.cubes[scene.held][2] = move.support + scene.half_size
    scene.held = None
  elif scene.held:
    moved = zip(scene.cubes[scene.held], scene.robot.measured, before)
    scene.cubes[scene.held] = [c + now - then for c, now, then in moved]
  elif caught:
    scene.held = move.cube
  return action


def _approach(scene: Scene, move: Move) -> Motion:
  """Returns the motion over the target and down around it."""
  robot, (x, y, z) = scene.robot, scene.cubes[move.cube]
  hover = max(z, scene.top(but=move.cube)) + HOVER_ROOM_M
  turn = _needed_turn(scene.grasp_yaws[move.cube] - robot.yaw)
  motion = approach(robot, scene.grasp, Aim((x, y, max(z, LOWEST_M)), turn, hover=hover))
  distance = math.hypot(x - robot.commanded[0], y - robot.commanded[1])
  near = share((_TURN_FROM_M - distance) / (_TURN_FROM_M - _TURN_FULLY_M))
  return motion._replace(turn=motion.turn * near)


def _needed_turn(error_rad: float) -> float:
  """Returns the turn that brings a yaw error within what a grasp bears: 0 for most cubes."""
  return math.copysign(max(abs(error_rad) - AT_YAW_RAD, 0.0), error_rad)


def _carry(scene: Scene, move: Move) -> Motion:
  """Returns the motion that lifts the target, brings it over the goal and lowers it; opens where it sits on it."""
  robot = scene.robot
  x, y, z = robot.settled(scene.cubes[move.cube])
  dx, dy = move.goal[0] - x, move.goal[1] - y
  distance, above = math.hypot(dx, dy), z - (move.support + scene.half_size)
  if distance < AT_POINT_M and above < PLACE_GAP_M + AT_HEIGHT_M and robot.trail < SETTLED_M:
    return OPEN
  highest = max(CARRY_M, max(scene.top(but=move.cube), move.support) + CARRY_ROOM_M) - move.support
  floor = PLACE_GAP_M + (highest - PLACE_GAP_M) * share((distance - AT_POINT_M) / _CARRY_FUNNEL_M)
  step, _ = descend(dx, dy, height=above, floor=floor, clearance=above - highest / 2)
  return Motion(step, 0.0, False)


def _release(scene: Scene, move: Move) -> Motion:
  """Returns the motion that stays until the fingers are open, then goes straight up."""
  rise = scene.robot.width > scene.grasp.open_width or not scene.around(move.cube)
  dz = min(max(move.support + RETREAT_M - scene.robot.commanded[2], 0.0), FAST_M) if rise else 0.0
  return Motion((0.0, 0.0, dz), 0.0, True)


def _placed(scene: Scene, move: Move) -> bool:
  """Whether the target rests on the goal."""
  x, y, z = scene.cubes[move.cube]
  distance = math.hypot(x - move.goal[0], y - move.goal[1])
  return distance < scene.placed_radius and abs(z - (move.support + scene.half_size)) < AT_HEIGHT_M
