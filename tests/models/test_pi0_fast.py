import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention, pi0_fast
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.siglip import SiglipConfig

STEPS = 5
SAMPLE = jax.jit(pi0_fast.sample_tokens, static_argnums=0, static_argnames=("max_decoding_steps", "temperature"))
LOGITS = jax.jit(pi0_fast.token_logits, static_argnums=0)
LOSS = jax.jit(pi0_fast.loss, static_argnums=0)


@pytest.fixture(scope="module")
def fast():
  """A model of two layers; the prefix has 6 tokens of each of two cameras and 6 of the prompt."""
  return pi0_fast.Pi0Fast(pi0_fast.Pi0FastConfig(
    paligemma=GemmaConfig(width=24, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8),
    siglip=SiglipConfig(width=16, depth=1, mlp_dim=24, num_heads=2, patch_size=8, zero_head=False),
    action_dim=3, state_dim=4, action_horizon=5, max_token_len=6, vocab_size=32, image_size=(16, 24),
    image_keys=("front", "wrist"), dtype="float32"))


@pytest.fixture(scope="module")
def fast_params(fast, random_params):
  return random_params(functools.partial(pi0_fast.init, fast.config))


@pytest.fixture
def both_cameras(obs):
  return obs.replace(image_masks={key: jnp.ones(3, bool) for key in obs.image_masks})


@pytest.fixture
def tokens_BM():
  """Tokens to read: what this tiny model would choose by itself hardly varies."""
  return jnp.asarray(np.random.default_rng(5).integers(0, 32, (3, STEPS)), jnp.int32)


def learning(obs):
  """Returns the observation as in training: row 0 has three tokens to learn, row 1 one, row 2 none."""
  ar_mask_BL = jnp.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
  return obs.replace(token_ar_mask=ar_mask_BL, token_loss_mask=ar_mask_BL.astype(bool))


def embed(network, token_BL):
  return network.PaliGemma.llm.embed(token_BL)


def run_llm(network, x_BTD, positions_BT, mask_BTS, cache=None):
  (hidden_BTD,), kv = network.PaliGemma.llm((x_BTD,), positions_BT, mask_BTS, cache=cache)
  return network.logits(hidden_BTD), kv


@functools.partial(jax.jit, static_argnums=0)
def logits_without_cache(model, params, obs, tokens_BM):
  """Returns logits[B, STEPS, V] of one pass over the whole sequence; the prefix has no gap."""
  apply = functools.partial(model.apply, {"params": params})
  prefix_BSD, mask_BS, ar_mask_BS = apply(obs, method="embed_prefix")
  size, count_B = mask_BS.shape[1], mask_BS.sum(axis=1)
  slot_T = jnp.arange(size + STEPS)
  mask_BT = jnp.pad(mask_BS, ((0, 0), (0, STEPS)), constant_values=True)
  decoded_TT = (slot_T[:, None] >= size) & (slot_T[None] <= slot_T[:, None])
  allowed_BTT = jnp.pad(attention.attention_mask(mask_BS, ar_mask_BS), ((0, 0), (0, STEPS), (0, STEPS)))
  decoded_BM = count_B[:, None] + 1 + jnp.arange(STEPS)
  positions_BT = jnp.concatenate([jnp.cumsum(mask_BS, axis=1) - 1, decoded_BM], axis=1)
  x_BTD = jnp.concatenate([prefix_BSD, apply(tokens_BM, method=embed)], axis=1)
  logits_BTV, _ = apply(x_BTD, positions_BT, allowed_BTT | (decoded_TT & mask_BT[:, None]), method=run_llm)
  last_B1 = jnp.max(jnp.where(mask_BS, slot_T[:size], 0), axis=1, keepdims=True)
  chosen_from_BM = jnp.concatenate([last_B1, jnp.tile(slot_T[size:-1], (len(count_B), 1))], axis=1)
  return jnp.take_along_axis(logits_BTV, chosen_from_BM[..., None], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def logits_as_openpi(model, params, obs, tokens_BM):
  """Returns logits[B, STEPS, V] by openpi's steps: the prefix moved to the right, as many slots seen as are valid."""
  apply = functools.partial(model.apply, {"params": params})
  x_BSD, mask_BS, ar_mask_BS = apply(obs, method="embed_prefix")
  size, count_B = mask_BS.shape[1], mask_BS.sum(axis=1)
  shift_B = size - 1 - jnp.max(jnp.where(mask_BS, jnp.arange(size), 0), axis=1)
  allowed_BSS = attention.attention_mask(mask_BS, ar_mask_BS)
  x_BSD = jax.vmap(lambda x, n: jnp.roll(x, n, axis=0))(x_BSD, shift_B)
  allowed_BSS = jax.vmap(lambda m, n: jnp.roll(m, n, axis=(0, 1)))(allowed_BSS, shift_B)
  positions_BS = jnp.cumsum(jax.vmap(jnp.roll)(mask_BS, shift_B), axis=1) - 1
  # Empty slots, for tokens to come, count in the uniform attention of masked rows.
  empty = jnp.zeros((2, len(shift_B), STEPS, 1, 8))
  padded_BST = jnp.pad(allowed_BSS, ((0, 0), (0, 0), (STEPS, 0)))
  logits_BTV, cache = apply(x_BSD, positions_BS, padded_BST, (empty, empty), method=run_llm)
  seen_BS = jnp.arange(size) >= (size - count_B)[:, None]
  found = []
  for step in range(STEPS):
    found.append(logits_BTV[:, -1])
    x_B1D = apply(tokens_BM[:, step, None], method=embed)
    seen_B1T = jnp.pad(seen_BS, ((0, 0), (0, step + 1)), constant_values=True)[:, None]
    logits_BTV, new = apply(x_B1D, count_B[:, None] + step + 1, seen_B1T, cache, method=run_llm)
    cache = jax.tree.map(lambda old, one: jnp.concatenate([old, one], axis=2), cache, new)
  return jnp.stack(found, axis=1)


def test_cached_decoding_is_the_uncached_one(fast, fast_params, both_cameras, tokens_BM):
  seen_BMV = LOGITS(fast, fast_params, both_cameras, tokens_BM)
  assert seen_BMV.shape == (3, STEPS, 32)
  np.testing.assert_allclose(seen_BMV, logits_without_cache(fast, fast_params, both_cameras, tokens_BM), atol=1e-4)


def test_a_masked_camera_is_decoded_as_by_openpi(fast, fast_params, obs, tokens_BM):
  # Its gap in the prefix makes openpi's decoder hide valid tokens and see masked ones.
  seen_BMV = LOGITS(fast, fast_params, obs, tokens_BM)
  np.testing.assert_allclose(seen_BMV, logits_as_openpi(fast, fast_params, obs, tokens_BM), atol=1e-4)


def test_greedy_tokens_are_the_likeliest(fast, fast_params, both_cameras):
  seen_BM = SAMPLE(fast, fast_params, both_cameras, max_decoding_steps=STEPS)
  assert seen_BM.dtype == jnp.int32
  logits_BMV = LOGITS(fast, fast_params, both_cameras, seen_BM)
  np.testing.assert_array_equal(seen_BM, jnp.argmax(logits_BMV, axis=-1))


def test_padding_does_not_matter(fast, fast_params, both_cameras, tokens_BM):
  mask_BL = both_cameras.tokenized_prompt_mask
  other = both_cameras.replace(tokenized_prompt=jnp.where(mask_BL, both_cameras.tokenized_prompt, 7))
  one, two = (LOGITS(fast, fast_params, o, tokens_BM) for o in (both_cameras, other))
  np.testing.assert_allclose(one, two, atol=1e-5)


def test_decoding_stops_when_all_rows_end_together(fast, fast_params, both_cameras):
  free = np.asarray(SAMPLE(fast, fast_params, both_cameras, max_decoding_steps=STEPS))
  # A table whose row for EOS leads all others makes it the likeliest token of every row.
  table = fast_params["PaliGemma"]["llm"]["embedder"]["input_embedding"]
  prefix = jax.jit(pi0_fast.encode_prefix, static_argnums=0)(fast, fast_params, both_cameras)
  last_B = [np.flatnonzero(row)[-1] for row in np.asarray(prefix.mask_BS)]
  hidden_BD = np.stack([prefix.hidden_BSD[i, at] for i, at in enumerate(last_B)])
  wanted_D = np.linalg.pinv(hidden_BD) @ np.full(3, 100.0, np.float32)
  llm = fast_params["PaliGemma"]["llm"] | {"embedder": {"input_embedding": table.copy()}}
  llm["embedder"]["input_embedding"][pi0_fast.EOS_TOKEN] = wanted_D
  ending = {"PaliGemma": fast_params["PaliGemma"] | {"llm": llm}}
  prompt_BL = jnp.where(both_cameras.tokenized_prompt == pi0_fast.EOS_TOKEN, 2, both_cameras.tokenized_prompt)
  seen = SAMPLE(fast, ending, both_cameras.replace(tokenized_prompt=prompt_BL), max_decoding_steps=STEPS)
  assert (free[:, 1:] != 0).any()
  np.testing.assert_array_equal(seen, [[pi0_fast.EOS_TOKEN, 0, 0, 0, 0]] * 3)


def test_temperature_draws_from_the_logits(fast, fast_params, both_cameras):
  draw = functools.partial(SAMPLE, fast, fast_params, both_cameras, max_decoding_steps=STEPS)
  cold = draw(jax.random.key(0), temperature=1e-4)
  np.testing.assert_array_equal(cold, draw())
  hot = [draw(jax.random.key(seed), temperature=100.0) for seed in (0, 1, 0)]
  np.testing.assert_array_equal(hot[0], hot[2])
  assert (hot[0] != hot[1]).any() and (hot[0] != cold).any()


def test_the_loss_is_the_mean_over_the_tokens_to_learn(fast, fast_params, both_cameras):
  obs = learning(both_cameras)
  seen_B = LOSS(fast, fast_params, obs)
  hidden = jax.jit(lambda p, o: fast.apply({"params": p}, o, method="hidden_of_prompt"))
  table_VD = fast_params["PaliGemma"]["llm"]["embedder"]["input_embedding"]
  logits_BLV = np.asarray(hidden(fast_params, obs), np.float64) @ table_VD.T
  log_p_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(axis=-1, keepdims=True))
  prompt_BL = np.asarray(obs.tokenized_prompt)
  wanted_0 = -np.mean([log_p_BLV[0, i - 1, prompt_BL[0, i]] for i in (3, 4, 5)])
  np.testing.assert_allclose(seen_B, [wanted_0, -log_p_BLV[1, 1, prompt_BL[1, 2]], 0.0], rtol=1e-5)


def test_a_token_to_learn_does_not_see_its_followers(fast, fast_params, both_cameras):
  obs = learning(both_cameras)
  hidden = jax.jit(lambda p, o: fast.apply({"params": p}, o, method="hidden_of_prompt"))
  other = obs.replace(tokenized_prompt=obs.tokenized_prompt.at[0, 4].set(9))
  change_L = np.abs(hidden(fast_params, obs) - hidden(fast_params, other))[0].max(axis=-1)
  assert (change_L[:4] == 0).all() and change_L[4] > 0


def test_what_the_loss_and_the_draws_need_is_named(fast, fast_params, obs):
  with pytest.raises(Pi0RagError, match="the observation lacks token_ar_mask, token_loss_mask"):
    pi0_fast.loss(fast, fast_params, obs)
  with pytest.raises(Pi0RagError, match=r"temperature 0\.7 draws tokens: give an rng"):
    pi0_fast.sample_tokens(fast, fast_params, obs, temperature=0.7)
