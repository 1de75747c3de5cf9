"""Who watches an episode and takes over while it runs: a person, or here an expert with a person's reaction time.

Nothing is taken back: the robot is where the policy has brought it. Once the policy would do as the supervisor does it
may have the robot again, so that an episode can be helped several times.
"""

import dataclasses

import numpy as np

from pi0rag_jax.errors import Pi0RagError
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
  hold: int = 2  # that a take-over lasts at least
  hands_back: int = 0  # in a row at which the policy would do the same, after which it acts again; 0: never
  misses: float = 0.0  # share of the troubles that are not noticed
  false_alarms: float = 0.0  # share of the decisions at which the supervisor takes over though nothing is wrong

  def __post_init__(self):
    if min(self.delay, self.hands_back) < 0 or self.hold < 1:
      raise Pi0RagError(f"supervisor has delay {self.delay}, hands_back {self.hands_back}, hold {self.hold}, allowed: "
                        "0 or more, and a hold of 1 or more")
    if not (0 <= self.misses <= 1 and 0 <= self.false_alarms <= 1):
      raise Pi0RagError(f"supervisor.misses is {self.misses} and false_alarms {self.false_alarms}, allowed: 0 to 1")


class Watch:
  """A supervisor of one episode: called at each decision, it says whether the expert acts."""

  def __init__(self, config: SupervisorConfig, space: ActionSpace, seed: int):
    self._config, self._space = config, space
    self._draws = np.random.default_rng([seed, _STREAM])
    self._acts = False
    self._wrong = 0  # decisions in a row at which something is wrong
    self._right = 0
    self._held = 0
    self._noticed = True

  def __call__(self, step: Step, plan_TA: np.ndarray) -> bool:
    missed, alarmed = self._draws.random(2) < (self._config.misses, self._config.false_alarms)
    wrong = self._cost(step.actions_TA, plan_TA) > self._config.cost
    self._wrong, self._right = (self._wrong + 1, 0) if wrong else (0, self._right + 1)
    if self._acts:
      self._acts = not self._hands_back()
      self._held += 1
    else:
      if self._wrong == 1:
        self._noticed = not missed
      self._acts = bool(alarmed) or (self._noticed and self._wrong > self._config.delay)
      self._held = 1
    return self._acts

  def _hands_back(self) -> bool:
    config = self._config
    return config.hands_back > 0 and self._held >= config.hold and self._right >= config.hands_back

  def _cost(self, chunk_TA: np.ndarray, plan_TA: np.ndarray) -> float:
    residual_BTA = paths.aligned_residual(chunk_TA[None], plan_TA[None], self._space, band=self._config.band)
    return float(paths.disagreement(residual_BTA, self._space)[0])
