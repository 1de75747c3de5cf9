import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import base, discrete, registry


def config(**fields):
  made = registry.head_config("discrete", **{"feature_dim": 6, "action_dim": 3, "bins": 4} | fields)
  assert isinstance(made, discrete.DiscreteConfig)
  return made


def test_bins_are_equal_and_their_centres_are_within_them():
  values = np.array([-5.0, -1.0, -0.51, -0.49, 0.0, 0.99, 1.0, 7.0])
  index = discrete.bin_index(values, config())
  np.testing.assert_array_equal(index, [0, 0, 0, 1, 2, 3, 3, 3])
  np.testing.assert_allclose(discrete.bin_centre(index, config()), [-0.75] * 3 + [-0.25, 0.25] + [0.75] * 3)
  assert config(bins=256, bin_range=(-2.0, 2.0)).bin_width == 4 / 256


def test_the_answer_is_the_centre_of_the_likeliest_bin(make_head, features_BWD):
  head, params = make_head("discrete")
  output = base.apply(head, params, features_BWD)
  assert output.bin_logits.shape == (3, 8, 2, 2, 16)
  best = np.argmax(output.bin_logits, axis=-1)
  np.testing.assert_allclose(output.motion, -1 + (best + 0.5) / 8, atol=1e-6)


def test_an_empty_range_is_refused():
  with pytest.raises(Pi0RagError, match=r"4 bins over \(1.0, 1.0\); allowed: 2 or more"):
    config(bin_range=(1.0, 1.0))
