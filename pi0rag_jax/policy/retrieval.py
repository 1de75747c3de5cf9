"""Between the memory and the policy: neighbours with their path residuals, fed to jax in one of two ways.

`overlap` searches on a host thread while the device denoises; `callback` searches inside the jitted policy.
Both hand the same arrays to the same steering.
"""

import threading

import numpy as np

from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import paths
from pi0rag_jax.policy.spec import ActionLayout
from pi0rag_jax.policy.steering import SteeringConfig


class Retriever:
  """Queries a memory and adds what steering needs: distances in key units and aligned residuals.

  Residuals depend on the record alone, so each is computed once, at the record's first retrieval.
  """

  def __init__(self, memory: Memory, config: SteeringConfig, layout: ActionLayout, *, unit_distance: float):
    self._memory = memory
    self._config = config
    self._layout = layout
    self._unit_distance = unit_distance
    self._residuals: dict[int, np.ndarray] = {}
    self._lock = threading.Lock()
    # Corrections come first in a query's answer, half of it: without anchors, ask for twice as many.
    self._query_k = config.k if config.anchors else 2 * config.k

  def __call__(self, keys_BE) -> dict[str, np.ndarray]:
    """Returns the neighbours of keys, as `steering.steer` takes them, and their `ids_BK` (-1 where masked)."""
    found = self._memory.query(np.asarray(keys_BE, np.float32), self._query_k)
    kept = slice(None) if self._config.anchors else slice(0, self._config.k)
    mask_BK = found.mask_BK[:, kept]
    corrected_BKTA = np.asarray(found.corrected_BKTA[:, kept], np.float32)
    return {
        "ids_BK": np.where(mask_BK, found.ids_BK[:, kept], -1).astype(np.int32),
        "distance_BK": (found.distances_BK[:, kept] / self._unit_distance).astype(np.float32),
        "mask_BK": mask_BK,
        "corrected_BKTA": corrected_BKTA,
        "residual_BKTA": self._residuals_of(found.ids_BK[:, kept], mask_BK, found.base_BKTA[:, kept],
                                            corrected_BKTA),
    }

  def empty(self, batch: int, chunk_shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns the answer of a memory with nothing in it: all masked."""
    k = self._config.k
    return {
        "ids_BK": np.full((batch, k), -1, np.int32),
        "distance_BK": np.full((batch, k), np.inf, np.float32),
        "mask_BK": np.zeros((batch, k), bool),
        "corrected_BKTA": np.zeros((batch, k, *chunk_shape), np.float32),
        "residual_BKTA": np.zeros((batch, k, *chunk_shape), np.float32),
    }

  def _residuals_of(self, ids_BK, mask_BK, base_BKTA, corrected_BKTA) -> np.ndarray:
    residual_BKTA = np.zeros(corrected_BKTA.shape, np.float32)
    with self._lock:
      ids_N, where_N = np.unique(ids_BK[mask_BK], return_index=True)
      new = np.array([i not in self._residuals for i in ids_N], bool)
      if new.any():
        first = where_N[new]
        aligned = paths.aligned_residual(base_BKTA[mask_BK][first], corrected_BKTA[mask_BK][first],
                                         self._layout, band=self._config.band)
        self._residuals.update(zip(ids_N[new].tolist(), aligned))
      for b, k in zip(*np.nonzero(mask_BK)):
        residual_BKTA[b, k] = self._residuals[int(ids_BK[b, k])]
    return residual_BKTA
