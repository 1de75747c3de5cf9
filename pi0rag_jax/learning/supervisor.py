"""Who watches an episode and takes over while it runs: a person, or here an expert with a person's reaction time.

Nothing is taken back: the robot is where the policy has brought it. The policy may have the robot again in the same
episode, which can be helped several times: what is learned then lies where the policy itself goes.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step

_TINY_S = 1e-9  # of sums of ticks
_STREAM = 3  # sets the draws of a supervisor apart from an episode's others


@dataclasses.dataclass(frozen=True)
class SupervisorConfig:
  """When a supervisor takes over, and for how long. Costs are mean path costs, about cm."""

  cost: float = 1.5  # of policy against expert, from which something is wrong
  band: int = 6  # ticks by which they may differ in time, see paths.aligned_residual
  # Of trouble until the take-over; as much time in which nothing is wrong undoes it.
  delay_s: float = 1.0
  hold_s: float = 0.0  # that a take-over lasts, after which the policy acts again; 0: to the episode's end
  look_s: float = 0.0  # that somebody looks who was asked, where nothing is wrong; 0: to the episode's end
  # Share of the time limit after which an episode is helped that has not succeeded; 1: however long it takes.
  patience: float = 0.7
  misses: float = 0.0  # share of the troubles that are not noticed
  false_alarms: float = 0.0  # share of the decisions at which the supervisor takes over though nothing is wrong

  def __post_init__(self):
    for name, high in (("cost", 1e6), ("band", 10**6), ("delay_s", 1e6), ("hold_s", 1e6), ("look_s", 1e6),
                       ("patience", 1.0), ("misses", 1.0), ("false_alarms", 1.0)):
      schema.check_range(getattr(self, name), 0, high, f"supervisor.{name}")


class Watch:
  """A supervisor of one episode: called at each decision, it says whether the expert acts."""

  def __init__(self, config: SupervisorConfig, space: ActionSpace, tick_s: float, seed: int,
               asks: Callable[[Step], bool] = lambda step: True, time_limit_s: float = math.inf):
    """Takes the parts.

    Args:
      asks: whether the supervisor is asked to look, at each decision.
      time_limit_s: of the episode.
    """
    self._config, self._space, self._tick_s, self._asks = config, space, tick_s, asks
    self._patience_s = config.patience * time_limit_s if config.patience < 1 else math.inf
    self._draws = np.random.default_rng([seed, _STREAM])
    self._now_s, self._wrong = 0.0, False  # at the last decision
    self._trouble_s = 0.0
    self._looks_until_s = self._acts_until_s = -math.inf
    self._noticed = True
    self._watching, self._watched_s = False, 0.0
    self.looks = 0  # times that somebody began to watch

  def watched_s(self, end_s: float) -> float:
    """Returns for how long somebody watched or acted in an episode that ended at `end_s`."""
    return self._watched_s + (end_s - self._now_s if self._watching else 0.0)

  def __call__(self, step: Step, plan_TA: np.ndarray) -> bool:
    now_s, before_s, watched = step.tick * self._tick_s, self._now_s, self._watching
    self._watched_s, self._now_s = self.watched_s(now_s), now_s
    if self._asks(step):
      self._looks_until_s = now_s + (self._config.look_s or math.inf)
    acts = now_s < self._acts_until_s - _TINY_S
    self._watching = acts or self._wrong or now_s < self._looks_until_s - _TINY_S
    self.looks += self._watching and not watched
    if not self._watching:
      self._trouble_s = 0.0
      return False
    missed, alarmed = self._draws.random(2) < (self._config.misses, self._config.false_alarms)
    if acts:
      return True
    passed_s = now_s - before_s if watched else 0.0
    self._trouble_s = max(self._trouble_s + (passed_s if self._wrong else -passed_s), 0.0)
    self._wrong = self._cost(step.actions_TA, plan_TA) > self._config.cost
    if self._wrong and not self._trouble_s:
      self._noticed = not missed
    waited = self._wrong and self._trouble_s >= self._config.delay_s - _TINY_S
    if not (alarmed or now_s >= self._patience_s or (waited and self._noticed)):
      return False
    self._trouble_s, self._wrong = 0.0, False
    self._acts_until_s = now_s + (self._config.hold_s or math.inf)
    return True

  def _cost(self, chunk_TA: np.ndarray, plan_TA: np.ndarray) -> float:
    residual_BTA = paths.aligned_residual(chunk_TA[None], plan_TA[None], self._space, band=self._config.band)
    return float(paths.disagreement(residual_BTA, self._space)[0])
