"""pi0 and pi0.5: a vision-language prefix, and an action expert that turns noise into an action chunk.

`Pi0` holds the network, with parameters named and shaped as openpi stores them. The functions below it are what
callers compile: `init`, `loss`, `loss_draws`, `encode_prefix`, `denoise`, `sample_actions`. All are pure.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pi0rag_jax.models import attention, flow
from pi0rag_jax.models.gemma import KeysValues, Modulations
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.paligemma import PaliGemma, PrefixOutput, apply, example_observation
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.typing import Array, Params

__all__ = [
  "Pi0",
  "Pi0Config",
  "PrefixOutput",
  "denoise",
  "encode_prefix",
  "init",
  "loss",
  "loss_draws",
  "sample_actions",
]


@flax.struct.dataclass
class Context:
  """What action tokens attend to, at every step of the flow."""

  kv_cache: KeysValues
  mask_BS: Array  # bool[B, S]


class Pi0(nn.Module):
  """The network; use it through the functions of this file, or `model.apply` with `method=`."""

  config: Pi0Config

  def setup(self):
    c = self.config
    # The name is part of openpi's parameter tree.
    self.PaliGemma = PaliGemma(c)
    self.action_in_proj = nn.Dense(c.expert.width)
    self.action_out_proj = nn.Dense(c.action_dim)
    if c.pi05:
      self.time_mlp_in = nn.Dense(c.expert.width)
      self.time_mlp_out = nn.Dense(c.expert.width)
    else:
      self.state_proj = nn.Dense(c.expert.width)
      self.action_time_mlp_in = nn.Dense(c.expert.width)
      self.action_time_mlp_out = nn.Dense(c.expert.width)

  def embed_prefix(self, obs: Observation):
    """Returns (tokens_BSD, mask_BS, ar_mask_S) of images and prompt."""
    tokens_BSD, mask_BS = self.PaliGemma.embed_prefix(obs)
    # One block: every prefix token sees every other one.
    return tokens_BSD, mask_BS, jnp.zeros(tokens_BSD.shape[1], bool)

  def time_condition(self, time_B):
    """Returns the condition [B, D] of pi0.5's adaptive norms at flow times."""
    time_BD = flow.posemb_sincos(time_B, self.config.expert.width)
    return nn.swish(self.time_mlp_out(nn.swish(self.time_mlp_in(time_BD))))

  def embed_time(self, time_B) -> Array | Modulations:
    """Returns what flow times add to the action tokens, [B, D] (pi0), or make of the adaptive norms (pi0.5)."""
    if self.config.pi05:
      return self.PaliGemma.llm.modulate((None, self.time_condition(time_B)))
    # The first layer sees action and time side by side: its sum has a part of each.
    time_BD, dense = flow.posemb_sincos(time_B, self.config.expert.width), self.action_time_mlp_in.variables["params"]
    return time_BD @ dense["kernel"][self.config.expert.width :] + dense["bias"]

  def embed_actions(self, x_BTA, time: Array | Modulations):
    """Returns the action tokens [B, T, D] of a noisy chunk, at times that `embed_time` embedded."""
    action_BTD = self.action_in_proj(x_BTA)
    if isinstance(time, Modulations):
      return action_BTD
    kernel_DD = self.action_time_mlp_in.variables["params"]["kernel"][: self.config.expert.width]
    return self.action_time_mlp_out(nn.swish(action_BTD @ kernel_DD + time[:, None]))

  def embed_suffix(self, state_BP, x_BTA, time_B):
    """Returns (tokens, mask, ar_mask, condition) of the action expert's stream.

    pi0 has a state token before the T action tokens and no condition; pi0.5 has T action tokens, and the
    condition float[B, D] of its adaptive norms carries the time. This is openpi's arithmetic, which training keeps;
    `embed_actions` is the same for a sampler that knows its times beforehand.
    """
    B, T = x_BTA.shape[:2]
    action_BTD = self.action_in_proj(x_BTA)
    if self.config.pi05:
      # The first action token opens a block of its own and its followers join it.
      return action_BTD, jnp.ones((B, T), bool), jnp.arange(T) == 0, self.time_condition(time_B)
    time_BD = flow.posemb_sincos(time_B, self.config.expert.width)
    time_BTD = jnp.broadcast_to(time_BD[:, None].astype(action_BTD.dtype), action_BTD.shape)
    mixed_BTD = self.action_time_mlp_in(jnp.concatenate([action_BTD, time_BTD], axis=-1))
    mixed_BTD = self.action_time_mlp_out(nn.swish(mixed_BTD))
    tokens_BTD = jnp.concatenate([self.state_proj(state_BP)[:, None], mixed_BTD], axis=1)
    # Two blocks: the state does not see the actions, the actions see all.
    return tokens_BTD, jnp.ones((B, T + 1), bool), jnp.arange(T + 1) < 2, None

  def prefix(self, obs: Observation, *, keys_only: bool = False) -> PrefixOutput:
    """Returns the prefix pass: hidden states, and the keys and values that the suffix attends to."""
    return self.PaliGemma.encode_prefix(*self.embed_prefix(obs), keys_only=keys_only)

  def context(self, prefix: PrefixOutput, state_BP) -> Context:
    """Returns all that the action tokens attend to beside one another.

    pi0's state token sees the prefix and itself, never the actions: it is the same at every step of the flow.
    """
    kv_cache, mask_BS = (prefix.kv_cache, prefix.mask_BS) if self.config.pi05 else self._with_state(prefix, state_BP)
    S = padded_size(self.config, mask_BS.shape[1])
    return Context(jax.tree.map(lambda x: _longer(x, S, axis=-3), kv_cache), _longer(mask_BS, S, axis=1))

  def _with_state(self, prefix: PrefixOutput, state_BP) -> tuple[KeysValues, Array]:
    """Returns keys and values of the prefix and the state behind it, and their mask.

    Where rows are padded the state fills a block of them, so that no product is of a vector; the first one counts.
    """
    rows = padded_size(self.config, 1)
    state_B1D = self.state_proj(state_BP)[:, None]
    state_BTD = jnp.broadcast_to(state_B1D, (len(state_B1D), rows, state_B1D.shape[-1]))
    mask_BS = jnp.pad(prefix.mask_BS, ((0, 0), (0, 1)), constant_values=True)
    mask_BS = _longer(mask_BS, mask_BS.shape[1] - 1 + rows, axis=1)
    positions_B1 = prefix.mask_BS.sum(axis=1, dtype=jnp.int32)[:, None]
    _, state_kv = self.PaliGemma.llm(
      (None, state_BTD), jnp.broadcast_to(positions_B1, (len(positions_B1), rows)),
      jnp.broadcast_to(mask_BS[:, None], (len(mask_BS), rows, mask_BS.shape[1])), cache=prefix.kv_cache, keys_only=True)
    behind = lambda prefix, state: jnp.concatenate([prefix, state], axis=-3)  # noqa: E731
    return jax.tree.map(behind, prefix.kv_cache, state_kv), mask_BS

  def velocity(self, context: Context, x_BTA, time: Array | Modulations):
    """Returns the velocity [B, T, A] of a noisy chunk: one pass of the expert.

    Args:
      x_BTA: of the model's horizon; steps behind it are padding, which no other step sees.
      time: of each row, or of all in a batch of 1, as `embed_time` returns it.
    """
    B, T = x_BTA.shape[:2]
    tokens_BTD = self.embed_actions(x_BTA, time)
    positions_BT = context.mask_BS.sum(axis=1, dtype=jnp.int32)[:, None] + jnp.arange(T)
    to_context_BTS = jnp.broadcast_to(context.mask_BS[:, None], (B, T, context.mask_BS.shape[1]))
    own = min(T, self.config.action_horizon)
    to_own_BTS = jnp.pad(to_context_BTS, ((0, 0), (0, 0), (0, own)), constant_values=True)
    (_, suffix_BTD), _ = self.PaliGemma.llm(
      (None, tokens_BTD), positions_BT, jnp.pad(to_own_BTS, ((0, 0), (0, 0), (0, T - own))),
      modulations=time if isinstance(time, Modulations) else None, cache=context.kv_cache)
    return self.action_out_proj(suffix_BTD)

  def joint(self, obs: Observation, x_BTA, time_B):
    """Returns (prefix_out, suffix_out, velocity_BTA) of openpi's training pass: both streams at once."""
    prefix_BSD, prefix_mask_BS, prefix_ar_S = self.embed_prefix(obs)
    suffix_BTD, suffix_mask_BT, suffix_ar_T, condition_BD = self.embed_suffix(obs.state, x_BTA, time_B)
    mask_BS = jnp.concatenate([prefix_mask_BS, suffix_mask_BT], axis=1)
    mask_BSS = attention.attention_mask(mask_BS, jnp.concatenate([prefix_ar_S, suffix_ar_T]))
    (prefix_out_BSD, suffix_out_BTD), _ = self.PaliGemma.llm(
      (prefix_BSD, suffix_BTD), attention.token_positions(mask_BS), mask_BSS, conds=(None, condition_BD))
    return prefix_out_BSD, suffix_out_BTD, self.action_out_proj(suffix_out_BTD[:, -x_BTA.shape[1] :])


def example_inputs(config: Pi0Config, batch: int = 1):
  """Returns (observation, noisy chunk, time) of zeros in the model's shapes."""
  chunk_BTA = jnp.zeros((batch, config.action_horizon, config.action_dim))
  return example_observation(config, batch), chunk_BTA, jnp.ones(batch)


def init(config: Pi0Config, rng) -> Params:
  """Returns fresh float32 parameters in openpi's tree; `jax.eval_shape` of it gives their shapes alone."""
  return Pi0(config).init(rng, *example_inputs(config), method=Pi0.joint)["params"]


def loss(model: Pi0, params: Params, obs: Observation, actions_BTA, noise_BTA, time_B):
  """Returns the flow-matching loss float[B, T], the mean over action dims, as openpi computes it."""
  x_BTA, target_BTA = flow.interpolate(actions_BTA, noise_BTA, time_B)
  _, _, velocity_BTA = apply(model, params, Pi0.joint, obs, x_BTA, time_B)
  return jnp.mean(jnp.square(velocity_BTA - target_BTA), axis=-1)


def loss_draws(model: Pi0, params: Params, obs: Observation, actions_BTA, noise_DBTA, time_DB):
  """Returns (losses, prefix): `loss` for several draws of noise and time, with the prefix computed once.

  The prefix never attends to the suffix, so all draws share its keys and values; gradients flow through them.

  Args:
    actions_BTA: float[B, T, A], normalized.
    noise_DBTA: float[D, B, T, A]; D counts the draws.
    time_DB: float[D, B] in (0, 1].
  Returns:
    (float[D, B, T], PrefixOutput); the prefix can carry an auxiliary head.
  """
  prefix = encode_prefix(model, params, obs)
  context = apply(model, params, Pi0.context, prefix, obs.state)

  def one_draw(noise_BTA, time_B):
    x_BTA, target_BTA = flow.interpolate(actions_BTA, noise_BTA, time_B)
    velocity_BTA = apply(model, params, Pi0.velocity, context, x_BTA, apply(model, params, Pi0.embed_time, time_B))
    return jnp.mean(jnp.square(velocity_BTA - target_BTA), axis=-1)

  return jax.vmap(one_draw)(noise_DBTA, time_DB), prefix


def encode_prefix(model: Pi0, params: Params, obs: Observation, *, keys_only: bool = False) -> PrefixOutput:
  """Returns the prefix of a batch of observations.

  Args:
    keys_only: static; for `denoise` alone. Packed parameters then skip what only the last hidden states need.
  """
  return apply(model, params, Pi0.prefix, obs, keys_only=keys_only)


def denoise(model: Pi0, params: Params, prefix: PrefixOutput, state_BP, noise_BTA, *, num_steps: int = 10,
            correct=None, guide: flow.Guide | None = None, **steps):
  """Returns the action chunk [B, T, A], normalized, that `num_steps` steps make of the noise.

  Args:
    correct, guide, steps: `correct`, `guide`, and `first` and `last`, of `flow.euler`, for those who interfere.
  """
  T = noise_BTA.shape[1]
  padded = functools.partial(_longer, length=padded_size(model.config, T), axis=1)
  of_rows = None if correct is None else lambda clean_BTA: padded(correct(clean_BTA[:, :T]))
  if guide is not None:
    guide = flow.Guide(padded(guide.target_BTA), padded(guide.weight_BT))
  velocity = _velocity_fn(model, params, prefix, state_BP, num_steps)
  return flow.euler(velocity, padded(noise_BTA), num_steps=num_steps, correct=of_rows, guide=guide, **steps)[:, :T]


def invert(model: Pi0, params: Params, prefix: PrefixOutput, state_BP, chunk_BTA, *, num_steps: int, iterations: int):
  """Returns the noise [B, T, A] of which `denoise` makes a normalized chunk; see `flow.invert`."""
  T = chunk_BTA.shape[1]
  padded_BTA = _longer(chunk_BTA, padded_size(model.config, T), axis=1)
  velocity = _velocity_fn(model, params, prefix, state_BP, num_steps)
  return flow.invert(velocity, padded_BTA, num_steps=num_steps, iterations=iterations)[:, :T]


def padded_size(config: Pi0Config, count: int) -> int:
  """Returns how many rows so many tokens of the flow's loop take."""
  return -(-count // config.multiple) * config.multiple


def _longer(x, length: int, *, axis: int):
  """Returns an array with zeros (False) behind it along an axis."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, length - x.shape[axis])
  return jnp.pad(x, widths) if length > x.shape[axis] else x


def _velocity_fn(model: Pi0, params: Params, prefix: PrefixOutput, state_BP, num_steps: int):
  """Returns the function of (x_BTA, step) that `flow.euler` follows."""
  context = apply(model, params, Pi0.context, prefix, state_BP)
  # The times are known: what depends on them alone is computed once for all steps.
  of_steps = apply(model, params, Pi0.embed_time, jnp.asarray(flow.times(num_steps)[:-1]))
  if not model.config.pi05:  # the other half is of the time: no step shall cut this one out
    mixing = params["action_time_mlp_in"]
    params = {**params, "action_time_mlp_in": {**mixing, "kernel": mixing["kernel"][: model.config.expert.width]}}

  def velocity(x_BTA, step):
    time = jax.tree.map(lambda table: jax.lax.dynamic_slice_in_dim(table, step, 1), of_steps)
    return apply(model, params, Pi0.velocity, context, x_BTA, time)

  return velocity


def sample_actions(model: Pi0, params: Params, obs: Observation, noise_BTA, *, num_steps: int = 10):
  """Returns the action chunk [B, T, A], normalized: `encode_prefix`, then `denoise`."""
  prefix = encode_prefix(model, params, obs, keys_only=True)
  return denoise(model, params, prefix, obs.state, noise_BTA, num_steps=num_steps)
