"""Policies that run in a moment: sizes, random parameters, statistics, and what a DROID robot sees."""

import dataclasses
import functools

import jax
import numpy as np

from pi0rag_jax.models import registry
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS

# Sizes that run in a moment, for the two kinds of sampling.
FLOW = dataclasses.replace(registry.model("dummy"), image_keys=OPENPI_CAMERAS, action_dim=16, max_token_len=96,
                           vocab_size=1024, pi05=True)
TOKENS = dataclasses.replace(registry.model("dummy_fast"), action_dim=8, max_token_len=96, vocab_size=1024)


@functools.cache
def fresh(model):
  """Random parameters, drawn by numpy: the initializers are slow to compile."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(functools.partial(registry.init, model), jax.random.key(0))
  return jax.tree.map(lambda x: rng.normal(scale=0.1, size=x.shape).astype(x.dtype), shapes)


def stats(dim):
  return {"mean": np.zeros(dim), "std": np.ones(dim), "q01": np.full(dim, -2.0), "q99": np.full(dim, 2.0)}


def droid_observation(**changes):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (60, 80, 3), np.uint8)
  return {"observation/exterior_image_1_left": image, "observation/wrist_image_left": image,
          "observation/joint_position": rng.normal(size=7), "observation/gripper_position": np.array([0.5]),
          "prompt": "stack the cups", **changes}
