"""The auxiliary head reads the attention values of real tokens."""

import jax
import numpy as np
import tiny

from pi0rag_jax.models.pi0 import Pi0Config, PrefixOutput
from train import auxiliary


def _prefix(values_SX, mask_S):
  values = values_SX[None, None, :, None]
  return PrefixOutput(hidden_BSD=None, mask_BS=mask_S[None], kv_cache=(None, values), tokens_BSD=None)


def test_masked_tokens_do_not_count():
  config = Pi0Config.from_dict(tiny.make_config("unused").model.to_dict())
  params = auxiliary.init_head(jax.random.key(0), config, 3)
  values_SX = np.random.default_rng(0).normal(size=(5, config.paligemma.head_dim)).astype(np.float32)
  mask_S = np.array([True] * 3 + [False] * 2)
  out = auxiliary.predict(params, _prefix(values_SX, mask_S))
  assert out.shape == (1, 3)
  masked, seen = values_SX.copy(), values_SX.copy()
  masked[3:] = 100.0
  seen[0] += 1.0
  np.testing.assert_allclose(out, auxiliary.predict(params, _prefix(masked, mask_S)), rtol=1e-6)
  assert np.abs(np.asarray(out - auxiliary.predict(params, _prefix(seen, mask_S)))).max() > 1e-3
