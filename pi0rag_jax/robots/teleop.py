"""Driving a robot by hand: what keys or a stick say, as an action that moves the tool."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from pi0rag_jax.robots.robot import ActionSpace

# Costs per second at full deflection, see ActionSpace: 12 cm and about 1 rad, which a beginner can follow.
MOVE_COST_S, TURN_COST_S = 12.0, 3.0


@dataclasses.dataclass(frozen=True)
class Drive:
  """Where a person wants the tool to go, as seen in the picture: each from -1 to 1."""

  away: float = 0.0
  right: float = 0.0
  up: float = 0.0
  turn: float = 0.0  # counterclockwise, seen from above

  @property
  def moves(self) -> bool:
    """Whether anything is wanted at all."""
    return any(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Teleop:
  """Which entries of an action move the tool, each with its sign: for robots whose actions displace it every tick.

  Directions are those of the picture that people see, from the robot's first camera.
  """

  away: tuple[int, int]
  right: tuple[int, int]
  up: tuple[int, int]
  gripper: int
  opened: float  # the gripper's entry where it opens
  closed: float
  turn: tuple[int, int] | None = None

  @property
  def moves(self) -> dict[str, tuple[int, int]]:
    """Each entry by what it does, with the sign of what it is called."""
    moves = {"away": self.away, "right": self.right, "up": self.up, "gripper": (self.gripper, 1)}
    return moves if self.turn is None else moves | {"turn": self.turn}

  def action(self, drive: Drive, *, is_open: bool, space: "ActionSpace", tick_s: float) -> np.ndarray:
    """Returns float32[A], the action of one tick; within the space's limits."""
    action_A = np.zeros(space.dim)
    moves = [(self.away, drive.away, MOVE_COST_S), (self.right, drive.right, MOVE_COST_S),
             (self.up, drive.up, MOVE_COST_S)]
    for (entry, sign), share, cost_s in [*moves, *([(self.turn, drive.turn, TURN_COST_S)] if self.turn else [])]:
      action_A[entry] = sign * share * cost_s * tick_s / space.cost[entry]
    action_A[self.gripper] = self.opened if is_open else self.closed
    return np.clip(action_A, space.low, space.high).astype(np.float32)

  def is_open(self, action_A: np.ndarray) -> bool:
    """Returns whether an action opens the gripper, or holds it open."""
    return bool(abs(action_A[self.gripper] - self.opened) <= abs(action_A[self.gripper] - self.closed))
