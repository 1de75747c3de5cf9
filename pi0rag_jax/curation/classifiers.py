"""Classifiers that tell successful from failed episodes by what happened at their steps; a registry by name.

All are called as `module.apply(variables, inputs_BTF, mask_BT, train=...)`, `F` the width of a step's inputs, which
comes from the data. One that judges steps answers with logits float32[B, T], one that judges episodes with
float32[B]. Steps that the mask leaves out never matter. `success_weight` is for the training.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import flow
from pi0rag_jax.models.heads.mlp import MlpTrunk
from pi0rag_jax.models.heads.transformer import Block, TransformerConfig

POOLS = ("mean", "max", "max_min")
# Of the sinusoidal positions: from one step in 2 pi to 10,000 times as slow, as transformers have them.
MIN_PERIOD, MAX_PERIOD = 2 * np.pi, 2 * np.pi * 10_000
# Of a success against a failure: Demo-SCORE's. The threshold of its rule rises with the scores; a fixed one would not,
# so classifiers with that rule weigh both the same.
DEMO_SCORE_WEIGHT, EVEN_WEIGHT = 4.0, 1.0
# The rules of `thresholds` that go with classifiers of steps, whose scores lie anywhere, and of whole episodes.
STEP_RULE, EPISODE_RULE = "demo_score", "fixed"


class StepMLP(nn.Module):
  """Judges every step by itself, as Demo-SCORE does; so small that it cannot know the rollouts by heart."""

  hidden: tuple[int, ...] = (8, 8)
  dropout: float = 0.3
  success_weight: float = DEMO_SCORE_WEIGHT

  per_step: ClassVar[bool] = True
  default_rule: ClassVar[str] = STEP_RULE

  @nn.compact
  def __call__(self, inputs_BTF, mask_BT, *, train: bool = False):
    """Returns logits float32[B, T]."""
    return nn.Dense(1)(MlpTrunk(self.hidden, self.dropout)(inputs_BTF, train=train))[..., 0]


class PrefixClassifier(nn.Module):
  """Judges every step by the embedding of the policy's prefix, pooled here where it is a sequence of tokens."""

  hidden: tuple[int, ...] = (128, 64)
  dropout: float = 0.3
  success_weight: float = DEMO_SCORE_WEIGHT
  tokens: int = 1  # that a step's inputs consist of, one after the other; those that are not valid are all zeros
  pool: str = "mean"  # of the tokens: one of POOLS

  per_step: ClassVar[bool] = True
  default_rule: ClassVar[str] = STEP_RULE

  @nn.compact
  def __call__(self, inputs_BTF, mask_BT, *, train: bool = False):
    """Returns logits float32[B, T]."""
    if inputs_BTF.shape[-1] % self.tokens:
      raise Pi0RagError(f"prefix classifier: inputs of width {inputs_BTF.shape[-1]} are no {self.tokens} tokens")
    inputs_BTSD = inputs_BTF.reshape(*inputs_BTF.shape[:2], self.tokens, -1)
    pooled_BTD = pool(inputs_BTSD, jnp.any(inputs_BTSD != 0, axis=-1), self.pool)
    return nn.Dense(1)(MlpTrunk(self.hidden, self.dropout)(pooled_BTD, train=train))[..., 0]


class EpisodeTransformer(nn.Module):
  """Judges an episode: a transformer over its steps, and the mean over them."""

  width: int = 32
  layers: int = 2
  num_heads: int = 2
  mlp_ratio: int = 2
  dropout: float = 0.1
  success_weight: float = EVEN_WEIGHT

  per_step: ClassVar[bool] = False
  default_rule: ClassVar[str] = EPISODE_RULE

  @nn.compact
  def __call__(self, inputs_BTF, mask_BT, *, train: bool = False):
    """Returns logits float32[B]."""
    steps = inputs_BTF.shape[1]
    positions_TD = flow.posemb_sincos(jnp.arange(steps), self.width, min_period=MIN_PERIOD, max_period=MAX_PERIOD)
    x_BTD = nn.Dense(self.width)(inputs_BTF) + positions_TD
    sizes = TransformerConfig(feature_dim=self.width, action_dim=1, gripper_dims=(), window=steps, width=self.width,
                              num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, dropout=self.dropout)
    for _ in range(self.layers):
      x_BTD = Block(sizes)(x_BTD, mask_BT[:, None, None, :], train=train)
    return nn.Dense(1)(pool(nn.LayerNorm()(x_BTD), mask_BT, "mean"))[..., 0]


class PoolMLP(nn.Module):
  """Judges an episode: an MLP at every n-th step, a pool over them, and an MLP on that."""

  before: tuple[int, ...] = (32,)
  after: tuple[int, ...] = (32,)
  every: int = 2
  pool: str = "max_min"  # one of POOLS
  dropout: float = 0.3
  success_weight: float = EVEN_WEIGHT

  per_step: ClassVar[bool] = False
  default_rule: ClassVar[str] = EPISODE_RULE

  @nn.compact
  def __call__(self, inputs_BTF, mask_BT, *, train: bool = False):
    """Returns logits float32[B]."""
    x_BTD = MlpTrunk(self.before, self.dropout)(inputs_BTF[:, :: self.every], train=train)
    pooled_BD = pool(x_BTD, mask_BT[:, :: self.every], self.pool)
    return nn.Dense(1)(MlpTrunk(self.after, self.dropout)(pooled_BD, train=train))[..., 0]


Classifier: TypeAlias = StepMLP | PrefixClassifier | EpisodeTransformer | PoolMLP
CLASSIFIERS: dict[str, type[Classifier]] = {
  "step_mlp": StepMLP, "transformer": EpisodeTransformer, "pool_mlp": PoolMLP, "prefix": PrefixClassifier}


def classifier(name: str, options: Mapping[str, Any] | None = None) -> Classifier:
  """Returns a classifier of the registry.

  Args:
    name: one of CLASSIFIERS.
    options: instead of the defaults; lists stand for tuples.
  Raises:
    Pi0RagError: an unknown name, option or pool, or a number that is out of bounds.
  """
  if name not in CLASSIFIERS:
    raise unknown_name("classifier", name, CLASSIFIERS)
  kind: Any = CLASSIFIERS[name]
  given = dict(options or {})
  known = [field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name")]
  for option in given:
    if option not in known:
      raise unknown_name(f"option of the classifier {name}", option, known)
  module = kind(**{key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in given.items()})
  for option in known:
    _check_option(name, option, getattr(module, option))
  return module


def _check_option(name: str, option: str, value: Any) -> None:
  if option == "pool":
    if value not in POOLS:
      raise unknown_name(f"pool of the classifier {name}", value, POOLS)
  elif option == "dropout":
    if not 0 <= value < 1:
      raise Pi0RagError(f"classifier {name}: dropout is {value}; allowed: 0 up to but not including 1")
  elif option == "success_weight":
    if not value > 0:
      raise Pi0RagError(f"classifier {name}: success_weight is {value}; allowed: above 0")
  elif not _are_counts(value if isinstance(value, tuple) else (value,)):
    raise Pi0RagError(f"classifier {name}: {option} is {value}; allowed: whole numbers from 1")


def _are_counts(values: tuple) -> bool:
  return all(isinstance(value, int) and value >= 1 for value in values)


def pool(values_XTD, mask_XT, kind: str):
  """Returns the steps pooled, [..., D], or [..., 2 D] for `max_min`; zeros where the mask leaves none.

  Args:
    values_XTD: float[..., T, D].
    mask_XT: bool[..., T], the steps that count.
    kind: one of POOLS.
  """
  mask_XT1 = mask_XT[..., None]
  if kind == "mean":
    return jnp.where(mask_XT1, values_XTD, 0).sum(-2) / jnp.maximum(mask_XT1.sum(-2), 1)
  any_X1 = mask_XT1.any(-2)
  extreme = lambda reduce, worst: jnp.where(  # noqa: E731
    any_X1, reduce(jnp.where(mask_XT1, values_XTD, worst), axis=-2), 0)
  largest_XD = extreme(jnp.max, -jnp.inf)
  if kind == "max":
    return largest_XD
  return jnp.concatenate([largest_XD, extreme(jnp.min, jnp.inf)], axis=-1)


@functools.lru_cache(maxsize=64)
def default_rule(name: str) -> str:
  """Returns the rule of `thresholds` that goes with a classifier."""
  return classifier(name).default_rule
