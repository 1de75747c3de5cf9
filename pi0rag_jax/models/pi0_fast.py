"""pi0-FAST: the same vision-language prefix, and action tokens that the language model writes one by one.

`Pi0Fast` holds the network, with parameters named and shaped as openpi stores them. The functions below it are
what callers compile: `init`, `loss`, `encode_prefix`, `sample_tokens`, `token_logits`. All are pure.

Letters beyond the project's key: `V` vocabulary, `M` decoding step.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.paligemma import PaliGemma, PrefixOutput, apply, example_observation
from pi0rag_jax.models.pi0_config import Pi0FastConfig
from pi0rag_jax.typing import Params

__all__ = ["Pi0Fast", "Pi0FastConfig", "encode_prefix", "init", "loss", "sample_tokens", "token_logits", "write_tokens"]

EOS_TOKEN = 1
MAX_DECODING_STEPS = 256


class Pi0Fast(nn.Module):
  """The network; use it through the functions of this file, or `model.apply` with `method=`."""

  config: Pi0FastConfig

  def setup(self):
    self.PaliGemma = PaliGemma(self.config, rotary_dtype=jnp.dtype("float32"))

  def embed_prefix(self, obs: Observation):
    """Returns (tokens_BSD, mask_BS, ar_mask_BS): images, which see one another, then the prompt by its own mask."""
    tokens_BSD, mask_BS = self.PaliGemma.embed_prefix(obs)
    ar_mask_BS = jnp.zeros(mask_BS.shape, jnp.int32)
    if obs.token_ar_mask is not None:
      ar_mask_BS = ar_mask_BS.at[:, -obs.token_ar_mask.shape[1] :].set(obs.token_ar_mask)
    return tokens_BSD, mask_BS, ar_mask_BS

  def prefix(self, obs: Observation, *, reserve: int = 0) -> PrefixOutput:
    """Returns the prefix pass; `reserve` as of `PaliGemma.encode_prefix`."""
    return self.PaliGemma.encode_prefix(*self.embed_prefix(obs), reserve=reserve)

  def hidden_of_prompt(self, obs: Observation):
    """Returns [B, L - 1, D]: the last layer at every prompt token but the last, as while training.

    Positions count every slot, padding too: openpi does so here, and counts valid tokens when it decodes.
    """
    assert obs.tokenized_prompt is not None, "`loss` takes no observation without a prompt"
    tokens_BSD, mask_BS, ar_mask_BS = self.embed_prefix(obs)
    mask_BSS = attention.attention_mask(mask_BS, ar_mask_BS)[:, :-1, :-1]
    positions_BS = jnp.broadcast_to(jnp.arange(mask_BSS.shape[1]), mask_BSS.shape[:2])
    (hidden_BSD,), _ = self.PaliGemma.llm((tokens_BSD[:, :-1],), positions_BS, mask_BSS)
    return hidden_BSD[:, hidden_BSD.shape[1] - (obs.tokenized_prompt.shape[1] - 1) :]

  def logits(self, hidden_BTD):
    """Returns the logits [B, T, V] of last-layer outputs."""
    return self.PaliGemma.llm.decode(hidden_BTD)

  def decode_step(self, token_B, position_B, mask_BS, kv_cache):
    """Returns (logits [B, V] of the token after, keys and values [depth, B, 1, K, H] of this one).

    Args:
      token_B: int32[B], the token to read.
      position_B: int32[B].
      mask_BS: bool[B, S], the slots of the cache that the token sees; it sees itself besides.
      kv_cache: (keys, values), each [depth, B, S, K, H].
    """
    mask_B1T = jnp.pad(mask_BS, ((0, 0), (0, 1)), constant_values=True)[:, None]
    x_B1D = self.PaliGemma.llm.embed(token_B[:, None])
    (hidden_B1D,), kv = self.PaliGemma.llm((x_B1D,), position_B[:, None], mask_B1T, cache=kv_cache)
    return self.logits(hidden_B1D)[:, 0], kv


def init(config: Pi0FastConfig, rng) -> Params:
  """Returns fresh float32 parameters in openpi's tree; `jax.eval_shape` of it gives their shapes alone."""
  return Pi0Fast(config).init(rng, example_observation(config), method=Pi0Fast.prefix)["params"]


def loss(model: Pi0Fast, params: Params, obs: Observation):
  """Returns float[B]: the mean cross-entropy of the tokens in `obs.token_loss_mask`, as openpi computes it.

  Raises:
    Pi0RagError: the observation has no prompt, no `token_ar_mask` or no `token_loss_mask`.
  """
  if obs.tokenized_prompt is None or obs.token_ar_mask is None or obs.token_loss_mask is None:
    wanted = ("tokenized_prompt", "token_ar_mask", "token_loss_mask")
    missing = [name for name in wanted if getattr(obs, name) is None]
    raise Pi0RagError(f"the loss of pi0-FAST needs {', '.join(wanted)}; the observation lacks {', '.join(missing)}")
  hidden_BLD = apply(model, params, Pi0Fast.hidden_of_prompt, obs)
  log_p_BLV = jax.nn.log_softmax(apply(model, params, Pi0Fast.logits, hidden_BLD), axis=-1)
  log_p_BL = jnp.take_along_axis(log_p_BLV, obs.tokenized_prompt[:, 1:, None], axis=-1)[..., 0]
  learned_BL = obs.token_loss_mask[:, 1:]
  return -jnp.sum(log_p_BL * learned_BL, axis=-1) / jnp.maximum(jnp.sum(learned_BL, axis=-1), 1)


def encode_prefix(model: Pi0Fast, params: Params, obs: Observation, *, reserve: int = 0) -> PrefixOutput:
  """Returns the prefix of a batch of observations; `reserve` as of `PaliGemma.encode_prefix`."""
  return apply(model, params, Pi0Fast.prefix, obs, reserve=reserve)


def sample_tokens(
  model: Pi0Fast, params: Params, obs: Observation, rng=None, *,
  max_decoding_steps: int = MAX_DECODING_STEPS, temperature: float = 0.0):
  """Returns the tokens int32[B, M] that the model writes after the prompt: `encode_prefix`, then `write_tokens`."""
  prefix = encode_prefix(model, params, obs, reserve=max_decoding_steps)
  return write_tokens(model, params, prefix, rng, max_decoding_steps=max_decoding_steps, temperature=temperature)


def write_tokens(
  model: Pi0Fast, params: Params, prefix: PrefixOutput, rng=None, *,
  max_decoding_steps: int = MAX_DECODING_STEPS, temperature: float = 0.0):
  """Returns the tokens int32[B, M] that the model writes after a prefix; zeros after the batch has stopped.

  As in openpi, decoding stops when every row writes EOS (1) at one and the same step: a row that ended before
  goes on, and what follows its EOS means nothing.

  Args:
    prefix: encoded with `reserve` as large as `max_decoding_steps`.
    rng: key of the draws; unused at temperature 0.
    max_decoding_steps: M, static.
    temperature: static; 0 or less takes the likeliest token, more draws from logits / temperature.
  """
  if temperature > 0 and rng is None:
    raise Pi0RagError(f"temperature {temperature} draws tokens: give an rng, or temperature 0 for the likeliest")
  read, decoding = _start(model, params, prefix, max_decoding_steps)

  def advance(state):
    decoding, rng = state["decoding"], state["rng"]
    if temperature > 0:
      rng, step_rng = jax.random.split(rng)
      token_B = jax.random.categorical(step_rng, decoding["logits_BV"][:, None] / temperature, axis=-1)[:, 0]
    else:
      token_B = jnp.argmax(decoding["logits_BV"], axis=-1)
    tokens_BM = state["tokens_BM"].at[:, decoding["step"]].set(token_B.astype(jnp.int32))
    return {
      "decoding": read(decoding, token_B), "rng": rng, "tokens_BM": tokens_BM,
      "done": jnp.all(token_B == EOS_TOKEN)}

  state = {
    "decoding": decoding, "rng": jax.random.key(0) if rng is None else rng,
    "tokens_BM": jnp.zeros((len(prefix.mask_BS), max_decoding_steps), jnp.int32), "done": jnp.bool_(False)}
  unfinished = lambda s: ~s["done"] & (s["decoding"]["step"] < max_decoding_steps)  # noqa: E731
  return jax.lax.while_loop(unfinished, advance, state)["tokens_BM"]


def token_logits(model: Pi0Fast, params: Params, obs: Observation, tokens_BM):
  """Returns the logits [B, M, V] that `sample_tokens` chooses each of these tokens from, having chosen those before.

  Args:
    tokens_BM: int32[B, M].
  """
  steps = tokens_BM.shape[1]
  read, decoding = _start(model, params, encode_prefix(model, params, obs, reserve=steps), steps)
  _, logits_MBV = jax.lax.scan(lambda d, token_B: (read(d, token_B), d["logits_BV"]), decoding, tokens_BM.T)
  return logits_MBV.swapaxes(0, 1)


def _start(model: Pi0Fast, params: Params, prefix: PrefixOutput, steps: int):
  """Returns (read, decoding): `read(decoding, token_B)` is the decoding after one more token, for so many steps.

  A decoding has `step`, the `logits_BV` of the next token, and a `kv_cache` of the prefix and the slots to fill.
  """
  visible_BS, last_B = _visible_slots(prefix.mask_BS)
  # openpi leaves out the position after the prompt.
  first_B = prefix.mask_BS.sum(axis=1, dtype=jnp.int32) + 1
  B, S = visible_BS.shape

  def read(decoding, token_B):
    step, cache = decoding["step"], decoding["kv_cache"]
    read_BM = jnp.broadcast_to(jnp.arange(steps) < step, (B, steps))
    logits_BV, kv = apply(
      model, params, Pi0Fast.decode_step, token_B, first_B + step, jnp.concatenate([visible_BS, read_BM], axis=1),
      cache)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=S + step, axis=2)
    return {"step": step + 1, "logits_BV": logits_BV, "kv_cache": tuple(map(put, cache, kv))}

  assert prefix.hidden_BSD is not None, "a language model's prefix has them"
  hidden_B1D = jnp.take_along_axis(prefix.hidden_BSD, last_B[:, None, None], axis=1)
  logits_BV = apply(model, params, Pi0Fast.logits, hidden_B1D)[:, 0]
  room = [(0, 0), (0, 0), (0, steps), (0, 0), (0, 0)]
  cache = tuple(jnp.pad(array, room) for array in prefix.kv_cache)
  return read, {"step": jnp.int32(0), "logits_BV": logits_BV, "kv_cache": cache}


def _visible_slots(mask_BS):
  """Returns (bool[B, S], int32[B]): the prefix slots that decoded tokens see, and the last valid one.

  openpi moves the last valid token to the end of the prefix and shows as many slots up to it as there are valid
  tokens. Without a gap in the mask these are the valid ones; a masked camera hides the first valid tokens instead.
  """
  slot_S = jnp.arange(mask_BS.shape[1], dtype=jnp.int32)
  last_B = jnp.max(jnp.where(mask_BS, slot_S, 0), axis=1)
  first_B = last_B + 1 - mask_BS.sum(axis=1, dtype=jnp.int32)
  return (slot_S >= first_B[:, None]) & (slot_S <= last_B[:, None]), last_B
