"""The parameters that training starts from: fresh ones fitted to the pictures, or a checkpoint's."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models import pi0
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.typing import Params
from train import auxiliary

# Enough for a channel mean; the whole data set is 1 GB.
MEAN_IMAGES = 512


def initial_params(config: pi0.Pi0Config, images: Mapping, *, seed: int, targets: int, checkpoint: str) -> dict:
  """Returns `{policy, auxiliary}` parameters.

  Args:
    config: of the model.
    images: camera -> uint8[F, S, S, 3], whose mean the patch embedding starts out removing.
    seed: of the fresh parameters.
    targets: how many numbers the auxiliary head predicts.
    checkpoint: a `params` directory to start the policy from; '' for fresh parameters.
  """
  policy_key, head_key = jax.random.split(jax.random.key(seed))
  # Compiled as one program: run operation by operation, a fresh model takes minutes on a busy machine.
  policy = jax.jit(functools.partial(pi0.init, config))(policy_key)
  if checkpoint:
    loaded = checkpoints.load_params(checkpoint, template=policy)
    policy = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), loaded, policy)
  else:
    policy = center_images(policy, images)
  return {"policy": policy, "auxiliary": auxiliary.init_head(head_key, config, targets)}


def center_images(policy: Params, images: Mapping) -> Params:
  """Returns the parameters with a patch bias that cancels the mean picture colour.

  Pictures reach the model as in openpi, scaled to [-1, 1] and not centered; a simulator's background is far from
  gray, and without this all patches start out alike.
  """
  means = [x[:: max(1, len(x) // MEAN_IMAGES)].mean(axis=(0, 1, 2), dtype=np.float64) for x in images.values()]
  mean_3 = np.mean(means, axis=0) / 255.0 * 2.0 - 1.0
  embedding = policy["PaliGemma"]["img"]["embedding"]
  bias = embedding["bias"] - jnp.einsum("hwcd,c->d", embedding["kernel"], mean_3.astype(np.float32))
  centered = {**embedding, "bias": bias.astype(embedding["bias"].dtype)}
  tower = {**policy["PaliGemma"]["img"], "embedding": centered}
  return {**policy, "PaliGemma": {**policy["PaliGemma"], "img": tower}}
