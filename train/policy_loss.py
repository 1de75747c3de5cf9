"""What the kind 'policy' lowers and validates: the flow's loss, or that of pi0-FAST's tokens, and an auxiliary head.

The auxiliary head reads true facts, such as where the simulator's objects are, off what the action expert sees of the
prefix. The expert reads the prefix through attention values alone, and a fresh expert attends to all tokens about
evenly: so the head takes the plain mean of the last layer's values. A head with an attention of its own, on the trunk's
output, learned the facts as well, but little of them reached the expert's first motions. It is never exported.

Letters beyond the project's key: `D` draws, `G` targets; `X` is the model's action dim.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import augmentation, flow, pi0, pi0_fast
from pi0rag_jax.models.embedding import pool_prefix
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config
from pi0rag_jax.policy.network import Units
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.typing import Params
from train import parallel, partition
from train.checkpoint import POLICY

AUXILIARY = "auxiliary"  # of the trainable parameters
HIDDEN = 64


@dataclasses.dataclass(frozen=True)
class PathError:
  """How far sampled chunks are from the labels, in the robot's units."""

  units: Units
  space: ActionSpace
  execute_steps: int
  denoising_steps: int

  def __call__(self, model: pi0.Pi0, params: Params, observation: Observation, actions_BTX):
    """Returns float[], the mean cost between both paths over the executed steps, sampled from z = 0 (1: about 1 cm)."""
    chunk_BTX = pi0.sample_actions(model, params, observation, jnp.zeros_like(actions_BTX),
                                   num_steps=self.denoising_steps)
    path, label = (paths.to_path(self.units.to_robot(each, observation.state), self.space)
                   for each in (chunk_BTX, actions_BTX))
    return jnp.mean(paths.disagreement((path - label)[:, : self.execute_steps], self.space))


def batch_loss(model: pi0.Pi0 | pi0_fast.Pi0Fast, params: Params, frozen: Params, batch: Mapping, rng, *,
               options: augmentation.Augmentation | None, draws: int = 1, auxiliary_weight: float = 1.0):
  """Returns (loss, metrics) of a batch: a `step.LossFn` once the model and what follows `rng` are given.

  Args:
    params: `policy` and, with a head, `auxiliary`.
    batch: openpi's dictionary of an observation, `actions` float[B, T, X], normalized and padded, `index` and, with a
      head, `targets` float[B, G], normalized.
    rng: key of this step, the same on every device.
    options: of the augmentation; None leaves pictures as they are.
    draws: (time, noise) pairs per encoded observation.
    auxiliary_weight: of the squared error of the auxiliary head.
  """
  whole = partition.join(params[POLICY], frozen.get(POLICY, {}))
  observation = Observation.from_dict(batch)
  keys_B = jax.vmap(lambda key: jax.random.split(key, 3))(parallel.draw_keys(rng, batch["index"]))
  if options is not None:
    observation = augmentation.augment_each(keys_B[:, 0], observation, options=options)
  if isinstance(model, pi0_fast.Pi0Fast):
    loss = jnp.mean(pi0_fast.loss(model, whole, observation))
    return loss, {"loss": loss}
  actions_BTX = batch["actions"]
  noise_DBTX = jax.vmap(lambda key: jax.random.normal(key, (draws, *actions_BTX.shape[1:])), out_axes=1)(keys_B[:, 1])
  time_DB = jax.vmap(lambda key: flow.sample_time(key, (draws,)), out_axes=1)(keys_B[:, 2])
  if draws == 1 and AUXILIARY not in params:
    loss = jnp.mean(pi0.loss(model, whole, observation, actions_BTX, noise_DBTX[0], time_DB[0]))
    return loss, {"loss": loss}
  losses_DBT, prefix = pi0.loss_draws(model, whole, observation, actions_BTX, noise_DBTX, time_DB)
  flow_loss = jnp.mean(losses_DBT)
  if AUXILIARY not in params:
    return flow_loss, {"loss": flow_loss}
  auxiliary_loss = jnp.mean(jnp.square(predict(params[AUXILIARY], prefix) - batch["targets"]))
  loss = flow_loss + auxiliary_weight * auxiliary_loss
  return loss, {"loss": loss, "flow_loss": flow_loss, "auxiliary_loss": auxiliary_loss}


def validation_metrics(model, params: Params, frozen: Params, batch: Mapping, rng, *, path_error: PathError | None,
                       **options) -> dict:
  """Returns the losses without augmentation, with the same draws at every validation, and the path error if wanted."""
  _, found = batch_loss(model, params, frozen, batch, rng, options=None, **options)
  if path_error is None:
    return found
  whole = partition.join(params[POLICY], frozen.get(POLICY, {}))
  return found | {"path_error": path_error(model, whole, Observation.from_dict(batch), batch["actions"])}


def init_head(rng, config: PaliGemmaConfig, targets: int) -> Params:
  """Returns the parameters of the auxiliary head.

  Args:
    rng: key, consumed.
    config: of the model whose prefix it reads.
    targets: how many numbers it predicts.
  """
  if not isinstance(config, Pi0Config):
    raise Pi0RagError("auxiliary_targets: allowed for pi0 and pi0.5, whose action expert reads the prefix")
  hidden_key, out_key = jax.random.split(rng)
  dense = jax.nn.initializers.lecun_normal()
  width = config.paligemma.num_kv_heads * config.paligemma.head_dim
  return {
    "hidden": {"kernel": dense(hidden_key, (width, HIDDEN)), "bias": jnp.zeros(HIDDEN)},
    "out": {"kernel": dense(out_key, (HIDDEN, targets)), "bias": jnp.zeros(targets)},
  }


def predict(params: Params, prefix: pi0.PrefixOutput):
  """Returns float[B, G], the normalized targets as read off the prefix."""
  _, values_NBSKH = prefix.kv_cache
  last_BSD = values_NBSKH[-1].reshape(*prefix.mask_BS.shape, -1)
  pooled_BD = pool_prefix(last_BSD, prefix.mask_BS)
  hidden = jax.nn.gelu(pooled_BD @ params["hidden"]["kernel"] + params["hidden"]["bias"])
  return hidden @ params["out"]["kernel"] + params["out"]["bias"]
