"""A policy's ODE, for those who lead it elsewhere."""

import dataclasses
from collections.abc import Callable

from pi0rag_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Flow:
  """A policy's ODE at one batch of observations."""

  run: Callable[..., Array]  # (x_BTA, first=, last=, correct=) -> x_BTA, normalized and padded; see flow.euler
  start_BTA: Array  # where the base chunk's run started
  num_steps: int
  to_model: Callable[[Array], Array]  # the robot's units to normalized, padded with zeros; float[..., T, A]
  to_robot: Callable[[Array], Array]
