"""What a policy asks of its memory: neighbours with distances in key units, trust and what else its rule reads."""

import itertools
import math
import threading
from collections.abc import Iterable, Mapping

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.neighbours import Neighbours
from pi0rag_jax.memory.placebo import ShuffledMemory
from pi0rag_jax.memory.record import Record, origin
from pi0rag_jax.policy import keys
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import credit, paths
from pi0rag_jax.steering.rules import SteeringConfig, reads_residuals

_LEAST_UNIT = 1e-9  # where all keys are alike
_UNSETTLED = -1  # no count of removals
PREPARED_AT_ONCE = 256  # records; alignment holds a T x T table for each


class UnitDistance:
  """The unit of distance of a memory whose policy nobody calibrated, measured on the memory's own first episodes.

  The median distance from a record's key to the nearest one of another episode, as `train.calibrate` measures it on
  demonstrations. It settles once the first EPISODES are whole; with records of one episode alone, nothing is near. It
  follows from what the memory holds, not from when it was asked or what was taken out of it before; of a memory on a
  server, whose records no decision may wait for, a thread brings it up to date.
  """

  EPISODES, RECORDS = 20, 2048

  def __init__(self, memory: Memory | ShuffledMemory):
    self._memory, self._seen, self._value, self._settled = memory, (-1, -1), math.inf, False
    self._measuring = threading.Lock()
    if memory.remote:
      self._seen = self._now()
      self._measure()

  def __float__(self) -> float:
    now = self._now()
    if now != self._seen and not (self._settled and now[1] == self._seen[1]):
      if not self._memory.remote:
        self._seen = now
        self._measure()
      elif self._measuring.acquire(blocking=False):
        self._seen = now
        threading.Thread(target=self._measure_aside, daemon=True).start()
    return self._value

  def _now(self) -> tuple[int, int]:
    return len(self._memory), self._memory.removals

  def _measure_aside(self) -> None:
    try:
      self._measure()
    except Pi0RagError:  # the server is away: what is known goes on, until something changes again
      pass
    finally:
      self._measuring.release()

  def _measure(self) -> None:
    records, episodes = [], set()
    for _, record in itertools.islice(self._memory.records(), self.RECORDS):
      episodes.add(origin(record))
      if len(episodes) > self.EPISODES:
        break
      records.append(record)
    self._value = measured_unit(records)
    self._settled = len(episodes) > self.EPISODES or len(records) == self.RECORDS


def measured_unit(records: Iterable[Record]) -> float:
  """Returns the median distance from a record's key to the nearest one of another episode; infinity without one."""
  rows = [(record.key, origin(record)) for record in records]
  episode_N = np.unique([episode for _, episode in rows], return_inverse=True)[1] if rows else np.zeros(0, int)
  if not episode_N.any():
    return math.inf
  return max(keys.unit_distance(np.stack([key_E for key_E, _ in rows]), episode_N), _LEAST_UNIT)


class Retriever:
  """Queries a memory and adds what steering needs: distances in key units, trust and aligned residuals.

  Residuals depend on the record alone, so each is computed once: those that the memory holds now are computed
  here, those of later records at their first retrieval. Trust is worked out anew at every call, from counts that the
  memory's index holds. A placebo's records are those that the memory holds now.
  """

  def __init__(self, memory: Memory, config: SteeringConfig, space: ActionSpace, *, unit_distance: float | None,
               noise: Mapping[int, np.ndarray] | None = None):
    """Takes the parts.

    Args:
      unit_distance: by which distances of keys are divided; None measures it on the memory's own first episodes.
      noise: float32[T, X] by record id, for a rule that retrieves it; the others count as not there.
    """
    if config.shuffle_seed is None:
      self._memory = memory
    else:
      self._memory = ShuffledMemory(memory, config.shuffle_seed, plans=config.shuffle_plans)
    self._config = config
    self._space = space
    self._unit_distance = unit_distance if unit_distance is not None else UnitDistance(self._memory)
    self._residuals: dict[int, np.ndarray] = {}  # float16[T, A] by record id
    self._removals = self._memory.removals
    self._lock = threading.Lock()
    self._noise = noise
    self._with_residuals = reads_residuals(config)
    if self._with_residuals:
      self._prepare()

  def __call__(self, keys_BE) -> dict[str, np.ndarray]:
    """Returns the neighbours of keys, as `steering.steer` takes them, and their `ids_BK` (-1 where masked)."""
    before = self._memory.removals
    found = self._memory.query(np.asarray(keys_BE, np.float32), self._config.k, kinds=self._config.kinds)
    # Where others took records away meanwhile, nobody knows of which ones these are: nothing is kept of them.
    return self._answer(found, before if before == self._memory.removals else _UNSETTLED)

  @property
  def unit_distance(self) -> float:
    """By which distances of keys are divided."""
    return float(self._unit_distance)

  def empty(self, batch: int) -> dict[str, np.ndarray]:
    """Returns the answer of a memory with nothing in it: all masked."""
    return self._answer(Neighbours.empty(batch, self._config.k, self._memory.header), self._removals)

  def _answer(self, found: Neighbours, removals: int) -> dict[str, np.ndarray]:
    memory, unit = self._memory, self.unit_distance
    # Without a unit nothing is near.
    distance_BK = found.distances_BK / unit if math.isfinite(unit) else np.full_like(found.distances_BK, np.inf)
    answer = {
        "ids_BK": found.ids_BK.astype(np.int32),
        "distance_BK": distance_BK.astype(np.float32),
        "mask_BK": found.mask_BK,
        "kind_BK": found.kind_BK,
        "trust_BK": credit.trust(found, self._config, episodes=memory.episodes, successes=memory.successes),
        "base_BKTA": found.base_BKTA,
        "corrected_BKTA": found.corrected_BKTA,
    }
    if self._noise is not None:
      answer |= self._noise_of(found, self._noise)
    return answer | {"residual_BKTA": self._residuals_of(found, removals)} if self._with_residuals else answer

  @staticmethod
  def _noise_of(found: Neighbours, noise: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the noise of each neighbour, float32[B, K, T, X], and which have any."""
    nothing_TX = np.zeros_like(next(iter(noise.values()))) if noise else np.zeros(found.base_BKTA.shape[2:], np.float32)
    rows = [noise.get(identity, nothing_TX) for identity in found.ids_BK.ravel().tolist()]
    known_BK = np.array([identity in noise for identity in found.ids_BK.ravel().tolist()], bool)
    return {"noise_BKTX": np.stack(rows).reshape(*found.ids_BK.shape, *nothing_TX.shape),
            "mask_BK": found.mask_BK & known_BK.reshape(found.ids_BK.shape)}

  def _residuals_of(self, found: Neighbours, removals: int) -> np.ndarray:
    """Returns the path residual of each neighbour, zero where there is none. float32[B, K, T, A]"""
    mask_BK = found.mask_BK
    residual_BKTA = np.zeros(found.corrected_BKTA.shape, np.float32)
    ids_N, where_N, inverse_N = np.unique(found.ids_BK[mask_BK], return_index=True, return_inverse=True)
    with self._lock:
      if removals != self._removals or removals == _UNSETTLED:  # an undo frees ids, which come again
        self._removals = removals
        self._residuals.clear()
      new_N = np.array([i not in self._residuals for i in ids_N.tolist()], bool)
      if new_N.any():
        first = where_N[new_N]
        self._derive(ids_N[new_N], found.base_BKTA[mask_BK][first], found.corrected_BKTA[mask_BK][first])
      if len(ids_N):
        known_NTA = np.stack([self._residuals[i] for i in ids_N.tolist()])
        residual_BKTA[mask_BK] = known_NTA[inverse_N]
    return residual_BKTA

  def _prepare(self) -> None:
    """Computes the residuals of all records in the memory, some at a time."""
    records = self._memory.records()
    while part := list(itertools.islice(records, PREPARED_AT_ONCE)):
      self._derive(np.array([identity for identity, _ in part]), np.stack([r.base_chunk for _, r in part]),
                   np.stack([r.corrected_chunk for _, r in part]))

  def _derive(self, ids_N, base_NTA, corrected_NTA) -> None:
    base_NTA, corrected_NTA = base_NTA.astype(np.float32), corrected_NTA.astype(np.float32)
    aligned = paths.aligned_residual(base_NTA, corrected_NTA, self._space, band=self._config.band)
    self._residuals.update(zip(ids_N.tolist(), aligned.astype(np.float16)))
