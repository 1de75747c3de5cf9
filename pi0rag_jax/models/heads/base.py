"""What all heads share: sizes, the answer, its two readouts, and the functions that callers compile.

A head is a flax module with a `config`. It reads pooled features of a frozen backbone, one row per step of a history,
and answers at every step with a chunk of actions. `apply` computes a whole window; `step` one step of a stream, from a
state that starts as `init_state` and carries what the window computation would see: both give the same answers.

Letters beyond the project's key: `W` history step in a window, `X` motion entry of an action, `G` gripper entry,
`V` bin.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.typing import Array, Params

REGRESSIONS = ("huber", "mse")
COUNTS = ("feature_dim", "action_dim", "chunk", "window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
  """What every head has; a subclass adds its own sizes."""

  feature_dim: int  # D, of the backbone's features
  action_dim: int  # A of the robot, the gripper's entries among them
  gripper_dims: tuple[int, ...] = (-1,)  # entries that open or close; () for a robot without a gripper
  state_dim: int = 0  # P: a row is the features, then so many entries of normalized proprioception
  chunk: int = 10  # T
  window: int = 16  # W, the history that an answer may depend on
  dropout: float = 0.0
  readout_dims: tuple[int, ...] = ()  # hidden layers of each readout
  # Backbones differ in scale by orders of magnitude, so features pass a layer norm first (RoboVLMs has none).
  input_norm: bool = True
  # RoboVLMs ends in tanh: only for labels that were scaled to [-1, 1].
  squash: bool = False
  regression: str = "huber"  # of the motion entries: one of REGRESSIONS
  gripper_weight: float = 0.01  # of the gripper's cross-entropy

  def __post_init__(self):
    for name in (*COUNTS, *self.counts()):
      if getattr(self, name) < 1:
        raise Pi0RagError(f"head: {name} is {getattr(self, name)}, it must be at least 1")
    if not 0.0 <= self.dropout < 1.0:
      raise Pi0RagError(f"head: dropout is {self.dropout}, allowed: 0 up to but not including 1")
    if self.regression not in REGRESSIONS:
      raise unknown_name("regression of a head", self.regression, REGRESSIONS)
    entries = range(-self.action_dim, self.action_dim)
    if any(i not in entries for i in self.gripper_dims) or len(set(self.gripper_index)) != len(self.gripper_dims):
      raise Pi0RagError(f"head: gripper_dims {self.gripper_dims} are not distinct entries of {self.action_dim} actions")
    if not self.motion_index:
      raise Pi0RagError("head: every entry of an action is a gripper's; at least one must be a motion")

  @staticmethod
  def counts() -> tuple[str, ...]:
    """Returns the names of a subclass's fields that must be at least 1."""
    return ()

  @property
  def gripper_index(self) -> tuple[int, ...]:
    """The gripper's entries, in their order within an action, counted from the front."""
    return tuple(sorted(i % self.action_dim for i in self.gripper_dims))

  @property
  def motion_index(self) -> tuple[int, ...]:
    """All other entries."""
    return tuple(i for i in range(self.action_dim) if i not in self.gripper_index)

  @property
  def input_dim(self) -> int:
    """Width of a row that the head reads."""
    return self.feature_dim + self.state_dim


@flax.struct.dataclass
class HeadOutput:
  """A head's answer, for all steps of a window [B, W, T, ...] or for one step of a stream [B, T, ...]."""

  motion: Array  # float[..., T, X], normalized
  gripper_logits: Array  # float[..., T, G]; above 0 is open
  bin_logits: Array | None = None  # float[..., T, X, V], of a discrete head


class FeatureInput(nn.Module):
  """Layer norm of the features; proprioception behind them passes as it is."""

  config: HeadConfig

  @nn.compact
  def __call__(self, rows):
    c = self.config
    if rows.shape[-1] != c.input_dim:
      raise Pi0RagError(f"features have {rows.shape[-1]} entries, the head takes {c.feature_dim} and {c.state_dim} of "
                        "proprioception: it was made for another backbone or robot")
    features, state = jnp.split(rows.astype(jnp.float32), [c.feature_dim], axis=-1)
    if c.input_norm:
      features = nn.LayerNorm(name="norm")(features)
    return jnp.concatenate([features, state], axis=-1)


class Readout(nn.Module):
  """Dense layers with ReLU between them, from hidden features [..., D] to [..., *shape]."""

  hidden_dims: tuple[int, ...]
  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    for width in self.hidden_dims:
      x = nn.relu(nn.Dense(width)(x))
    # Small first answers: about the mean action, and a gripper that is undecided.
    small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
    out = nn.Dense(math.prod(self.shape), kernel_init=small)(x)
    return out.reshape(*x.shape[:-1], *self.shape)


class ActionReadout(nn.Module):
  """Motion by regression, and the gripper's logits."""

  config: HeadConfig

  @nn.compact
  def __call__(self, x) -> HeadOutput:
    c = self.config
    motion = Readout(c.readout_dims, (c.chunk, len(c.motion_index)), name="motion")(x)
    return HeadOutput(jnp.tanh(motion) if c.squash else motion, gripper_logits(c, x))


def gripper_logits(config: HeadConfig, x):
  """Returns float[..., T, G] of hidden features; a submodule of the module that calls it."""
  shape = (config.chunk, len(config.gripper_index))
  if not config.gripper_index:
    return jnp.zeros((*x.shape[:-1], *shape))
  return Readout(config.readout_dims, shape, name="gripper")(x)


def init(head: nn.Module, rng) -> Params:
  """Returns fresh float32 parameters of a head."""
  c = head.config
  return head.init(rng, jnp.zeros((1, c.window, c.input_dim)), jnp.ones((1, c.window), bool))["params"]


def apply(head: nn.Module, params: Params, features_BWD, mask_BW=None, *, train: bool = False, rng=None) -> HeadOutput:
  """Returns the answers of all steps of a window; a step sees those before it and itself.

  Args:
    features_BWD: float[B, W, D + P].
    mask_BW: bool[B, W], False for padding, before or behind one run of steps; None: every step is there. An answer at
      padding is a don't-care.
    train: static; with dropout.
    rng: a key, wanted where `train` is set and the head has dropout.
  """
  if train and head.config.dropout > 0 and rng is None:
    raise Pi0RagError(f"the head trains with dropout {head.config.dropout}: give an rng")
  mask_BW = jnp.ones(features_BWD.shape[:2], bool) if mask_BW is None else mask_BW
  # Padding may hold anything, and what is not finite would spoil the gradients of what is.
  features_BWD = jnp.where(mask_BW[..., None], features_BWD, 0.0)
  rngs = {} if rng is None else {"dropout": rng}
  answer: Any = head.apply({"params": params}, features_BWD, mask_BW, train=train, rngs=rngs)
  return answer


def init_state(head: nn.Module, batch: int):
  """Returns the state of `batch` streams before their first step; every array in it starts with axis B."""
  return head.init_state(batch)


def step(head: nn.Module, params: Params, state, features_BD) -> tuple[Any, HeadOutput]:
  """Returns (the next state, the answer) after one more step of every stream.

  Args:
    state: of `init_state`, or of the last step.
    features_BD: float[B, D + P].
  """
  answer: Any = head.apply({"params": params}, state, features_BD, method="step")
  return answer


def reset_rows(head: nn.Module, state, rows_B):
  """Returns the state with the streams where bool[B] `rows_B` is set back at their start."""
  fresh = init_state(head, rows_B.shape[0])
  pick = lambda new, old: jnp.where(rows_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)  # noqa: E731
  return jax.tree.map(pick, fresh, state)


def to_actions(config: HeadConfig, output: HeadOutput):
  """Returns float[..., T, A]: motion entries as they are, normalized, and a gripper's probability of being open."""
  actions = jnp.zeros((*output.motion.shape[:-1], config.action_dim))
  actions = actions.at[..., list(config.motion_index)].set(output.motion)
  return actions.at[..., list(config.gripper_index)].set(jax.nn.sigmoid(output.gripper_logits))
