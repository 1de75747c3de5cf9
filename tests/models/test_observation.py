import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.observation import Observation

IMAGE = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)


def test_bytes_become_floats_and_a_camera_without_mask_is_present():
  obs = Observation.from_dict({"image": {"front": IMAGE}, "state": np.ones((1, 2))})
  np.testing.assert_allclose(obs.images["front"].reshape(3), [-1, -0.6, 1], atol=1e-6)
  assert obs.images["front"].dtype == np.float32 and obs.state.dtype == np.float32
  np.testing.assert_array_equal(obs.image_masks["front"], [True])
  assert obs.tokenized_prompt is None


def test_floats_pass_as_they_are_and_the_input_is_not_changed():
  image = np.full((1, 1, 1, 3), 0.25, np.float32)
  data = {"image": {"front": image}, "image_mask": {"front": np.array([False])}, "state": np.ones((1, 2))}
  obs = Observation.from_dict(data)
  np.testing.assert_array_equal(obs.images["front"], image)
  assert not obs.image_masks["front"][0]
  assert data["image"]["front"] is image


def test_a_prompt_without_its_mask_is_refused():
  data = {"image": {}, "state": np.ones((1, 2)), "tokenized_prompt": np.ones((1, 3), np.int32)}
  with pytest.raises(Pi0RagError, match="given together"):
    Observation.from_dict(data)


def test_a_missing_part_is_named():
  with pytest.raises(Pi0RagError, match=r"no state in a dictionary of \['image'\]"):
    Observation.from_dict({"image": {}})
