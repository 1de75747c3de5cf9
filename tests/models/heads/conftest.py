"""Small heads of every kind, and a batch of windows for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.models.heads import base, registry

BATCH, WINDOW, CHUNK, WIDTH = 3, 4, 2, 6
SIZES = {
  "mlp": {"hidden_dims": (8,)},
  "discrete": {"hidden_dims": (8,), "bins": 16},
  "lstm": {"hidden": 8, "layers": 2},
  "transformer": {"width": 8, "layers": 2, "num_heads": 2},
}


def small_head(name, **changes):
  """Returns a head with random parameters."""
  fields = {"feature_dim": WIDTH, "action_dim": 3, "chunk": CHUNK, "window": WINDOW} | SIZES[name] | changes
  head = registry.make(registry.head_config(name, **fields))
  shapes = jax.eval_shape(lambda key: base.init(head, key), jax.random.key(0))
  rng = np.random.default_rng(0)
  return head, jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.4, size=x.shape), jnp.float32), shapes)


@pytest.fixture
def make_head():
  return small_head


@pytest.fixture
def features_BWD():
  """Twice as long as the window."""
  return np.random.default_rng(1).normal(size=(BATCH, 2 * WINDOW, WIDTH)).astype(np.float32)


@pytest.fixture
def batch(features_BWD):
  rng = np.random.default_rng(2)
  actions_BWTA = rng.normal(size=(BATCH, WINDOW, CHUNK, 3)).astype(np.float32)
  actions_BWTA[..., -1] = actions_BWTA[..., -1] > 0
  return {"features_BWD": features_BWD[:, :WINDOW], "actions_BWTA": actions_BWTA}
