"""How retrieved records change an action chunk: pure functions, and the presets that configurations name.

`residual` (the default) adds the kernel-weighted mean of the neighbours' path residuals; anchors, which
record that little or no change worked, hold it back where the policy was right. `blend` is the textbook
recipe, kept as a baseline: the chunk moves a part of the way to the nearest stored corrections.
With nothing in range both return the base chunk bit for bit.
"""

import dataclasses

import jax.numpy as jnp

from pi0rag_jax import errors
from pi0rag_jax.policy import paths
from pi0rag_jax.policy.spec import ActionLayout


@dataclasses.dataclass(frozen=True)
class SteeringConfig:
  """Tunables of a steering rule. Distances are in units of the median distance between demonstration keys."""

  method: str = "residual"
  k: int = 8  # neighbours, half corrections and half anchors
  tau: float = 0.5  # kernel width
  range: float = 1.5  # a neighbour farther than this is not there
  regularization: float = 0.05  # lambda: pulls to the base policy where all weights are small
  alpha: float = 1.0  # share of the residual that is added, or of the blend
  clip_m: float = 0.10  # bound of the displacement of the path, per axis
  band: int = 6  # ticks, see paths.aligned_residual
  anchors: bool = True  # False: only corrections are retrieved
  anchor_weight: float = 0.3  # of an anchor against a correction: early anchors say "no change" where one is missing


PRESETS = {
    "residual": SteeringConfig(),
    # k = 3, a threshold, alpha 0.3 and a clamp: what retrieval-augmented policies usually do. The threshold is the best
    # of 0.5, 1 and 1.5 on tuning seeds (camera_shift: 58, 59 and 68 % of 96, 58 % without memory).
    "textbook": SteeringConfig(method="blend", k=3, range=1.5, alpha=0.3, anchors=False),
}


def preset(name: str, **changes) -> SteeringConfig:
  """Returns a named preset with some fields changed.

  Errors: Pi0RagError for an unknown preset, field or method.
  """
  if name not in PRESETS:
    raise errors.unknown_name("steering preset", name, PRESETS)
  fields = {f.name for f in dataclasses.fields(SteeringConfig)}
  for field in changes:
    if field not in fields:
      raise errors.unknown_name("steering field", field, fields)
  config = dataclasses.replace(PRESETS[name], **changes)
  if config.method not in METHODS:
    raise errors.unknown_name("steering method", config.method, METHODS)
  return config


def steer(base_BTA, neighbours, config: SteeringConfig, layout: ActionLayout):
  """Returns the chunk to execute and the number of neighbours that had a say.

  Args:
    base_BTA: float[B, T, A], the policy's own chunk, in the robot's units.
    neighbours: dict with residual_BKTA float (path displacement), corrected_BKTA float (chunk),
      distance_BK float (in key units), is_correction_BK bool and mask_BK bool.
  Returns:
    (actions_BTA, used_B int): with used 0 the base chunk, bit for bit.
  """
  in_range_BK = neighbours["mask_BK"] & (neighbours["distance_BK"] <= config.range)
  steered_BTA = METHODS[config.method](base_BTA, neighbours, in_range_BK, config, layout)
  used_B = in_range_BK.sum(axis=-1)
  return jnp.where(used_B[:, None, None] > 0, steered_BTA, base_BTA), used_B


def residual_steering(base_BTA, neighbours, in_range_BK, config: SteeringConfig, layout: ActionLayout):
  """Returns base path + alpha * kernel-weighted residual, as a chunk within the action limits.

  w = exp(-d^2 / (2 tau^2)), less for anchors; r = sum(w r) / (sum(w) + lambda). Source: the project's learning notes.
  """
  kind_BK = jnp.where(neighbours["is_correction_BK"], 1.0, config.anchor_weight)
  weight_BK = kind_BK * jnp.where(in_range_BK, jnp.exp(-jnp.square(neighbours["distance_BK"] / config.tau) / 2), 0.0)
  total_B = weight_BK.sum(axis=-1) + config.regularization
  residual_BTA = jnp.einsum("BK,BKTA->BTA", weight_BK, neighbours["residual_BKTA"]) / total_B[:, None, None]
  bound_A = _bound(config, layout)
  residual_BTA = config.alpha * jnp.clip(residual_BTA, -bound_A, bound_A)
  return paths.from_path(paths.to_path(base_BTA, layout) + residual_BTA, layout)


def blend_steering(base_BTA, neighbours, in_range_BK, config: SteeringConfig, layout: ActionLayout):
  """Returns base + alpha * clamp(mean of the corrected chunks in range - base), entry by entry."""
  weight_BK = in_range_BK / jnp.maximum(in_range_BK.sum(axis=-1, keepdims=True), 1)
  target_BTA = jnp.einsum("BK,BKTA->BTA", weight_BK, neighbours["corrected_BKTA"])
  low_A, high_A = jnp.asarray(layout.low, jnp.float32), jnp.asarray(layout.high, jnp.float32)
  difference_BTA = jnp.clip(target_BTA - base_BTA, low_A - high_A, high_A - low_A)
  return jnp.clip(base_BTA + config.alpha * difference_BTA, low_A, high_A)


METHODS = {"residual": residual_steering, "blend": blend_steering}


def _bound(config: SteeringConfig, layout: ActionLayout):
  """Returns the largest displacement per action entry: only positions are bounded by `clip_m`."""
  bound = [float("inf")] * layout.dim
  for axis in layout.position:
    bound[axis] = config.clip_m
  return jnp.asarray(bound, jnp.float32)
