"""openpi's way to sample a chunk, as a yardstick for `eval.bench`: the structure of its code, in ours.

Every camera is encoded, masked or not, one after the other; the layers are a scan over stacked parameters; the state
token goes through the expert at each step, with the time embedded anew; the steps are a loop that asks the time whether
to go on. Source: what the project's notes say of openpi's `Pi0.sample_actions`.
"""

import jax
import jax.numpy as jnp

from pi0rag_jax.models import attention
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.paligemma import PrefixOutput, apply
from pi0rag_jax.models.pi0 import Pi0
from pi0rag_jax.typing import Params


def sample_actions(model: Pi0, params: Params, obs: Observation, noise_BTA, *, num_steps: int = 10):
  """Returns the action chunk [B, T, A], normalized; see `pi0.sample_actions`, whose mathematics it shares."""
  prefix = apply(model, params, _encode, obs)
  dt = -1.0 / num_steps

  def step(carry):
    x_BTA, time = carry
    velocity_BTA = apply(model, params, _velocity, prefix, obs.state, x_BTA, jnp.broadcast_to(time, x_BTA.shape[:1]))
    return x_BTA + dt * velocity_BTA, time + dt

  x_BTA, _ = jax.lax.while_loop(lambda carry: carry[1] >= -dt / 2, step, (noise_BTA, jnp.float32(1.0)))
  return x_BTA


def _encode(network: Pi0, obs: Observation) -> PrefixOutput:
  """Returns the prefix, camera by camera."""
  tokens, masks = [], []
  for key in network.config.image_keys:
    camera_BSD = network.PaliGemma.img(obs.images[key])
    tokens.append(camera_BSD)
    masks.append(jnp.broadcast_to(obs.image_masks[key][:, None], camera_BSD.shape[:2]))
  assert obs.tokenized_prompt is not None and obs.tokenized_prompt_mask is not None, "benchmarks have a prompt"
  tokens_BSD = jnp.concatenate([*tokens, network.PaliGemma.llm.embed(obs.tokenized_prompt)], axis=1)
  mask_BS = jnp.concatenate([*masks, obs.tokenized_prompt_mask], axis=1)
  return network.PaliGemma.encode_prefix(tokens_BSD, mask_BS, jnp.zeros(mask_BS.shape[1], bool))


def _velocity(network: Pi0, prefix: PrefixOutput, state_BP, x_BTA, time_B):
  """Returns the velocity [B, T, A]: the whole suffix through the expert."""
  tokens_BTD, mask_BT, ar_mask_T, condition_BD = network.embed_suffix(state_BP, x_BTA, time_B)
  own_BTT = attention.attention_mask(mask_BT, ar_mask_T)
  to_prefix_BTS = jnp.broadcast_to(prefix.mask_BS[:, None], (*mask_BT.shape, prefix.mask_BS.shape[1]))
  positions_BT = prefix.mask_BS.sum(axis=1, dtype=jnp.int32)[:, None] + attention.token_positions(mask_BT)
  (_, suffix_BTD), _ = network.PaliGemma.llm(
    (None, tokens_BTD), positions_BT, jnp.concatenate([to_prefix_BTS, own_BTT], axis=-1),
    conds=(None, condition_BD), cache=prefix.kv_cache)
  return network.action_out_proj(suffix_BTD[:, -x_BTA.shape[1] :])
