"""When a policy's evaluation may stop early: once it is decided against every policy without memory.

Pairs are looked at in the order of the seeds, whichever episode ended first: failures take longer, and an order that
depends on outcomes would decide too often. So the episodes of a stopped evaluation are the first ones of the whole.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from eval.records import EpisodeRecord
from pi0rag_jax import anytime


class Decision:
  """Whether a policy is clearly better or worse than each control, by a test that may be looked at after every pair."""

  def __init__(self, controls: Sequence[Iterable[EpisodeRecord]]):
    self._before = [{r.seed: r.policy_succeeded for r in records if not r.crashed} for records in controls]
    self._better: list[list[bool]] = [[] for _ in controls]
    self._open = set(range(len(controls)))

  def add(self, record: EpisodeRecord) -> bool:
    """Returns whether all is decided, once this episode, the next one by its seed, is known."""
    for control, (before, better) in enumerate(zip(self._before, self._better)):
      pairs = not record.crashed and record.seed in before
      if pairs and before[record.seed] != record.policy_succeeded:
        better.append(record.policy_succeeded)
        if anytime.fair_p_value(better) <= anytime.ALPHA:
          self._open.discard(control)
    return not self._open


def in_order(seeds: Iterable[int], done: Mapping[int, EpisodeRecord], new: Iterator[EpisodeRecord]
             ) -> Iterator[EpisodeRecord]:
  """Yields the episodes of some seeds in their order, as soon as that is possible.

  Args:
    done: those that are there, by seed.
    new: yields the others in any order; it is asked only for what is needed next.
  """
  there = dict(done)
  for seed in seeds:
    while seed not in there:
      record = next(new)
      there[record.seed] = record
    yield there.pop(seed)
