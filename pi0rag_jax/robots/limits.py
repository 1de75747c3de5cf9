"""How far and how fast a robot may be sent, whatever its policy or a person asks for."""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from pi0rag_jax.errors import Pi0RagError

if TYPE_CHECKING:
  from pi0rag_jax.robots.robot import ActionSpace

NOT_MEASURED = -1


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of the places that the entries of an action lead to; each `[A]`, () where there is none.

  Entries that are places themselves are bounded as they are: joint angles, say. What a change leads to is known from
  the state: the tool's position, say, whose bounds are the workspace's box.
  """

  low: tuple[float, ...] = ()
  high: tuple[float, ...] = ()
  speed: tuple[float, ...] = ()  # of a place per second
  measured: tuple[int, ...] = ()  # the state's entry with the place; NOT_MEASURED where there is none
  unit: tuple[float, ...] = ()  # of the state, for one unit of the action

  def check(self, space: "ActionSpace") -> None:
    """Raises Pi0RagError for limits of another robot."""
    for field in dataclasses.fields(self):
      values = getattr(self, field.name)
      if values and (len(values) != space.dim or any(math.isnan(value) for value in values)):
        raise Pi0RagError(f"limits: {field.name} is {values}; allowed: {space.dim} numbers, one for each of the "
                          "action's, or none")
    if self.low and self.high and any(low > high for low, high in zip(self.low, self.high)):
      raise Pi0RagError(f"limits: low {self.low} exceeds high {self.high}")
    for entry, integrates in enumerate(space.integrates):
      bounded = any(bound and math.isfinite(bound[entry]) for bound in (self.low, self.high))
      if integrates and bounded and (not self.measured or self.measured[entry] == NOT_MEASURED):
        raise Pi0RagError(f"limits: entry {entry} of the action is a change, and where it leads to is not known: say "
                          "in 'measured' which entry of the state that is")

  def safe(self, action_A: np.ndarray, space: "ActionSpace", state_P: np.ndarray, before_A: np.ndarray | None,
           *, tick_s: float) -> np.ndarray:
    """Returns float32[A], the action as far as it is allowed.

    Args:
      state_P: as it was measured just now; what no limit asks for may be left out.
      before_A: the action before; None at an episode's beginning.
    Errors: Pi0RagError for an action that is no numbers, and for another number of them.
    """
    asked_A = np.asarray(action_A, np.float64)
    if asked_A.shape != (space.dim,) or not np.isfinite(asked_A).all():
      raise Pi0RagError(f"the action is {asked_A.tolist()}; allowed: {space.dim} finite numbers")
    integrates_A = np.array(space.integrates)
    fill = lambda values, other: np.asarray(values or (other,) * space.dim, np.float64)  # noqa: E731
    measured_A = fill(self.measured, NOT_MEASURED).astype(int)
    unit_A = np.where(integrates_A, fill(self.unit, 1.0), 1.0)
    place_A = self._places(measured_A, state_P) / unit_A
    low_A, high_A = fill(self.low, -math.inf) / unit_A, fill(self.high, math.inf) / unit_A
    # From outside of the box every way leads back in, at most to its edge.
    down_A = np.where(integrates_A, np.minimum(low_A - place_A, 0.0), low_A)
    up_A = np.where(integrates_A, np.maximum(high_A - place_A, 0.0), high_A)
    started_A = np.where(measured_A == NOT_MEASURED, asked_A, place_A) if before_A is None else np.asarray(before_A)
    from_A = np.where(integrates_A, 0.0, started_A)
    step_A = fill(self.speed, math.inf) * tick_s / unit_A
    safe_A = np.clip(asked_A, np.asarray(space.low), np.asarray(space.high))
    return np.clip(np.clip(safe_A, down_A, up_A), from_A - step_A, from_A + step_A).astype(np.float32)

  def _places(self, measured_A: np.ndarray, state_P: np.ndarray) -> np.ndarray:
    known_A = measured_A != NOT_MEASURED
    if known_A.any() and measured_A.max() >= len(state_P):
      raise Pi0RagError(f"limits: entry {measured_A.max()} of the state measures a place, the state has {len(state_P)}")
    place_A = np.zeros(len(measured_A))
    place_A[known_A] = np.asarray(state_P)[measured_A[known_A]]
    return place_A
