"""What a scripted expert is."""

import abc
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv


class Expert(abc.ABC):
  """A stateless teacher with privileged knowledge: what it does follows from the environment's state alone."""

  @abc.abstractmethod
  def plan(self, env: "PandaEnv", horizon: int) -> np.ndarray:
    """Returns float32[horizon, 5], the ideal next actions from the current state, without stepping physics."""

  def act(self, env: "PandaEnv") -> np.ndarray:
    """Returns float32[5], the first action of the plan."""
    return self.plan(env, 1)[0]
