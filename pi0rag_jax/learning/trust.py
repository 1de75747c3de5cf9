"""The promise that the memory breaks next to nothing: it speaks in an episode only where it has earned that.

An episode is broken if the policy alone would have finished it and with the memory it did not. Whenever an episode
fails in which the memory had a say, the policy alone tries the same one again; so it does after a random share of the
successes. What the policy finishes alone earns the memory the right to break a small share of it, and it speaks only
while it could not break more, whatever happens next. docs/guarantee.md states what this promises, and proves it.
"""

import collections
import dataclasses
import functools
import math

import numpy as np

from pi0rag_jax import anytime
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.episode import Job, Trace

# Sets the draw of what is repeated apart from an episode's other draws.
_STREAM = 2


@dataclasses.dataclass(frozen=True)
class TrustConfig:
  """What is promised: at any time, `broken <= broken_max * worked + forgiven`, with `confidence`."""

  broken_max: float = 1.0  # share of what the policy alone would have finished; 1 promises nothing
  forgiven: int = 0  # broken episodes besides, so that the memory may speak from the beginning
  share: float = 0.2  # of the successes with a say of the memory that are repeated too; 1: nothing is chance
  confidence: float = 0.95
  shared: bool = False  # one account for all streams of a sweep: what is promised is so of all of them together
  # Evidence that a record breaks more than that share, as an e-value, at which it loses its say; 0: it never does.
  silenced_at: float = 20.0

  def __post_init__(self):
    if not 0 < self.broken_max <= 1:
      raise Pi0RagError(f"trust.broken_max is {self.broken_max}, allowed: above 0, to 1, which promises nothing")
    if not 0 < self.share <= 1 or not 0 < self.confidence < 1:
      raise Pi0RagError(f"trust.share is {self.share} and trust.confidence {self.confidence}, allowed: above 0, the "
                        "share to 1, the confidence below")
    if self.forgiven < 0 or self.silenced_at < 0:
      raise Pi0RagError(f"trust.forgiven is {self.forgiven} and trust.silenced_at {self.silenced_at}, allowed: 0 or "
                        "more")

  @property
  def promises(self) -> bool:
    """Whether anything is promised."""
    return self.broken_max < 1

  def repeats(self, trace: Trace) -> bool:
    """Returns whether the policy alone does an episode again, for what the memory has changed."""
    had_a_say = trace.job.trust > 0 and any(step.used for step in trace.steps)
    if not self.promises or not had_a_say or trace.outcome == "crashed":
      return False
    return trace.outcome != "success" or trace.helped or self.drawn(trace.job.seed)

  def drawn(self, seed: int) -> bool:
    """Returns whether an episode is repeated even if it succeeds; the seed's own draw, the same in a resumed stream."""
    return bool(np.random.default_rng([seed, _STREAM]).random() < self.share)


@dataclasses.dataclass
class _Account:
  """What has come of episodes."""

  known: int = 0  # that the policy is known to finish alone, but for those drawn
  drawn: int = 0  # successes with the memory's say that were drawn and that the policy finished alone too
  broken: int = 0

  def book(self, *, had_a_say: bool, success: bool, alone: bool | None) -> None:
    """See `Trust.observe`."""
    if not had_a_say:
      self.known += success
    elif success:
      self.drawn += alone is True
    else:
      self.known += alone is True
      self.broken += alone is not False


class Trust:
  """Keeps the account of a stream, or of several together, and says in which episodes the memory has a say."""

  def __init__(self, config: TrustConfig = TrustConfig()):
    self._config = config
    self._all = _Account()
    self._of: collections.defaultdict[str, _Account] = collections.defaultdict(_Account)  # by stream
    self._under_way: set[tuple[str, int]] = set()  # episodes with a say of the memory, any of which may be broken

  @property
  def broken(self) -> int:
    """Episodes so far that the policy alone would have finished, and that the memory broke."""
    return self._all.broken

  @property
  def worked(self) -> int:
    """Episodes so far that the policy alone would have finished, at least."""
    return self._worked(self._all)

  def _worked(self, account: _Account) -> int:
    return account.known + least_total(account.drawn, self._config.share, 1 - self._config.confidence)

  def speaks(self, stream: str = "") -> bool:
    """Returns whether the memory may have a say in one more episode of a stream.

    Where several share the account, one that has broken more than it earned itself waits until the others have earned
    that once more: they have the better use for it.
    """
    config, own = self._config, self._of[stream]
    excess = max(0.0, own.broken - config.broken_max * self._worked(own) - config.forgiven)
    at_worst = self.broken + len(self._under_way) + 1 + excess
    # Not a hair below the limit by rounding, say of 0.02 * 150.
    return at_worst <= config.broken_max * self.worked + config.forgiven + 1e-9

  def launch(self, job: Job, stream: str = "") -> Job:
    """Returns the job with `trust` 1 where the memory has a say and 0 where the policy acts alone."""
    if not self._config.promises or job.rewind is not None or job.attempt or job.repeat:
      return job
    speaks = self.speaks(stream)
    if speaks:
      self._under_way.add((stream, job.seed))
    return dataclasses.replace(job, trust=float(speaks))

  def observe(self, seed: int, *, had_a_say: bool, success: bool, alone: bool | None = None, stream: str = "") -> None:
    """Takes note of how an episode ended. A resumed stream tells all of its logged ones again, in their order.

    Args:
      had_a_say: without one it is the policy's own episode.
      success: of the policy, with what the memory said and without a helper.
      alone: whether it succeeded alone when the episode was repeated; None if that is not known.
    """
    self._under_way.discard((stream, seed))
    for account in (self._all, self._of[stream]):
      account.book(had_a_say=had_a_say, success=success, alone=alone)

  def crashed(self, seed: int, stream: str = "") -> None:
    """Takes note of an episode that says nothing."""
    self._under_way.discard((stream, seed))


@functools.lru_cache(maxsize=4096)
def least_total(drawn: int, share: float, alpha: float) -> int:
  """Returns how many things there are at least if so many of them were drawn, each with probability `share`.

  Over all numbers that were ever drawn of a growing number of things, it is too large with probability alpha at most.
  """
  count = drawn
  if share < 1:
    while anytime.log_e_value(drawn, count - drawn, share, low=share) >= math.log(1 / alpha):
      count += 1
  return count
