"""Whether the memory still helps: a share of the episodes runs without it, and the better of the two has its way.

When the cause of past failures goes away, corrections lead astray what works by itself. Records lose their say one by
one by their own outcomes (`policy.utility`); this is the guard over all of them together.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.episode import Job

# Sets the draw of who works in an episode apart from the episode's other draws.
_STREAM = 2


@dataclasses.dataclass(frozen=True)
class TrustConfig:
  """The rule: the memory works, until the policy alone is the better one with enough confidence, and back."""

  share: float = 0.0  # of the episodes in which the one that is trusted less works; 0: the memory always does
  window: int = 120  # last episodes that count, of both together
  least: int = 8  # of each, before anything is decided
  stop_below: float = 0.5  # probability that the memory does better, under which it is stopped
  resume_above: float = 0.7  # and from which it works again

  def __post_init__(self):
    if not 0 <= self.share <= 0.5:
      raise Pi0RagError(f"trust.share is {self.share}, allowed: 0 to 0.5")
    if not 0 <= self.stop_below <= self.resume_above <= 1:
      raise Pi0RagError(f"trust.stop_below is {self.stop_below} and trust.resume_above {self.resume_above}, allowed: "
                        "0 <= stop_below <= resume_above <= 1")


class Trust:
  """Decides for each episode whether the memory has a say, from how episodes with and without it ended."""

  def __init__(self, config: TrustConfig = TrustConfig()):
    self._config = config
    self._last: collections.deque[tuple[bool, bool]] = collections.deque(maxlen=config.window)  # (steered, success)
    self.trusted = True  # whether the memory works, but for the share

  def launch(self, job: Job) -> Job:
    """Returns the job with `trust` 1 where the memory works and 0 where the policy does alone.

    The draw is the seed's own, so that a resumed stream compares in the same episodes.
    """
    if self._config.share == 0 or job.rewind is not None:
      return job
    other_way = np.random.default_rng([job.seed, _STREAM]).random() < self._config.share
    return dataclasses.replace(job, trust=float(self.trusted != other_way))

  def observe(self, *, steered: bool, success: bool) -> None:
    """Takes note of how an episode ended. A resumed stream tells all of its logged ones again, in their order."""
    self._last.append((steered, success))
    with_memory = sum(steered for steered, _ in self._last)
    if min(with_memory, len(self._last) - with_memory) < self._config.least:
      return
    limit = self._config.stop_below if self.trusted else self._config.resume_above
    self.trusted = self.better() >= limit

  def better(self) -> float:
    """Returns the probability that the memory's rate of success is above that of the policy alone.

    Of two Beta posteriors with a uniform prior, as normal distributions of the same means and variances.
    """
    mean, variance = _beta([success for steered, success in self._last if steered])
    mean_alone, variance_alone = _beta([success for steered, success in self._last if not steered])
    return 0.5 * (1.0 + math.erf((mean - mean_alone) / math.sqrt(2.0 * (variance + variance_alone))))


def _beta(outcomes: Sequence[bool]) -> tuple[float, float]:
  """Returns mean and variance of the rate of success after these outcomes."""
  a, b = 1 + sum(outcomes), 1 + len(outcomes) - sum(outcomes)
  return a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
