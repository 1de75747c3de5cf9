"""How soon the next chunk is asked for: a plan for the whole chunk, for every tick, or as the situation asks."""

import dataclasses

from pi0rag_jax.errors import unknown_name

OWN, COARSE, FINE, ADAPTIVE = RATES = ("own", "coarse", "fine", "adaptive")
# Mean path cost by which two plans for the same ticks differ where all is calm; 1 is about 1 cm.
CALM_COST = 0.5


@dataclasses.dataclass(frozen=True)
class Replanning:
  """How many ticks of a chunk are executed: the policy's own number, all, one, or a number that follows what happens.

  `adaptive` doubles it where all is calm, and goes back to the policy's own number where the policy contradicts what it
  had planned, or the memory speaks. To plan still sooner would do harm: a policy that contradicts itself dithers.
  """

  rate: str
  own: int  # the policy's number
  horizon: int  # of a chunk

  def __post_init__(self):
    if self.rate not in RATES:
      raise unknown_name("rate of planning", self.rate, RATES)

  @property
  def first(self) -> int:
    """Ticks of an episode's first chunk."""
    return {COARSE: self.horizon, FINE: 1}.get(self.rate, self.own)

  def following(self, steps: int, *, contradiction: float, spoke: bool) -> int:
    """Returns the ticks of a chunk that came after one of `steps`.

    Args:
      contradiction: of the two plans, see `paths.contradiction`.
      spoke: whether the memory changed the chunk.
    """
    if self.rate != ADAPTIVE:
      return self.first
    if spoke or contradiction > CALM_COST:
      return self.own
    # Not the whole chunk: without an overlap nobody knows whether the next one contradicts it.
    return max(self.own, min(2 * steps, self.horizon - max(1, self.own // 2)))
