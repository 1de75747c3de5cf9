"""How each of the 34 tasks is done: rules from the present state to the next action, so that any moment can be planned
from. What a task began with is known too: it says by how much a block was turned already.
"""

import math

import numpy as np

from pi0rag_jax.sim.calvin import scene
from pi0rag_jax.sim.calvin import table as at
from pi0rag_jax.sim.calvin.hand import CLOSED, OPEN, SAFE_M, Hand
from pi0rag_jax.sim.calvin.oracle import Facts, turn_between
from pi0rag_jax.sim.calvin.physics import ROBOT, TABLE, Physics

_TURN_DEG, _PUSH_M, _BEYOND_M = 66.0, 0.115, 0.012  # a little more than is asked for
_LAID_M, _ABOVE_M = 0.004, 0.012  # where a block is let go over what it is put on, and from where it is lowered slowly
_THERE_M, _STILL = 0.012, 0.01  # m, m/s
_FINGER_M, _BESIDE_M = 0.012, 0.02  # half a finger's depth, and how far from a block it goes down
_PUSH_Z_M = 0.006  # of the fingertips above the middle of what is pushed
_EDGE_M = 0.055  # before the table's edge, to where what goes into the drawer is pushed
_ROOM_Y_M = 0.085  # blocks further aside would miss the drawer
_FREE_M = 0.1  # between blocks that lie on the table


def act(task: str, start: Facts, physics: Physics) -> np.ndarray:
  """Returns the action float32[5] for the present state of a task."""
  return np.array(_rule(task, start, physics, Hand(physics)), np.float32)


def target(task: str, start: Facts, physics: Physics) -> np.ndarray:
  """Returns float32[6]: where the thing is that a task is about now, and where it belongs."""
  match task.split("_"):
    case [("rotate" | "lift"), block, "block", _]:
      place_3 = goal_3 = physics.block(block)
    case ["push", block, "block", side]:
      place_3 = physics.block(block)
      goal_3 = np.array(start.blocks[block].place) + [0.0, _PUSH_M if side == "left" else -_PUSH_M, 0.0]
    case ["move", "slider", _]:
      place_3 = goal_3 = physics.handle(scene.SLIDER)
    case [("open" | "close"), "drawer"]:
      place_3 = goal_3 = physics.handle(scene.DRAWER)
    case ["turn", _, "lightbulb"]:
      place_3 = goal_3 = physics.handle(scene.SWITCH)
    case ["turn", _, "led"]:
      place_3 = goal_3 = np.array([*physics.table.button, at.BUTTON_TOP_M])
    case _:
      block = _moved_block(task, start, physics)
      place_3, goal_3 = physics.block(block), _destination(task, block, physics)
  return np.concatenate([place_3, goal_3], dtype=np.float32)


def _rule(task: str, start: Facts, physics: Physics, hand: Hand) -> list[float]:
  match task.split("_"):
    case ["rotate", block, "block", side]:
      return _rotate(hand, start, block, 1 if side == "left" else -1)
    case ["push", block, "block", side]:
      sign = 1 if side == "left" else -1
      return _push(hand, block, 1, start.blocks[block].place[1] + sign * _PUSH_M, sign)
    case ["lift", block, "block", _]:
      return hand.grasp_block(block) or hand.rise(CLOSED)
    case ["move", "slider", side]:
      return _drag(hand, scene.SLIDER, 1, at.SLIDER_TRAVEL_M if side == "left" else 0.0)
    case [("open" | "close") as verb, "drawer"]:
      return _drag(hand, scene.DRAWER, 0, at.DRAWER_TRAVEL_M if verb == "open" else 0.0)
    case ["turn", word, "lightbulb"]:
      return _drag(hand, scene.SWITCH, 0, at.SWITCH_TRAVEL_M if word == "on" else 0.0)
    case ["turn", word, "led"]:
      return _press(hand, physics.led.on == (word == "on"))
    case ["push", "into", "drawer"]:
      return _push_into_drawer(hand, start)
  block = _moved_block(task, start, physics)
  return _put(hand, block, _destination(task, block, physics), turned=task == "stack_block")


def _rotate(hand: Hand, start: Facts, block: str, sign: int) -> list[float]:
  now = Facts.of(hand.physics).blocks[block]
  left = math.radians(_TURN_DEG - sign * turn_between(start.blocks[block], now)[2])
  action = hand.grasp_block(block, room=sign * max(left, 0.0))
  if action:
    return action
  x, y, _, yaw = hand.pose
  turn = yaw + sign * max(left, 0.03)
  if abs(turn) > hand.most_turn and abs(yaw) > hand.most_turn - 0.02:
    return hand.stay(OPEN)  # to be grasped anew, from the other side
  low = hand.grip_height(block) - 0.003  # pressed down a little: what loses touch with the table is lifted
  return hand.go((x, y, low, turn), CLOSED)


def _push(hand: Hand, block: str, axis: int, goal: float, sign: int) -> list[float]:
  """Pushes a block along an axis with closed fingers, until its middle is at `goal`."""
  physics = hand.physics
  place_3, half_3 = physics.block(block), physics.half_extents(block)
  yaw = math.pi / 2 if axis == 1 else 0.0  # the hand across the way
  low = place_3[2] + _PUSH_Z_M
  beside_3 = np.array([place_3[0], place_3[1], low])
  touching = half_3[axis] + _FINGER_M
  beside_3[axis] -= sign * (touching + _BESIDE_M)
  behind = sign * (place_3[axis] - hand.measured[axis])  # how far the fingers are behind its middle
  aside = abs(hand.measured[1 - axis] - place_3[1 - axis])
  if hand.closed and not physics.held and hand.measured[2] < low + 0.012 and behind > 0.5 * touching and aside < 0.02:
    aim_3 = np.array([*hand.pose[:2], low])
    aim_3[axis] = goal - sign * touching + sign * _BEYOND_M
    return hand.go((*aim_3, yaw), CLOSED, step_m=0.008)
  return hand.reach((*beside_3, yaw), CLOSED)


def _push_into_drawer(hand: Hand, start: Facts) -> list[float]:
  now = Facts.of(hand.physics).blocks
  lying = [name for name in at.BLOCKS if start.blocks[name].touches - {ROBOT} == {TABLE}]
  block = min(lying or at.BLOCKS, key=lambda name: abs(start.blocks[name].place[1]))
  if now[block].place[2] < at.TOP_M:
    return hand.rise(CLOSED)
  y = now[block].place[1]
  if abs(y) > _ROOM_Y_M:
    return _push(hand, block, 1, math.copysign(_ROOM_Y_M - 0.02, y), -1 if y > 0 else 1)
  return _push(hand, block, 0, at.EDGE_X_M - _EDGE_M, -1)


def _drag(hand: Hand, joint: str, axis: int, goal: float) -> list[float]:
  """Takes a handle along its slide to one of its ends."""
  handle_3 = hand.physics.handle(joint)
  action = hand.grasp((*handle_3, 0.0), f"{joint}_handle")
  if action:
    return action
  left = goal - hand.physics.joint(joint)
  direction = -1 if joint == scene.DRAWER else 1  # of the axis, where the joint opens
  aim_3 = np.array([*hand.pose[:3]])
  aim_3[axis] = handle_3[axis] + direction * (left + math.copysign(_BEYOND_M, left))
  return hand.go((*aim_3, 0.0), CLOSED, step_m=0.01)


def _press(hand: Hand, done: bool) -> list[float]:
  """Presses the button once; from a button that is down the hand first rises."""
  x, y = hand.physics.table.button
  if done or (hand.physics.led.pressed and hand.over((x, y))):
    return hand.rise(CLOSED)
  return hand.reach((x, y, at.BUTTON_TOP_M - 0.012, 0.0), CLOSED)


def _put(hand: Hand, block: str, goal_3: np.ndarray, *, turned: bool) -> list[float]:
  """Carries a block to where its middle belongs, and lets go of it there, straight unless it may be `turned`."""
  physics = hand.physics
  place_3 = physics.block(block)
  off_3 = goal_3 - place_3
  aside = math.hypot(off_3[0], off_3[1])
  if physics.held != block:
    if aside < 0.03 and abs(off_3[2]) < 0.02:
      return hand.rise(OPEN)
    return hand.grasp_block(block) or hand.stay(CLOSED)
  x, y, z, yaw = hand.pose
  turn = yaw if turned else 0.0
  if aside < _THERE_M and abs(turn - yaw) < 0.06:
    if off_3[2] > -_LAID_M or (
        hand.stuck and np.abs(physics.object_velocity(block)[:3]).max() < _STILL):
      return hand.stay(OPEN)
    slow = 0.004 if off_3[2] > -_ABOVE_M - _LAID_M else 0.015
    return hand.go((x + off_3[0], y + off_3[1], z + off_3[2] - 0.002, turn), CLOSED, step_m=slow)
  if z < SAFE_M - 0.01:
    return hand.rise(CLOSED)
  return hand.go((x + off_3[0], y + off_3[1], SAFE_M, turn), CLOSED)


def _moved_block(task: str, start: Facts, physics: Physics) -> str:
  """Returns the block that is put somewhere: in the hand at first, or on another one."""
  if task == "push_into_drawer":
    return min(at.BLOCKS, key=lambda name: abs(start.blocks[name].place[1]))
  wanted = ([name for name, block in start.blocks.items() if block.on_blocks] if task == "unstack_block" else
            [name for name, block in start.blocks.items() if block.held])
  if not wanted and physics.held in at.BLOCKS:  # a handle may be in the hand, too
    return physics.held
  return max(wanted or at.BLOCKS, key=lambda name: start.blocks[name].place[2])


def _destination(task: str, block: str, physics: Physics) -> np.ndarray:
  """Returns where a block's middle belongs, float[3]."""
  others = [physics.block(name) for name in at.BLOCKS if name != block]
  clear = lambda x, y: min(math.hypot(x - other[0], y - other[1]) for other in others)  # noqa: E731
  touching = physics.touching()
  if task == "stack_block":
    lying = [name for name in at.BLOCKS if name != block and TABLE in touching[name]]
    base_3 = physics.block(min(lying or [n for n in at.BLOCKS if n != block],
                               key=lambda name: float(np.linalg.norm(physics.block(name) - physics.block(block)))))
    return base_3 + [0.0, 0.0, 2 * at.HALF_HEIGHT_M]
  if task == "place_in_slider":
    door_left = physics.joint(scene.SLIDER) > at.SLIDER_TRAVEL_M / 2
    y = physics.table.cabinet_y + (-1 if door_left else 1) * (at.HALF_Y_M + 0.012)
    return np.array([at.CABINET_X_M, y, at.PLANK_M + at.HALF_HEIGHT_M])
  if task in ("place_in_drawer", "push_into_drawer"):
    open_x = at.EDGE_X_M - physics.joint(scene.DRAWER)
    x = open_x + at.DRAWER_DEPTH_M / 2 - 0.003
    y = max((0.0, 0.06, -0.06), key=lambda y: clear(x, y))
    return np.array([x, y, at.DRAWER_FLOOR_M + at.HALF_HEIGHT_M])
  y = min((0.0, 0.1, -0.1, 0.2, -0.2), key=lambda y: (clear(at.SPOT_X_M, y) < _FREE_M, abs(y)))
  return np.array([at.SPOT_X_M, y, at.TOP_M + at.HALF_HEIGHT_M])

