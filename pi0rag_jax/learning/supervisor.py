"""Who watches an episode and takes over while it runs: a person, or here an expert with a person's reaction time.

Nothing is taken back: the robot is where the policy has brought it. The policy may have the robot again in the same
episode, which can be helped several times: what is learned then lies where the policy itself goes.
"""

import dataclasses
import sys

import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step

_STREAM = 3  # sets the draws of a supervisor apart from an episode's others


@dataclasses.dataclass(frozen=True)
class SupervisorConfig:
  """When a supervisor takes over, and for how long. Counts are decisions; costs mean path costs, about cm."""

  cost: float = 1.5  # of policy against expert, from which something is wrong
  band: int = 6  # ticks by which they may differ in time, see paths.aligned_residual
  delay: int = 3  # between the beginning of trouble and the take-over; trouble that ends by itself until then is none
  hold: int = 0  # that a take-over lasts, after which the policy acts again; 0: to the episode's end
  misses: float = 0.0  # share of the troubles that are not noticed
  false_alarms: float = 0.0  # share of the decisions at which the supervisor takes over though nothing is wrong

  def __post_init__(self):
    for name, high in (("cost", 1e6), ("band", 10**6), ("delay", 10**6), ("hold", 10**6), ("misses", 1.0),
                       ("false_alarms", 1.0)):
      schema.check_range(getattr(self, name), 0, high, f"supervisor.{name}")


class Watch:
  """A supervisor of one episode: called at each decision, it says whether the expert acts."""

  def __init__(self, config: SupervisorConfig, space: ActionSpace, seed: int):
    self._config, self._space = config, space
    self._draws = np.random.default_rng([seed, _STREAM])
    self._wrong = 0  # decisions in a row at which something is wrong
    self._left = 0  # decisions of the take-over that are to come
    self._noticed = True

  def __call__(self, step: Step, plan_TA: np.ndarray) -> bool:
    missed, alarmed = self._draws.random(2) < (self._config.misses, self._config.false_alarms)
    if self._left:
      self._left -= 1
      return True
    self._wrong = self._wrong + 1 if self._cost(step.actions_TA, plan_TA) > self._config.cost else 0
    if self._wrong == 1:
      self._noticed = not missed
    if not (alarmed or (self._noticed and self._wrong > self._config.delay)):
      return False
    self._wrong, self._left = 0, self._config.hold - 1 if self._config.hold else sys.maxsize
    return True

  def _cost(self, chunk_TA: np.ndarray, plan_TA: np.ndarray) -> float:
    residual_BTA = paths.aligned_residual(chunk_TA[None], plan_TA[None], self._space, band=self._config.band)
    return float(paths.disagreement(residual_BTA, self._space)[0])
