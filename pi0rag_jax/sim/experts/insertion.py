"""The expert of insertion: approach the peg's upper end, grasp, carry, lower into the socket, release.

What it lowers into the socket is the peg's tip, wherever that hangs under the fingers: the grasp's error is subtracted
by looking.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.experts.base import Expert, Mistake
from pi0rag_jax.sim.experts.funnel import CLOSE, FAST_M, OPEN, Motion, blocked_share, descend, share
from pi0rag_jax.sim.experts.grasp import YAW_LIMIT_RAD, Aim, Grasp, approach, fingers_meet
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.insertion import PEG, InsertionConfig
from pi0rag_jax.sim.tasks.table import is_held

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.12  # of the fingertips, where they clear every peg
GRIP_M = 0.072  # along the peg from its tip
CARRY_M = 0.1  # of the held peg's tip, where it clears every peg
MOUTH_GAP_M = 0.006  # of the tip over the socket until it is above the hole
LOWEST_TIP_M = 0.002  # commanded
RELEASE_M = 0.008  # of the tip over the table, when the fingers let go
RETREAT_M = 0.12  # fingertip height after the release
AT_HOLE_M = 0.004  # of the tip from the hole's middle when it goes in; the chamfer takes twice as much
UPRIGHT_RAD = 0.55  # a peg that leans by more is left to right itself
_CARRY_FUNNEL_M = 0.04  # from the hole, where the tip must be at full height
# Closing fingers of which one presses so much more than the other push a peg that cannot give way.
_JAMMED_N = 15.0
# A peg that lies in the fingers by more is let go of.
_LYING_RAD = 0.65
# The fingers rise from the peg as they open: their distance from its sides, both together, at which they begin to.
_FREE_M = 0.004
# Of the fingers over the socket's rim while they open; in the mouth they have no room to.
_RIM_GAP_M, _FUNNEL_RIM_M = 0.004, 0.01
_FINGER_ROOM_M = 0.035  # that the open fingers need to the middle of another peg
_TURNS_RAD = (0.0, math.pi / 4, -math.pi / 4, math.pi / 2, -math.pi / 2)


@dataclasses.dataclass
class _Scene:
  """The imagined task: robot, peg (tip, place to grasp, lean), whether it is held, and the hole. Metres, radians."""

  robot: Forecast
  grasp: Grasp
  tip: list[float]
  place: list[float]
  lean: float
  grasp_yaw: float
  held: bool
  jammed: bool
  goal: tuple[float, float]
  config: InsertionConfig

  @property
  def around(self) -> bool:
    """Whether the peg is between the fingers."""
    return self.grasp.around(self.robot, self.place)

  @property
  def stands(self) -> bool:
    """Whether the peg is upright enough to be grasped."""
    return self.lean < self.grasp.upright

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
    self.place = [value + by for value, by in zip(self.place, step)]


class InsertionExpert(Expert):
  """Approach, descend around the peg's upper end, close, lift, carry, lower into the socket, open, retreat."""

  def imagine(self, env: "PandaEnv", mistake: Mistake) -> Callable[[], tuple[float, ...]]:
    """Returns what gives the next action, see `Expert.imagine`. A peg is round: no mistake about its yaw matters."""
    return functools.partial(_tick, _observe(env, mistake))


def _observe(env: "PandaEnv", mistake: Mistake) -> _Scene:
  robot, contacts, held = Forecast.of(env), env.physics.contacts(), is_held(env.physics, PEG)
  tip, axis = env.physics.object_pose(PEG)[0].tolist(), env.physics.object_axis(PEG).tolist()
  place = [start + GRIP_M * along for start, along in zip(tip, axis)]
  scene = _Scene(
    robot=robot,
    grasp=Grasp(2 * env.task.config.peg_radius, HOVER_M, at_height=0.006, upright=UPRIGHT_RAD, reach=0.04),
    tip=tip,
    place=place,
    lean=math.acos(min(max(axis[2], -1.0), 1.0)),
    grasp_yaw=_grasp_yaw(env, place, robot.yaw),
    held=held,
    jammed=not held and abs(contacts.pad_left_N - contacts.pad_right_N) > _JAMMED_N,
    goal=(env.layout.socket[0] + mistake.x_m, env.layout.socket[1] + mistake.y_m),
    config=env.task.config,
  )
  if not held:
    scene.shift((mistake.x_m, mistake.y_m, 0.0))
  return scene


def _grasp_yaw(env: "PandaEnv", place: list[float], tool_yaw: float) -> float:
  """Returns the yaw nearest to the tool's that leaves the fingers room beside the other pegs."""
  others = [env.physics.object_pose(name)[0][:2].tolist() for name in env.task.peg_names if name != PEG]

  def cost(yaw: float):
    return fingers_meet(place, yaw, others, _FINGER_ROOM_M), abs(yaw - tool_yaw)

  return min((yaw for turn in _TURNS_RAD if abs(yaw := tool_yaw + turn) <= YAW_LIMIT_RAD), key=cost, default=tool_yaw)


def _tick(scene: _Scene) -> tuple[float, ...]:
  """Returns the next action [5] and advances the imagined scene by it."""
  robot = scene.robot
  if scene.inserted and (not scene.held or scene.tip[2] < RELEASE_M):
    motion = _release(scene)
  elif scene.held and scene.lean > _LYING_RAD:
    motion = OPEN
  elif scene.held:
    motion = _carry(scene)
  elif _closing(scene):
    motion = CLOSE
  else:
    motion = _approach(scene)
  before = robot.measured
  action, caught = scene.grasp.move(robot, motion, around=scene.around)
  if scene.held and motion.gripper_open:
    scene.held = False
    scene.shift((0.0, 0.0, -scene.tip[2]))
  elif scene.held:
    scene.shift([now - then for now, then in zip(robot.measured, before)])
  else:
    scene.held = caught
  return action


def _closing(scene: _Scene) -> bool:
  """Whether the fingers are on their way to the peg between them, and may go on."""
  return scene.stands and not scene.jammed and scene.grasp.closing(scene.robot, scene.place)


def _approach(scene: _Scene) -> Motion:
  """Returns the motion over the peg and down around it."""
  turn = scene.grasp_yaw - scene.robot.yaw
  return approach(scene.robot, scene.grasp, Aim(scene.place, turn, scene.lean, may_close=scene.stands))


def _carry(scene: _Scene) -> Motion:
  """Returns the motion that lifts the peg, brings it over the socket and lowers it in."""
  robot, mouth = scene.robot, scene.config.hole_depth
  x, y, z = robot.settled(scene.tip)
  dx, dy = scene.goal[0] - x, scene.goal[1] - y
  distance = math.hypot(dx, dy)
  inside = scene.over_hole and scene.tip[2] < mouth
  if inside and robot.measured[2] < scene.lowest:
    return OPEN  # the fingers are at the rim: a peg held so low falls the rest
  floor = LOWEST_TIP_M
  if not inside and distance > AT_HOLE_M:
    gap = mouth + MOUTH_GAP_M
    floor = gap + (CARRY_M - gap) * share(max((distance - AT_HOLE_M) / _CARRY_FUNNEL_M, blocked_share(robot)))
  step, _ = descend(dx, dy, height=z, floor=floor, clearance=z - CARRY_M / 2)
  return Motion(step, 0.0, False)


def _release(scene: _Scene) -> Motion:
  """Returns the motion that opens, and goes straight up as the fingers come free."""
  robot, (thick, wide) = scene.robot, (scene.grasp.width, scene.grasp.open_width)
  free = (robot.width - thick - _FREE_M) / (wide - thick - _FREE_M) if scene.around else 1.0
  free = max(free, (scene.lowest - robot.commanded[2]) / _FUNNEL_RIM_M)
  dz = min(max(RETREAT_M - robot.commanded[2], 0.0), FAST_M) * share(free)
  return Motion((0.0, 0.0, dz), 0.0, True)
