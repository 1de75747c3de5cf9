"""What a rule needs that was worked out from a whole memory beforehand, and not from the neighbours of a decision."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.steering import rules

_NETWORK = "network."  # before the names of a network's arrays in a file
_IDS, _NOISE = "ids_M", "noise_MTX"


@dataclasses.dataclass(frozen=True)
class Fit:
  """What was fitted to the records that a memory held at one time."""

  network: Mapping[str, np.ndarray] | None = None  # see steering.networks
  noise: Mapping[int, np.ndarray] | None = None  # float32[T, X] by record id, from where the policy's own flow starts

  @property
  def nbytes(self) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for part in (self.network, self.noise) for array in (part or {}).values())

  def check(self, rule: rules.SteeringConfig) -> None:
    """Raises Pi0RagError where a rule needs what is not there."""
    if rules.asks_network(rule) and self.network is None:
      raise Pi0RagError(f"steering method '{rule.method}' asks a network, and none was fitted to the memory: give the "
                        "agent its fit, as a sweep does")
    if rules.asks_for_noise(rule) and not rules.asks_network(rule) and self.noise is None:
      raise Pi0RagError(f"steering method '{rule.method}' retrieves noise, which the records do not have: give the "
                        "agent its fit, as a sweep does")

  def save(self, path: pathlib.Path) -> None:
    """Writes a .npz that is whole or absent."""
    arrays: dict[str, Any] = {_NETWORK + name: array for name, array in (self.network or {}).items()}
    if self.noise is not None:
      arrays |= {_IDS: np.array(list(self.noise), np.int64), _NOISE: np.stack(list(self.noise.values()))}
    files.write(path, lambda file: np.savez(file, **arrays))

  @classmethod
  def load(cls, path: pathlib.Path) -> "Fit":
    """Returns what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
      network = {name.removeprefix(_NETWORK): file[name] for name in file.files if name.startswith(_NETWORK)}
      noise = dict(zip(file[_IDS].tolist(), file[_NOISE])) if _IDS in file.files else None
    return cls(network or None, noise)


UNFITTED = Fit()
