"""The models that benchmarks run: their sizes, random parameters and inputs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models import registry
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.models.siglip import SiglipConfig
from pi0rag_jax.typing import Params

# Between the small policy and the released models: openpi's own code takes 751 ms to sample a chunk of it on two idle
# cores (1589 ms on busy ones), and 2790 (4878) ms for loss and gradient.
MIDSIZE = Pi0Config(
  action_dim=32, action_horizon=50, max_token_len=48, vocab_size=4096, dtype="float32",
  siglip=SiglipConfig(width=384, depth=12, mlp_dim=1536, num_heads=6),
  paligemma=GemmaConfig(width=256, mlp_dim=1024, depth=6, num_heads=8, num_kv_heads=1, head_dim=32),
  expert=GemmaConfig(width=128, mlp_dim=512, depth=6, num_heads=8, num_kv_heads=1, head_dim=32))
_PI0 = {"midsize": MIDSIZE, "dummy": registry.model("dummy"), "pi0": registry.model("pi0")}
# pi0.5 of each: adaptive norms; at full size a longer prompt too.
_PI05 = {"pi05_midsize": dataclasses.replace(MIDSIZE, pi05=True), "pi05": registry.model("pi05"),
         "pi05_dummy": dataclasses.replace(_PI0["dummy"], pi05=True)}
SIZES: dict[str, Pi0Config] = {**_PI0, **_PI05}
_DRAWN = 1_000_003  # a prime, so that no rows of a matrix are alike


def params(config: Pi0Config) -> Params:
  """Returns random parameters in openpi's tree and in the model's computing type, on the host.

  Large ones repeat what was drawn: 3.2 B draws take minutes, and no time depends on them.
  """
  shapes, tree = jax.tree.flatten(jax.eval_shape(functools.partial(registry.init, config), jax.random.key(0)))
  drawn = (0.02 * np.random.default_rng(0).standard_normal(_DRAWN, np.float32)).astype(config.compute_dtype)
  return tree.unflatten([np.resize(np.roll(drawn, 7919 * i), x.shape) for i, x in enumerate(shapes)])


def observation(config: Pi0Config, *, batch: int, cameras: int | None = None) -> Observation:
  """Returns a batch with pictures of all cameras, of which the first `cameras` (None: all) are not masked."""
  rng = np.random.default_rng(1)
  image = rng.integers(0, 255, (batch, *config.image_size, 3)).astype(np.uint8)
  keys = config.image_keys
  present = len(keys) if cameras is None else cameras
  return Observation.from_dict({
    "image": {name: jnp.asarray(image) for name in keys},
    "image_mask": {name: jnp.full(batch, i < present) for i, name in enumerate(keys)},
    "state": jnp.asarray(rng.standard_normal((batch, config.state_size)), jnp.float32),
    "tokenized_prompt": jnp.ones((batch, config.max_token_len), jnp.int32),
    "tokenized_prompt_mask": jnp.ones((batch, config.max_token_len), bool)})


def input_shapes(config: Pi0Config, *, batch: int) -> dict[str, Any]:
  """Returns the shapes of a batch as a policy's transforms make it, pictures in bytes, with `actions`."""
  height, width = config.image_size
  shape = lambda *dims, dtype=jnp.float32: jax.ShapeDtypeStruct((batch, *dims), dtype)  # noqa: E731
  return {
    "image": {name: shape(height, width, 3, dtype=jnp.uint8) for name in config.image_keys},
    "state": shape(config.state_size), "tokenized_prompt": shape(config.max_token_len, dtype=jnp.int32),
    "tokenized_prompt_mask": shape(config.max_token_len, dtype=jnp.bool_),
    "actions": shape(config.action_horizon, config.action_dim)}


def with_cameras(config: Pi0Config, obs: Observation, cameras: int) -> tuple[Pi0Config, Observation]:
  """Returns the model of the first cameras alone, and what it sees."""
  keys = config.image_keys[:cameras]
  only = lambda values: {key: values[key] for key in keys}  # noqa: E731
  return dataclasses.replace(config, image_keys=keys), obs.replace(
    images=only(obs.images), image_masks=only(obs.image_masks))


def chunk(config: Pi0Config, *, batch: int):
  """Returns float32[batch, T, A], Gaussian."""
  shape = (batch, config.action_horizon, config.action_dim)
  return jnp.asarray(np.random.default_rng(2).standard_normal(shape), jnp.float32)
