"""A policy of a frozen backbone and a head, one robot at a time: what the head remembers is carried between decisions.

It answers from the first observation on. Call `infer` at the pace of the training windows' steps: every `stride`
frames, in `head_windows.window_rows`. A policy directory has `head.json`, the head's `params/` and `assets/`; the
backbone's weights stay in their own checkpoint, and are recognized.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models.heads import base, registry
from pi0rag_jax.models.heads.base import HeadConfig, HeadOutput
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.robots import normalize
from pi0rag_jax.typing import Params

FILE_NAME = "head.json"
ASSET_ID = "head"


@dataclasses.dataclass(frozen=True)
class HeadUnits:
  """How a head's numbers and the robot's actions turn into one another."""

  config: HeadConfig
  stats: normalize.NormStats  # of the robot's actions, the gripper's entries among them but unused
  quantile: bool = False
  closed: float = 0.0  # the gripper's action that means closed, and open
  open: float = 1.0

  def __post_init__(self):
    if self.stats.dim != self.config.action_dim:
      raise errors.Pi0RagError(f"the norm stats have {self.stats.dim} action dims, the head {self.config.action_dim}: "
                               "they belong to another robot or data set")
    if self.closed == self.open:
      raise errors.Pi0RagError(f"the gripper is open at {self.open} and closed at {self.closed}: they must differ")

  def labels(self, actions) -> np.ndarray:
    """Returns training labels float32[..., A] of the robot's actions: motion normalized, gripper 1 (open) or 0."""
    labels = normalize.normalize(np.asarray(actions, np.float64), self.stats, quantile=self.quantile)
    gripper = list(self.config.gripper_index)
    share_open = (np.asarray(actions)[..., gripper] - self.closed) / (self.open - self.closed)
    labels[..., gripper] = share_open > 0.5
    return labels.astype(np.float32)

  def actions(self, output: HeadOutput) -> np.ndarray:
    """Returns the robot's actions float32[..., T, A] of a head's answer; the gripper is commanded open or closed."""
    normalized = np.asarray(base.to_actions(self.config, output), np.float64)
    actions = normalize.unnormalize(normalized, self.stats, quantile=self.quantile)
    gripper = list(self.config.gripper_index)
    actions[..., gripper] = np.where(normalized[..., gripper] > 0.5, self.open, self.closed)
    return actions.astype(np.float32)


class HeadPolicy:
  """See the head of this file."""

  def __init__(self, extractor: FeatureExtractor, units: HeadUnits, params: Params):
    """Takes the backbone, the head's configuration and units, and the head's parameters."""
    config = units.config
    if config.feature_dim != extractor.backbone.hidden_size:
      raise errors.Pi0RagError(f"the head reads {config.feature_dim} features, the backbone gives "
                               f"{extractor.backbone.hidden_size}: it was trained on another one")
    if config.state_dim not in (0, extractor.state_stats.dim):
      raise errors.Pi0RagError(f"the head reads {config.state_dim} dims of state, the robot has "
                               f"{extractor.state_stats.dim}; allowed: all of them or 0")
    self.extractor, self.units = extractor, units
    self.params = jax.device_put(params)
    self._head = registry.make(config)
    self._advance = jax.jit(functools.partial(_advance, extractor.backbone, self._head))
    self.reset()

  def reset(self) -> None:
    """Forgets what was seen: the next observation is the first of an episode."""
    self._state = base.init_state(self._head, 1)

  def infer(self, observation: Mapping) -> dict:
    """Returns `actions` float32[T, A] in the robot's units and `policy_timing` {`infer_ms`}, the model's time.

    Args:
      observation: see FeatureExtractor.
    Errors: Pi0RagError when a camera or state does not fit; what was seen before is then kept.
    """
    obs = self.extractor.model_input([observation])
    began = time.perf_counter()
    self._state, output = self._advance(self.extractor.params, self.params, self._state, obs)
    output = jax.device_get(jax.tree.map(lambda x: x[0], output))
    infer_ms = (time.perf_counter() - began) * 1000
    return {"actions": self.units.actions(output), "policy_timing": {"infer_ms": infer_ms}}

  def save(self, directory) -> None:
    """Writes a policy directory; it must not hold parameters already."""
    directory = Path(directory)
    checkpoints.save_params(directory, self.params)
    stats = {"actions": self.units.stats.to_dict(), "state": self.extractor.state_stats.to_dict()}
    checkpoints.save_norm_stats(directory, ASSET_ID, stats)
    units = {name: getattr(self.units, name) for name in ("quantile", "closed", "open")}
    values = {"head": registry.to_dict(self.units.config), "units": units, "weights": self.extractor.weights,
              "preprocessing": self.extractor.preprocessing}
    (directory / FILE_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")

  @classmethod
  def load(cls, directory, extractor: FeatureExtractor) -> "HeadPolicy":
    """Returns the policy of a directory that `save` wrote, on its backbone.

    Errors: Pi0RagError when a part is missing, or the head was trained on other features than the extractor gives.
    """
    path = Path(directory, FILE_NAME)
    if not path.is_file():
      raise errors.Pi0RagError(f"no {FILE_NAME} in {directory}: a head's directory has it, params/ and assets/")
    values = json.loads(path.read_text(encoding="utf8"))
    for name in ("weights", "preprocessing"):
      if values[name] != getattr(extractor, name):
        raise errors.Pi0RagError(f"{directory}: the head was trained with other {name} of the backbone "
                                 f"({values[name][:16]}, given {getattr(extractor, name)[:16]})")
    config = registry.from_dict(values["head"])
    template = jax.eval_shape(functools.partial(base.init, registry.make(config)), jax.random.key(0))
    stats = checkpoints.load_norm_stats(directory, ASSET_ID)["actions"]
    units = HeadUnits(config, normalize.NormStats.from_dict(stats), **values["units"])
    return cls(extractor, units, checkpoints.load_params(directory, template=template))


def _advance(backbone, head, params: Params, head_params: Params, state, obs):
  """Returns (the next state, the head's answer): backbone and head as one program."""
  rows_BD = backbone.encode(params, obs)
  if head.config.state_dim:
    rows_BD = jnp.concatenate([rows_BD, obs.state], axis=-1)
  return base.step(head, head_params, state, rows_BD)
