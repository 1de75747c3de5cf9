"""Random changes of training pictures: openpi's own of the same key, and each kind of change alone."""

import colorsys
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import augmentation
from pi0rag_jax.models.augmentation import Augmentation, augment, augment_image, change_colors, reframe
from pi0rag_jax.models.observation import Observation

RECORDED = np.load(pathlib.Path(__file__).with_name("recorded.npz"))
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
# The contrast that spreads the middle tones threefold.
SLOPE_3 = float(np.arctan(3.0) * 4 / np.pi - 1)
NOTHING = {"brightness": 0.0, "contrast": 0.0, "hue": 0.0, "saturation": 0.0}


recolored = jax.jit(change_colors)
reframed = jax.jit(reframe, static_argnames="crop")
one_augmented = jax.jit(augment_image, static_argnames=("options", "wrist"))


@pytest.fixture
def image():
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (20, 30, 3)), jnp.float32)


def test_openpis_pictures_of_the_same_key():
  # Of the inputs, the pixels are kept that the recorded ones, every eighth, are made of.
  inputs = {name: jnp.stack([jnp.array(RECORDED[f"augment/in_u8/{name}"])] * 2) for name in CAMERAS}
  obs = Observation.from_dict({"image": inputs, "state": jnp.zeros((2, 2))})
  found = augment(jax.random.key(7), obs)
  for name in CAMERAS:
    np.testing.assert_allclose(found.images[name][:, ::8, ::8], RECORDED[f"augment/out_s8/{name}"], rtol=0, atol=5e-6)
    assert np.abs(found.images[name][0] - found.images[name][1]).max() > 0.1
  np.testing.assert_array_equal(found.state, obs.state)


def test_wrist_cameras_keep_their_frame(image):
  options = Augmentation(color_probability=0.0)
  same = one_augmented(jax.random.key(3), image, options=options, wrist=True)
  np.testing.assert_allclose(same, image, atol=1e-5)
  moved = one_augmented(jax.random.key(3), image, options=options, wrist=False)
  assert np.abs(moved - image).max() > 0.1


def test_a_quarter_turn_by_hand(image):
  square = image[:, :20]
  np.testing.assert_allclose(reframed(square, jnp.zeros(2), np.pi / 2, crop=1.0), np.rot90(square), atol=1e-4)


def test_a_cut_out_shows_what_is_around_its_centre():
  # Brightness grows by 1 a row, so in a cut-out of half the height by a half.
  ramp_HWC = jnp.broadcast_to(jnp.arange(40.0)[:, None, None], (40, 40, 3))
  found = reframed(ramp_HWC, jnp.array([4.0, 0.0]), 0.0, crop=0.5)
  np.testing.assert_allclose(found[:, 7, 0], 19.5 + 4 + (np.arange(40) - 19.5) / 2, atol=1e-4)


def test_what_a_rotation_leaves_open_is_black():
  found = reframed(jnp.ones((20, 20, 3)), jnp.zeros(2), np.deg2rad(30.0), crop=1.0)
  assert found[0, 0].max() == 0 and found[10, 10].min() == pytest.approx(1)


def test_hue_turns_the_colour_circle(image):
  image = (image + 1) / 2
  found = np.asarray(recolored(image, **{**NOTHING, "hue": 0.25, "saturation": -0.5}))
  for pixel, seen in zip(np.asarray(image).reshape(-1, 3)[:50], found.reshape(-1, 3)):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
    np.testing.assert_allclose(seen, colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation / 2, value), atol=1e-5)


@pytest.mark.parametrize(("change", "grey", "wanted"), [
  ({"brightness": 0.5}, 0.4, 0.7), ({"brightness": -0.5}, 0.4, 0.2), ({"contrast": 0.0}, 0.4, 0.4),
  ({"contrast": SLOPE_3}, 0.4, 0.2), ({"contrast": SLOPE_3}, 0.9, 2.9 / 3),
  ({"hue": 0.3}, 0.4, 0.4), ({"saturation": 0.5}, 0.4, 0.4)])
def test_greys_by_hand(change, grey, wanted):
  found = recolored(jnp.full((1, 1, 3), grey), **{**NOTHING, **change})
  np.testing.assert_allclose(found, np.full((1, 1, 3), wanted), atol=1e-6)


def test_amounts_stay_within_their_limits():
  options = Augmentation(saturation=0.2)
  rngs = jax.random.split(jax.random.key(0), 4000)
  amounts, (centers, angles) = jax.jit(jax.vmap(lambda rng: (
    augmentation.draw_colors(rng, options), augmentation.draw_frame(rng, (224, 112), options))))(rngs)
  assert float((amounts["hue"] != 0).mean()) == pytest.approx(0.5, abs=0.03)
  for name in NOTHING:
    limit = getattr(options, name)
    assert 0.97 * limit < float(jnp.abs(amounts[name]).max()) <= limit
  np.testing.assert_allclose(jnp.abs(centers).max(axis=0), [6, 3], rtol=0.03)
  assert float(jnp.abs(angles).max()) == pytest.approx(np.deg2rad(5), rel=0.03)


@pytest.mark.parametrize(("field", "value"), [("crop", 0), ("hue", -0.1), ("color_probability", 2)])
def test_impossible_amounts_are_named(field, value):
  with pytest.raises(Pi0RagError, match=f"{field} is {value}; allowed:"):
    Augmentation(**{field: value})
