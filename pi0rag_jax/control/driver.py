"""What the control loop asks of a robot, whoever drives it: a simulation, ROS or a vendor's own library."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.worlds.world import Progress


class Driver(Protocol):
  """A robot that moves in its own time. One thread calls it, but for `hold`, `stamps` and `fault`, which any may."""

  robot: Robot  # with an example, and `actions` where they are declared

  @property
  def fault(self) -> str:
    """Why it takes no actions any more, such as a reflex or an emergency stop; '' where all is well."""
    ...

  @property
  def progress(self) -> Progress | None:
    """What came of the episode so far, where a simulation knows; None where only people do."""
    ...

  def begin(self, seed: int) -> None:
    """Makes ready for an episode; a simulation starts that of the seed. Errors: Pi0RagError where it cannot."""
    ...

  def stamps(self) -> Mapping[str, float]:
    """Returns when each part of the observation came last, `time.monotonic` s: each camera, and the state."""
    ...

  def observe(self) -> dict[str, Any]:
    """Returns the robot's newest observation, as `Robot.observe` takes it; nobody writes to its arrays any more."""
    ...

  def act(self, action_A: np.ndarray) -> None:
    """Sends the action of one tick, float[A] in the robot's units, and returns at once."""
    ...

  def hold(self) -> None:
    """Has the robot stand still until the next action, at once; a second call changes nothing."""
    ...

  def close(self) -> None:
    """Lets the robot stand still and frees everything."""
    ...


@runtime_checkable
class Leads(Protocol):
  """A robot that people lead by hand, or by a leader arm."""

  def led(self) -> np.ndarray | None:
    """Returns the action float[A] of this tick of whoever leads it; None while nobody does."""
    ...
