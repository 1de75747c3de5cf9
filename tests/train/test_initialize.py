"""Fresh parameters: the patch embedding starts out blind to the mean colour."""

import numpy as np

from train import initialize


def test_the_mean_picture_becomes_zero():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
  policy = {"PaliGemma": {"img": {"embedding": {"kernel": kernel, "bias": np.zeros(5, np.float32)}, "head": {}}}}
  colour = np.array([10, 100, 250], np.uint8)
  images = {"a": np.broadcast_to(colour, (3, 4, 4, 3)), "b": np.broadcast_to(colour, (2, 4, 4, 3))}
  embedding = initialize.center_images(policy, images)["PaliGemma"]["img"]["embedding"]
  patch = np.broadcast_to(colour / 255.0 * 2 - 1, (2, 2, 3))
  np.testing.assert_allclose(np.einsum("hwc,hwcd->d", patch, kernel) + embedding["bias"], 0, atol=1e-5)
  np.testing.assert_array_equal(policy["PaliGemma"]["img"]["embedding"]["bias"], 0)
