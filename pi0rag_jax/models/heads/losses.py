"""The loss of a head: regression or cross-entropy of the motion, plus the gripper's weighted binary cross-entropy.

A batch of windows is a dictionary:

- `features_BWD` float[B, W, D + P]: the backbone's features, then normalized proprioception where the head takes it;
- `actions_BWTA` float[B, W, T, A]: labels; motion entries normalized, gripper entries 1 for open and 0 for closed;
- `mask_BW` bool[B, W], optional: False for padded history;
- `action_mask_BWT` bool[B, W, T], optional: False for padded chunk, where the episode had ended;
- `index_B` int[B], optional: an example's place in the global batch, which its dropout depends on.

Every valid step of the window is learned, not the last alone, as in RoboVLMs. The loss is a mean over windows of each
one's mean over what is valid, so that it is the same however a batch is split over devices or microbatches.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import base, discrete
from pi0rag_jax.models.heads.base import HeadConfig, HeadOutput
from pi0rag_jax.typing import Array, Params

# Where the Huber loss turns from squares to absolute values, in normalized units: PyTorch's default.
HUBER_DELTA = 1.0


def head_loss(head: nn.Module, params: Params, batch: Mapping, rng=None) -> tuple[Array, dict[str, Array]]:
  """Returns (loss, metrics): float[] each, means over the batch.

  Args:
    head: a module of `registry.make`.
    batch: see the head of this file.
    rng: key of dropout; None computes without it, for validation.
  """
  return output_loss(head.config, window_output(head, params, batch, rng), batch)


def window_output(head: nn.Module, params: Params, batch: Mapping, rng=None) -> HeadOutput:
  """Returns the answers [B, W, T, ...] of a batch, for the loss and other measures of it; arguments as `head_loss`."""
  features_BWD, mask_BW = batch["features_BWD"], history_mask(batch)
  if rng is None or head.config.dropout == 0:
    return base.apply(head, params, features_BWD, mask_BW)
  index_B = batch.get("index_B", jnp.arange(len(features_BWD)))
  # A key per example: the draws do not depend on how the batch is split.
  one = lambda features_WD, mask_W, index: jax.tree.map(  # noqa: E731
    lambda x: x[0],
    base.apply(head, params, features_WD[None], mask_W[None], train=True, rng=jax.random.fold_in(rng, index)))
  return jax.vmap(one)(features_BWD, mask_BW, index_B)


def output_loss(config: HeadConfig, output: HeadOutput, batch: Mapping) -> tuple[Array, dict[str, Array]]:
  """Returns (loss, metrics) of answers.

  Metrics: `loss`, `motion_loss`, `gripper_loss` (unweighted), `motion_error` (mean absolute, in normalized units).
  """
  actions_BWTA = batch["actions_BWTA"]
  wanted = (*output.motion.shape[:-1], config.action_dim)
  if actions_BWTA.shape != wanted:
    raise Pi0RagError(f"labels have shape {actions_BWTA.shape}, the head answers with {wanted}: [B, W, T, A]")
  valid_BWT = label_mask(batch)
  # A label of padding may be anything: it is replaced, not multiplied by zero.
  actions_BWTA = jnp.where(valid_BWT[..., None], actions_BWTA, 0.0)
  motion_BWTX = actions_BWTA[..., list(config.motion_index)]
  motion_loss = masked_mean(motion_errors(config, output, motion_BWTX), valid_BWT)
  metrics = {
    "motion_loss": motion_loss, "motion_error": masked_mean(jnp.abs(output.motion - motion_BWTX), valid_BWT)}
  loss = motion_loss
  if config.gripper_index:
    open_BWTG = actions_BWTA[..., list(config.gripper_index)]
    gripper_loss = masked_mean(optax.sigmoid_binary_cross_entropy(output.gripper_logits, open_BWTG), valid_BWT)
    metrics["gripper_loss"] = gripper_loss
    loss = loss + config.gripper_weight * gripper_loss
  return loss, {"loss": loss, **metrics}


def motion_errors(config: HeadConfig, output: HeadOutput, motion_BWTX):
  """Returns float[B, W, T, X], the loss of every motion entry."""
  if isinstance(config, discrete.DiscreteConfig):
    assert output.bin_logits is not None
    index_BWTX = discrete.bin_index(motion_BWTX, config)
    return optax.softmax_cross_entropy_with_integer_labels(output.bin_logits, index_BWTX)
  if config.regression == "mse":
    return jnp.square(output.motion - motion_BWTX)
  return optax.huber_loss(output.motion, motion_BWTX, delta=HUBER_DELTA)


def masked_mean(errors_BWTX, valid_BWT):
  """Returns float[]: the mean over the batch of each window's mean over its valid entries; 0 where it has none."""
  count_B = valid_BWT.sum(axis=(1, 2)) * errors_BWTX.shape[-1]
  sum_B = jnp.where(valid_BWT[..., None], errors_BWTX, 0.0).sum(axis=(1, 2, 3))
  return jnp.mean(sum_B / jnp.maximum(count_B, 1))


def label_mask(batch: Mapping):
  """Returns bool[B, W, T], the labels of a batch that count."""
  mask_BWT = jnp.broadcast_to(history_mask(batch)[..., None], batch["actions_BWTA"].shape[:-1])
  return mask_BWT & batch["action_mask_BWT"] if "action_mask_BWT" in batch else mask_BWT


def history_mask(batch: Mapping):
  """Returns bool[B, W], the steps that are there."""
  return batch["mask_BW"] if "mask_BW" in batch else jnp.ones(batch["features_BWD"].shape[:2], bool)
