"""What a scripted expert is."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv


@dataclasses.dataclass(frozen=True)
class Mistake:
  """Where an expert believes the target and the goal to be, minus where they are; what it holds is no mistake."""

  x_m: float = 0.0
  y_m: float = 0.0
  yaw_rad: float = 0.0


NO_MISTAKE = Mistake()


class Expert(abc.ABC):
  """A stateless teacher with privileged knowledge: what it does follows from the environment's state alone.

  It is a rule from the state to the next action, without a memory: which phase of the task applies follows from where
  the fingertips, the things and their goals are. A plan rolls the rule forward in an imagined scene.
  """

  @abc.abstractmethod
  def imagine(self, env: "PandaEnv", mistake: Mistake) -> Callable[[], Sequence[float]]:
    """Returns a function that returns the next action [5] and advances what the expert imagines by it."""

  def plan(self, env: "PandaEnv", horizon: int, mistake: Mistake = NO_MISTAKE) -> np.ndarray:
    """Returns float32[horizon, 5], the ideal next actions from the current state, without stepping physics.

    Args:
      env: with an episode.
      horizon: ticks.
      mistake: how the expert misjudges the scene; its actions are then ideal for what it believes.
    """
    tick = self.imagine(env, mistake)
    return np.array([tick() for _ in range(horizon)], np.float32)

  def act(self, env: "PandaEnv") -> np.ndarray:
    """Returns float32[5], the first action of the plan."""
    return self.plan(env, 1)[0]
