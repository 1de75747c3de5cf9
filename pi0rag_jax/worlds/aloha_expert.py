"""Experts for gym-aloha's tasks: rules from the present state to where both hands go next, by inverse kinematics.

They remember nothing, so that they may take over at any moment: what was dropped is picked up again. Places are in m,
in the world's frame, in which x points from the left arm's base to the right arm's. A hand is where its fingertips
meet; its own x axis points along the fingers, which close along its y axis.
"""

import dataclasses
from collections.abc import Sequence

import mujoco
import numpy as np

from pi0rag_jax.worlds.rotations import angle_between, rotation, rotation_vector

TIP_M = 0.135  # from the gripper's frame to between the fingertips
SPEED_M, TURN_RAD, GRIP_SPEED = 0.007, 0.05, 0.08  # most per tick
CLOSED, OPEN = 0.0, 1.0
# Of a gripper's command below, and of its opening above, and below where it has closed on nothing.
_IS_CLOSED, _IS_OPEN, _EMPTY = 0.05, 0.7, 0.12
_RESTING = 0.005  # m/s, of a finger that has closed around something
_LAG = 0.03  # by which the command of a gripper that closes is below its opening
_ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_PITCH_RAD = np.deg2rad(60.0)  # of a hand that picks something up, below the horizontal
_ABOVE_M, _OVER_M, _AT_M, _GRASP_M, _FACING_RAD, _TURNED_RAD = 0.07, 0.015, 0.012, 0.03, 0.15, 0.4
_MOST_YAW_RAD, _HANGS_M, _TOLD_M = np.deg2rad(60.0), 0.016, 0.002
_SOLVER_STEPS, _SOLVED, _DAMPING = 8, 1e-4, 3e-3
# Where the wrist is straight, forearm and wrist could roll by half a turn, to the ends of their joints: they return.
_ROLLS, _UNROLL = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 1.0]), 0.02
# Of the cube: where it is handed over, and where the left hand waits and then takes it, from there.
_MEET_M = np.array([0.0, 0.5, 0.25])
_WAIT_M, _TAKE_M = np.array([-0.10, 0.0, -0.02]), np.array([0.02, 0.0, -0.015])
_LEFT_OF_M = -0.12  # further left the right hand does not reach
# Of peg and socket, both 12 cm long: where they are brought, where they are held, and when they face each other.
_FACE_M = np.array([0.0, 0.5, 0.18])
_APART_M, _HELD_AT_M, _PEG_UP_M, _SOCKET_UP_M = 0.09, 0.027, 0.0125, 0.008  # the last two above their middle
_GAP_M, _IN_HOLE_M, _INSIDE_M, _ASIDE_M, _LIFTED_M = 0.22, 0.115, 0.09, 0.05, 0.1
_ALIGNED_M, _GAIN, _PUSH_M = 0.006, 0.12, 0.0035


@dataclasses.dataclass(frozen=True)
class Target:
  """Where a hand goes: there, turned so, with the gripper so far open."""

  place_3: np.ndarray
  turn_33: np.ndarray
  grip: float


class Hand:
  """One arm as it stands: where its fingertips are, and where they were last told to be."""

  def __init__(self, model: mujoco.MjModel, side: str):
    self._model, self._scratch, self.sign = model, mujoco.MjData(model), 1.0 if side == "right" else -1.0
    joints = [model.joint(f"vx300s_{side}/{name}") for name in _ARM_JOINTS]
    self._qpos, self._dofs = [int(j.qposadr[0]) for j in joints], [int(j.dofadr[0]) for j in joints]
    self._range = np.array([j.range for j in joints])
    self._body = model.body(f"vx300s_{side}/gripper_link").id
    first = 0 if side == "left" else 8  # of the arm's numbers in qpos and ctrl: six joints, two fingers
    self._ctrl, self._finger = slice(first, first + 6), first + 6
    self._fingers = [model.geom(f"vx300s_{side}/10_{name}_gripper_finger").id for name in ("left", "right")]

  def look(self, data: mujoco.MjData, grip: float, opening: float) -> None:
    """Reads the present state; `grip` is the gripper's command, both numbers from 0 (closed) to 1."""
    self._contacts = data.contact.geom[: data.ncon]
    self.grip, self.opening = grip, opening
    self._finger_speed = abs(float(data.qvel[self._finger]))
    self.turn_33, self.place_3 = self._pose(data)
    self._scratch.qpos[:] = data.qpos
    self._scratch.qpos[self._qpos] = data.ctrl[self._ctrl]
    self._kinematics()
    self.told_turn_33, self.told_3 = self._pose(self._scratch)

  def touches(self, geoms: list[int]) -> tuple[bool, bool]:
    """Returns whether either finger touches one of the geoms."""
    pairs = self._contacts
    left, right = (bool(((pairs == finger).any(axis=1) & np.isin(pairs, geoms).any(axis=1)).any())
                   for finger in self._fingers)
    return left, right

  def holds(self, geoms: list[int]) -> bool:
    """Returns whether the gripper has closed around one of the geoms, and its fingers have come to rest."""
    return self.grip < _IS_CLOSED and self._finger_speed < _RESTING and all(self.touches(geoms))

  def toward(self, target: Target) -> tuple[np.ndarray, float]:
    """Returns (joints float[6], gripper's command) of one tick toward a target."""
    step_3 = target.place_3 - self.told_3
    place_3 = self.told_3 + step_3 * min(1.0, SPEED_M / max(float(np.linalg.norm(step_3)), 1e-9))
    turn_3 = rotation_vector(target.turn_33 @ self.told_turn_33.T)
    share = min(1.0, TURN_RAD / max(float(np.linalg.norm(turn_3)), 1e-9))
    grip = self.grip + float(np.clip(target.grip - self.grip, -GRIP_SPEED, GRIP_SPEED))
    return self._solve(place_3, rotation(turn_3 * share) @ self.told_turn_33), grip

  def _solve(self, place_3: np.ndarray, turn_33: np.ndarray) -> np.ndarray:
    """Returns the joints that bring the fingertips there, or as near as they get, by damped least squares."""
    jacobian, error_6 = np.empty((6, self._model.nv)), np.empty(6)
    for _ in range(_SOLVER_STEPS):
      now_33, tip_3 = self._pose(self._scratch)
      error_6[:3], error_6[3:] = place_3 - tip_3, rotation_vector(turn_33 @ now_33.T)
      if np.abs(error_6).max() < _SOLVED:
        break
      mujoco.mj_jac(self._model, self._scratch, jacobian[:3], jacobian[3:], tip_3, self._body)
      arm_66 = jacobian[:, self._dofs]
      joints_6 = self._scratch.qpos[self._qpos]
      unroll_6 = -_UNROLL * joints_6 * _ROLLS
      inverse_66 = arm_66.T @ np.linalg.inv(arm_66 @ arm_66.T + _DAMPING * np.eye(6))
      change_6 = unroll_6 + inverse_66 @ (error_6 - arm_66 @ unroll_6)
      self._scratch.qpos[self._qpos] = np.clip(joints_6 + change_6, *self._range.T)
      self._kinematics()
    return self._scratch.qpos[self._qpos].copy()

  def _kinematics(self) -> None:
    mujoco.mj_kinematics(self._model, self._scratch)
    mujoco.mj_comPos(self._model, self._scratch)

  def _pose(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
    turn_33 = data.xmat[self._body].reshape(3, 3).copy()
    return turn_33, data.xpos[self._body] + turn_33[:, 0] * TIP_M


class Expert:
  """The rules of one task."""

  def __init__(self, model: mujoco.MjModel, task: str):
    self._rule = {"transfer_cube": self._transfer, "insertion": self._insert}[task]
    self.left, self.right = Hand(model, "left"), Hand(model, "right")
    names = ("box",) if task == "transfer_cube" else ("peg", "socket")
    self._things = [model.body(name).id for name in names]
    self._geoms = [np.flatnonzero(model.geom_bodyid == thing).tolist() for thing in self._things]

  def act(self, data: mujoco.MjData, grips: Sequence[float], openings: Sequence[float]) -> np.ndarray:
    """Returns the next action float[14].

    Args:
      data: the simulation, up to date.
      grips: commands of the left and the right gripper.
      openings: measured, likewise.
    """
    self.left.look(data, grips[0], openings[0])
    self.right.look(data, grips[1], openings[1])
    targets = self._rule(data)
    parts = [hand.toward(target) for hand, target in zip((self.left, self.right), targets)]
    return np.concatenate([np.append(joints, grip) for joints, grip in parts])

  def _transfer(self, data: mujoco.MjData) -> tuple[Target, Target]:
    (cube,), (geoms,), left, right = self._things, self._geoms, self.left, self.right
    cube_3, yaw = data.xpos[cube].copy(), _yaw(data.xmat[cube].reshape(3, 3), symmetry=np.pi / 2)
    down_33, level_33 = _picking(right, 0.0), rotation(np.array([np.pi / 2, 0.0, 0.0]))
    waits = Target(_MEET_M + _WAIT_M, level_33, OPEN)
    if left.holds(geoms):
      away_3 = right.told_3 if any(right.touches(geoms)) else _MEET_M + (0.1, 0.0, 0.0)
      return Target(_MEET_M + _TAKE_M, left.told_turn_33, CLOSED), Target(away_3, right.told_turn_33, OPEN)
    if right.holds(geoms):
      takes_3 = cube_3 + _TAKE_M
      offers = Target(_MEET_M, down_33, CLOSED)
      aside_m = float(np.linalg.norm((takes_3 - left.place_3)[1:]))
      ready = (np.linalg.norm(right.place_3 - _MEET_M) < _OVER_M and aside_m < _OVER_M
               and angle_between(left.turn_33, level_33) < _FACING_RAD)
      if not ready:  # the left hand waits beside the cube as it is held
        return dataclasses.replace(waits, place_3=np.array([waits.place_3[0], *takes_3[1:]])), offers
      if np.linalg.norm(takes_3 - left.place_3) < _AT_M:
        return Target(takes_3, level_33, CLOSED), offers
      return Target(takes_3, level_33, OPEN) if left.opening > _IS_OPEN else waits, offers
    if cube_3[0] < _LEFT_OF_M:
      return _pick(left, cube_3, cube_3[2], yaw), Target(_MEET_M + (0.2, 0.0, 0.0), down_33, OPEN)
    return waits, _pick(right, cube_3, cube_3[2], yaw)

  def _insert(self, data: mujoco.MjData) -> tuple[Target, Target]:
    hands = (self.left, self.right)
    things, geoms = self._things[::-1], self._geoms[::-1]  # socket, peg
    held = [hand.holds(each) for hand, each in zip(hands, geoms)]
    if all(held) and (targets := self._push(data)) is not None:
      return targets
    socket, peg = (self._face(hand, data, thing) if holds else self._lift(hand, data, thing)
                   for hand, thing, holds in zip(hands, things, held))
    return socket, peg

  def _lift(self, hand: Hand, data: mujoco.MjData, thing: int) -> Target:
    """Picks peg or socket up near its outer end."""
    place_3, turn_33 = data.xpos[thing].copy(), data.xmat[thing].reshape(3, 3)
    yaw = _yaw(turn_33, symmetry=np.pi)
    end_3 = place_3 + hand.sign * _HELD_AT_M * np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return _pick(hand, end_3, float(place_3[2]) + (_PEG_UP_M if hand is self.right else _SOCKET_UP_M), yaw)

  def _face(self, hand: Hand, data: mujoco.MjData, thing: int) -> Target:
    """Brings what a hand holds to where peg and socket face each other, along x."""
    wanted_3 = _FACE_M + (hand.sign * _APART_M, 0.0, 0.0)
    return Target(wanted_3 - (data.xpos[thing] - hand.place_3), _picking(hand, 0.0), CLOSED)

  def _push(self, data: mujoco.MjData) -> tuple[Target, Target] | None:
    """Brings the peg's line onto the socket's, then pushes; None where they do not face each other yet."""
    peg, socket = self._things
    apart_3, line_3 = data.xpos[peg] - data.xpos[socket], data.xmat[socket][::3]
    line_3 = line_3 * np.sign(line_3 @ apart_3)  # from the socket to the peg
    gap_m = float(apart_3 @ line_3)
    aside_3 = gap_m * line_3 - apart_3
    aside_m = float(np.linalg.norm(aside_3))
    lifted = min(data.xpos[peg][2], data.xpos[socket][2]) > _LIFTED_M
    if not (lifted and gap_m < _GAP_M and aside_m < _ASIDE_M):
      return None
    push_m = _PUSH_M if _INSIDE_M < gap_m < _IN_HOLE_M or aside_m < _ALIGNED_M else 0.0
    left, right = self.left, self.right
    return (Target(left.told_3, left.told_turn_33, CLOSED),
            Target(right.told_3 + _GAIN * aside_3 - push_m * line_3, right.told_turn_33, CLOSED))


def _pick(hand: Hand, thing_3: np.ndarray, height_m: float, yaw: float) -> Target:
  """Returns where a hand goes next that is to grasp a thing at a height: over it, down, and closed around it."""
  at_3, turn_33 = np.array([*thing_3[:2], height_m]), _picking(hand, yaw)
  over_3, off_3 = at_3 + (0.0, 0.0, _ABOVE_M), hand.place_3 - at_3
  aside_m = float(np.linalg.norm(off_3[:2]))
  # A gripper that opens is told to be wider than it is: so a miss is told from closing.
  missed, closing = hand.grip < _IS_CLOSED and hand.opening < _EMPTY, hand.grip < hand.opening - _LAG
  # Told to be there, an arm may hang a little off.
  near_m = _GRASP_M if closing else _HANGS_M if np.linalg.norm(hand.told_3 - at_3) < _TOLD_M else _AT_M
  if not missed and np.linalg.norm(off_3) < near_m and (closing or hand.opening > _IS_OPEN):
    return Target(hand.told_3, hand.told_turn_33, CLOSED)
  down = float(np.clip(1.0 - off_3[2] / _ABOVE_M, 0.0, 1.0))  # on the way down it may turn, where joints end
  if aside_m < _OVER_M and angle_between(hand.turn_33, turn_33) < _FACING_RAD + down * _TURNED_RAD:
    return Target(at_3 if hand.opening > _IS_OPEN else over_3, turn_33, OPEN)
  if aside_m > _OVER_M and off_3[2] < 0.5 * _ABOVE_M:  # not through what lies there
    return Target(np.array([*hand.told_3[:2], over_3[2]]), turn_33, OPEN)
  return Target(over_3, turn_33, OPEN)


def _picking(hand: Hand, yaw: float) -> np.ndarray:
  """Returns how a hand is turned that picks up from above; at a yaw of 0 its fingers close along y."""
  yaw = float(np.clip(yaw, -_MOST_YAW_RAD, _MOST_YAW_RAD)) + (np.pi if hand.sign > 0 else 0.0)
  return rotation(np.array([0.0, 0.0, yaw])) @ rotation(np.array([0.0, _PITCH_RAD, 0.0]))


def _yaw(turn_33: np.ndarray, *, symmetry: float) -> float:
  """Returns how far a thing is turned about the vertical, by the first axis that lies; the least of equal ones."""
  lying_3 = turn_33[:, 0] if abs(turn_33[2, 0]) < 0.7 else turn_33[:, 1]
  yaw = float(np.arctan2(lying_3[1], lying_3[0]))
  return yaw - symmetry * round(yaw / symmetry)
