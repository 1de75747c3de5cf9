"""Pictures on their way to a model, against openpi's records."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import images


@pytest.mark.parametrize("number", range(8))
def test_recorded_resizing(recorded, number):
  case = recorded["resize_with_pad"][number]
  # The copy has every `stride`-th pixel of large results.
  image, target, stride = case["in_uint8"], case["target"], case["stride"]
  np.testing.assert_array_equal(images.resize_with_pad(image, *target)[::stride, ::stride], case["client_pil_uint8"])


def test_floats_are_not_resized(recorded):
  """openpi fails on them within Pillow."""
  assert recorded["client_resize_float"].startswith("TypeError")
  with pytest.raises(Pi0RagError, match="images are resized as uint8, got float32"):
    images.resize_with_pad(np.zeros((4, 4, 3), np.float32), 8, 8)


def test_recorded_resizing_of_a_batch(recorded):
  case = recorded["resize_with_pad_batched"]
  np.testing.assert_array_equal(images.resize_with_pad(case["in_"], 32, 32), case["client"])


def test_recorded_conversion_to_uint8(recorded):
  case = recorded["convert_to_uint8"]
  np.testing.assert_array_equal(images.to_uint8(case["in_"]), case["out"])


def test_an_image_of_the_right_size_is_not_copied():
  image = np.zeros((8, 8, 3), np.uint8)
  assert images.resize_with_pad(image, 8, 8) is image


@pytest.mark.parametrize(("image", "message"), [
  (np.full((4, 4, 3), 1.5, np.float32), r"values from 1\.5 to 1\.5; allowed: \[0, 1\]"),
  (np.full((4, 4, 3), np.nan, np.float32), r"allowed: \[0, 1\]"),
  (np.zeros((4, 4, 3), np.int64), "image is int64; allowed: uint8"),
  (np.zeros((4, 4)), r"shape \(4, 4\); allowed: \[H, W, 3\] or \[3, H, W\]"),
])
def test_images_of_another_kind_are_refused(image, message):
  with pytest.raises(Pi0RagError, match=message):
    images.parse_image(image)


def test_channels_first_become_last():
  image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
  np.testing.assert_array_equal(images.parse_image(image), image.transpose(1, 2, 0))


def test_channels_come_last_in_memory_too():
  """The way to the device copies what lies otherwise, slowly."""
  image_CHW = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
  found = images.parse_image(image_CHW)
  assert found.flags.c_contiguous
  np.testing.assert_array_equal(found, image_CHW.transpose(1, 2, 0))
