"""Real-time chunking: a chunk that goes on where the one before it is still being executed.

A robot that does not stop while its policy thinks executes the old chunk meanwhile. What of it will be over when the
new one arrives is frozen; the rest of the overlap is what the new one is led to, less and less.
Source: Black et al., real-time execution of action chunking flow policies (arXiv 2506.07339), soft masking.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.robot import ActionSpace

# What an observation may say of the chunk that is still being executed: {"passed": ticks, "delay": ticks}.
ENTRY = "real_time"
REMEMBERED = 10  # delays of a client, of which the longest is expected next

@flax.struct.dataclass
class Lead:
  """What the chunks of a batch go on from; a row of weights of zeros goes on from nothing."""

  previous_BTA: np.ndarray  # float32, in the robot's units, from now on; zeros where there is none any more
  weight_BT: np.ndarray  # float32 in [0, 1]; 1 where it is executed whatever comes

  def padded(self, rows: int) -> "Lead":
    """Returns it with the last row repeated, as batches are padded."""
    missing = rows - len(self.weight_BT)
    grown = lambda array: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])  # noqa: E731
    return Lead(grown(self.previous_BTA), grown(self.weight_BT))


@dataclasses.dataclass(frozen=True)
class Overlap:
  """What is left of an executed chunk when a new one is asked for."""

  chunk_TA: np.ndarray  # the one before, whole, in the robot's units
  passed: int  # ticks of it that were executed when the new one's observation was made
  delay: int  # ticks of it that will still be executed before the new one is there

  def __post_init__(self):
    horizon = len(self.chunk_TA)
    if self.passed < 0 or self.delay < 0:
      raise Pi0RagError(f"of the chunk before {self.passed} ticks have passed and {self.delay} are to come; allowed: 0 "
                        "or more")
    if self.passed + self.delay > horizon:
      raise Pi0RagError(f"a chunk has {horizon} actions: after {self.passed} of them a delay of {self.delay} ticks is "
                        "longer than what is left; ask earlier, or make the policy faster")


def lead(overlaps: Sequence[Overlap | None], horizon: int, dim: int) -> Lead:
  """Returns what chunks of `horizon` ticks go on from, one row for each; None is an episode's first."""
  previous_BTA = np.zeros((len(overlaps), horizon, dim), np.float32)
  weight_BT = np.zeros((len(overlaps), horizon), np.float32)
  for row, overlap in enumerate(overlaps):
    if overlap is not None:
      left_TA = overlap.chunk_TA[overlap.passed :]
      previous_BTA[row, : len(left_TA)] = left_TA
      weight_BT[row] = weights(horizon, overlap.delay, len(left_TA))
  return Lead(previous_BTA, weight_BT)


def weights(horizon: int, delay: int, known: int) -> np.ndarray:
  """Returns float32[horizon]: 1 for the ticks of the delay, then falling to 0 at the `known` ones' end."""
  tick_T = np.arange(horizon)
  share_T = np.clip((known - tick_T) / (known - delay + 1), 0.0, 1.0)
  soft_T = share_T * np.expm1(share_T) / np.expm1(1.0)
  return np.where(tick_T < delay, 1.0, np.where(tick_T < known, soft_T, 0.0)).astype(np.float32)


def changed(going_BTA: np.ndarray, change_BTA: np.ndarray, lead: Lead, space: ActionSpace) -> np.ndarray:
  """Returns chunks that go on from others, with what a memory changes, the less the more those others weigh."""
  actions_BTA = going_BTA + (1 - lead.weight_BT[..., None]) * change_BTA
  inside_BTA = np.clip(actions_BTA, np.asarray(space.low, np.float32), np.asarray(space.high, np.float32))
  return np.where(change_BTA == 0, going_BTA, inside_BTA).astype(np.float32)


def split(observation: Mapping) -> tuple[Mapping, Mapping | None]:
  """Returns (an observation without its entry, the entry); None where there is none.

  Errors: Pi0RagError for an entry that says something else.
  """
  if ENTRY not in observation:
    return observation, None
  told = observation[ENTRY]
  if not isinstance(told, Mapping) or set(told) != {"passed", "delay"} or not all(map(_is_count, told.values())):
    raise Pi0RagError(f"'{ENTRY}' is a map of two numbers of ticks, 0 or more: passed (of the chunk before, executed "
                      "by the time of this observation) and delay (still to be executed before the answer is there)")
  return {name: value for name, value in observation.items() if name != ENTRY}, told


def _is_count(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0


class Pace:
  """How the chunks of one client overlap: as it says, or by the clock, for clients that say nothing."""

  def __init__(self, tick_s: float, clock: Callable[[], float] = time.perf_counter):
    self._tick_s, self._clock = tick_s, clock
    self._chunk_TA: np.ndarray | None = None
    self._seen_s = 0.0  # when the last observation came
    self._delays_s: collections.deque[float] = collections.deque(maxlen=REMEMBERED)

  def seen(self, told: Mapping | None) -> Overlap | None:
    """Returns the overlap of the chunk before with the one that an observation asks for now; None where none is left.

    Errors: Pi0RagError for a delay, as a client says it, that is longer than what is left.
    """
    now_s = self._clock()
    before_s, self._seen_s = self._seen_s, now_s
    if self._chunk_TA is None:
      return None
    if told is not None:
      return Overlap(self._chunk_TA, int(told["passed"]), int(told["delay"]))
    passed = round((now_s - before_s) / self._tick_s)
    delay = math.ceil(max(self._delays_s) / self._tick_s)
    # By the clock a robot that has come to its chunk's end stands still, or has begun another episode.
    return Overlap(self._chunk_TA, passed, delay) if passed + delay <= len(self._chunk_TA) else None

  def answered(self, chunk_TA: np.ndarray) -> None:
    """Takes note of the answer to the observation that was seen last."""
    self._delays_s.append(self._clock() - self._seen_s)
    self._chunk_TA = chunk_TA
