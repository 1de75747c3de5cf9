"""What a robot is: how its dictionaries become a model's entries, and what the numbers of its actions mean.

A letter beyond the project's key: `X` is the model's action dim, to which a robot's is padded.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.limits import Limits
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.teleop import Teleop
from pi0rag_jax.robots.transforms import AbsoluteActions, DeltaActions, Transform

# Below this spread an entry of the actions does not move in the demonstrations.
_LEAST_SPREAD = 1e-3


@dataclasses.dataclass(frozen=True)
class ActionSpace:
  """What the A numbers of an action mean: all that steering knows of a robot.

  A path is what actions come to: the running sum of entries that integrate, the entries themselves elsewhere. Costs
  compare paths; a cost of 1 is about 1 cm, 0.33 rad, or half of a gripper's stroke.
  """

  integrates: tuple[bool, ...]  # [A] True: a change per tick, such as a velocity; False: a place, such as a joint angle
  cost: tuple[float, ...]  # [A] of one unit of the path
  low: tuple[float, ...]  # [A] per tick, in the robot's units; -inf where no limit is known
  high: tuple[float, ...]
  together: tuple[tuple[int, ...], ...] = ()  # entries whose costs make one Euclidean norm, such as x, y, z
  reach: tuple[float, ...] = ()  # [A] the most by which a path may be displaced; () bounds nothing

  def __post_init__(self):
    for name in ("cost", "low", "high", *(("reach",) if self.reach else ())):
      values = getattr(self, name)
      if len(values) != self.dim or any(math.isnan(value) for value in values):
        raise Pi0RagError(f"action space: {name} is {values}, allowed: {self.dim} numbers, as many as integrates has")
    if not self.dim or min(self.cost) < 0 or not all(map(math.isfinite, self.cost)):
      raise Pi0RagError(f"action space: cost is {self.cost}, allowed: finite numbers of 0 or more, one at least")
    if any(low > high for low, high in zip(self.low, self.high)):
      raise Pi0RagError(f"action space: low {self.low} exceeds high {self.high}")
    grouped = [entry for group in self.together for entry in group]
    if len(set(grouped)) < len(grouped) or not set(grouped) <= set(range(self.dim)):
      raise Pi0RagError(f"action space: together is {self.together}, allowed: groups of different entries below "
                        f"{self.dim}")

  @property
  def dim(self) -> int:
    """A."""
    return len(self.integrates)

  @functools.cached_property
  def fingerprint(self) -> str:
    """A short hash: a memory of another action space holds other numbers."""
    return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

  def to_dict(self) -> dict:
    """Returns plain JSON values; None stands for infinity."""
    finite = lambda value: value if isinstance(value, (bool, tuple)) or math.isfinite(value) else None  # noqa: E731
    return {name: list(map(finite, values)) for name, values in dataclasses.asdict(self).items()}

  @classmethod
  def of_stats(cls, actions: NormStats, integrates: Sequence[bool] | None = None) -> "ActionSpace":
    """Returns the space of a robot that declares none: one spread of its demonstrations' actions costs 1.

    Args:
      actions: of the robot's actions.
      integrates: [A]; None takes every entry for a place.
    """
    spread_A = np.maximum(np.asarray(actions.std, float), _LEAST_SPREAD)
    infinite = (math.inf,) * actions.dim
    return cls(tuple(integrates or (False,) * actions.dim), tuple((1.0 / spread_A).tolist()),
               tuple(-value for value in infinite), infinite)


@dataclasses.dataclass(frozen=True)
class ActionMap:
  """A robot's action as scaled and shifted entries of the model's; works on arrays of numpy and of jax alike."""

  index: tuple[int, ...]  # [A] which entry of the model's
  scale: tuple[float, ...]
  shift: tuple[float, ...]
  relative: tuple[bool, ...] = ()  # of the model's first entries: those that are relative to the state

  def to_robot(self, actions_BTX, state_BP=None):
    """Returns float[..., T, A] in the robot's units of the model's actions, unnormalized.

    Args:
      state_BP: float[..., P], the model's state before normalization; needed where entries are relative.
    """
    if self.is_identity:
      return actions_BTX[..., : len(self.index)]
    actions_BTA = actions_BTX[..., list(self.index)] + self._reference(actions_BTX, state_BP)
    dtype = actions_BTA.dtype
    return actions_BTA * np.asarray(self.scale, dtype) + np.asarray(self.shift, dtype)

  def to_model(self, actions_BTA, state_BP=None):
    """Returns float[..., T, X'] of the model's first X' entries, those that the robot has none of zero.

    Args:
      state_BP: see `to_robot`.
    """
    if self.is_identity:
      return actions_BTA
    dtype = actions_BTA.dtype
    actions_BTA = (actions_BTA - np.asarray(self.shift, dtype)) / np.asarray(self.scale, dtype)
    actions_BTA = actions_BTA - self._reference(actions_BTA, state_BP)
    place = {entry: at for at, entry in enumerate(self.index)}
    columns = [actions_BTA[..., place[entry]] if entry in place else actions_BTA[..., 0] * 0
               for entry in range(max(self.index) + 1)]
    return (np if isinstance(actions_BTA, np.ndarray) else jnp).stack(columns, axis=-1)

  @property
  def is_identity(self) -> bool:
    """Whether the robot's action is the first entries of the model's, as they are."""
    plain = set(self.scale) == {1.0} and set(self.shift) == {0.0}
    return plain and self.index == tuple(range(len(self.index))) and not any(self.relative)

  def _reference(self, actions, state_BP):
    """Returns what is added to relative entries, [..., 1, A], or 0 where none is."""
    relative_A = [entry < len(self.relative) and self.relative[entry] for entry in self.index]
    if not any(relative_A):
      return np.zeros((), actions.dtype)
    entries = [entry if relative else 0 for entry, relative in zip(self.index, relative_A)]
    return state_BP[..., None, entries].astype(actions.dtype) * np.asarray(relative_A, actions.dtype)


@dataclasses.dataclass(frozen=True)
class Robot:
  """A robot's dictionaries and its actions."""

  name: str
  inputs: Transform  # an observation, or a data set's sample with `actions`, to the model's `image`, `state`, `prompt`
  outputs: Transform  # {actions: the model's float[T, X], unnormalized} to {actions: the robot's float[T, A]}
  actions: ActionSpace | None = None  # None: `ActionSpace.of_stats` of its policy's statistics
  example: Callable[[], dict] | None = None  # an observation of zeros, to compile a policy with
  tick_s: float = 0.05  # between two actions
  relative: tuple[bool, ...] | None = None  # actions that the model predicts relative to the state; None: none
  teleop: Teleop | None = None  # how a person drives it; None where actions do not displace the tool
  limits: Limits = Limits()  # beyond those of `actions`: of the places that these lead to

  def observe(self, raw: Mapping) -> dict:
    """Returns the model's entries of a observation or sample: `image`, `state`, `prompt`, `actions`, ..."""
    return DeltaActions(self.relative)(self.inputs(dict(raw)))

  def to_robot(self, actions_TX, state_P) -> np.ndarray:
    """Returns the robot's actions [T, A] of the model's, unnormalized; `state_P` is the model's, likewise."""
    data = AbsoluteActions(self.relative)({"actions": np.asarray(actions_TX), "state": np.asarray(state_P)})
    return self.outputs(data)["actions"]

  def action_map(self, model_dim: int) -> ActionMap:
    """Returns how the robot's actions follow from the model's, measured on `outputs`.

    Errors: Pi0RagError where an entry is no scaled and shifted entry of the model's.
    """
    basis_TX = np.concatenate([np.zeros((1, model_dim)), np.eye(model_dim)])
    outputs = lambda actions_TX: np.asarray(self.outputs({"actions": actions_TX})["actions"], float)  # noqa: E731
    shift_A, *rows = outputs(basis_TX)
    matrix_XA = np.stack(rows) - shift_A
    index_A = np.abs(matrix_XA).argmax(axis=0)
    scale_A = matrix_XA[index_A, np.arange(len(index_A))]
    trial_TX = np.random.default_rng(0).standard_normal((4, model_dim))
    if not (scale_A.all() and np.allclose(outputs(trial_TX), trial_TX[:, index_A] * scale_A + shift_A, atol=1e-6)):
      raise Pi0RagError(f"the robot '{self.name}' mixes entries of its actions: rules within the flow and the feeding "
                        "'callback' need actions that are the model's entries, each scaled and shifted")
    # What is measured of a plain entry is one by rounding.
    near = lambda values_A, value: np.where(np.abs(values_A - value) < 1e-9, value, values_A)  # noqa: E731
    scale_A, shift_A = near(near(scale_A, 1.0), -1.0), near(shift_A, 0.0)
    return ActionMap(tuple(index_A.tolist()), tuple(scale_A.tolist()), tuple(shift_A.tolist()), self.relative or ())
