"""Random changes of training pictures, as openpi makes them: crop, rotation and colours.

The draws come off the key as openpi's library (augmax 0.4.1) takes them, so that equal keys give equal pictures.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.observation import Observation

# Cameras with this in their names turn with the hand, and keep their frame.
WRIST = "wrist"
# How far red, green and blue are along the colour circle, in sixths and backwards, as the conversion from HSV needs it.
CHANNEL_OFFSETS = (5, 3, 1)
# What is changed about colours, in the order of the draws.
COLORS = ("brightness", "contrast", "hue", "saturation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """How far pictures are changed, uniformly between minus and plus; 0, for `crop` 1, leaves a kind of change out."""

  crop: float = 0.95  # side of the cut-out over the picture's, before it is enlarged again; not of wrist cameras
  rotation_deg: float = 5.0  # not of wrist cameras
  brightness: float = 0.3  # of the way to white, or to black
  contrast: float = 0.4  # of the way to two tones, or to one
  hue: float = 0.1  # turns of the colour circle
  # openpi asks for 0.5, which its library forgets to apply: its policies were trained with 0.
  saturation: float = 0.0  # share by which colours get stronger or weaker
  color_probability: float = 0.5  # of changing the colours of a picture at all

  def __post_init__(self):
    limits = {"crop": (0.05, 1), "rotation_deg": (0, 180), "brightness": (0, 1), "contrast": (0, 0.99), "hue": (0, 0.5),
              "saturation": (0, 1), "color_probability": (0, 1)}
    for name, (low, high) in limits.items():
      if not low <= getattr(self, name) <= high:
        raise Pi0RagError(f"augmentation: {name} is {getattr(self, name)}; allowed: {low} to {high}")


@functools.partial(jax.jit, static_argnames="options")
def augment(rng, obs: Observation, *, options: Augmentation = Augmentation()) -> Observation:
  """Returns the observation with pictures changed at random, each example of the batch by its own amounts. Compiled.

  As in openpi, one example's cameras share their draws. What a rotation leaves open is black.

  Args:
    obs: a batch, pictures in [-1, 1].
  """
  return augment_each(jax.random.split(rng, len(obs.state)), obs, options=options)


def augment_each(rng_B, obs: Observation, *, options: Augmentation) -> Observation:
  """Returns the observation with every example's pictures changed by what is drawn from its own key."""
  images = {name: jax.vmap(functools.partial(augment_image, options=options, wrist=WRIST in name))(rng_B, image)
            for name, image in obs.images.items()}
  return obs.replace(images=images)


def augment_image(rng, image_HWC, *, options: Augmentation, wrist: bool):
  """Returns one picture float32[H, W, 3] in [-1, 1], changed by the amounts that are drawn from the key."""
  image_HWC = (image_HWC + 1) / 2
  if wrist:
    (color_rng,) = jax.random.split(rng, 1)
  else:
    frame_rng, color_rng = jax.random.split(rng)
    image_HWC = reframe(image_HWC, *draw_frame(frame_rng, image_HWC.shape[:2], options), crop=options.crop)
  return change_colors(image_HWC, **draw_colors(color_rng, options)) * 2 - 1


def draw_frame(rng, size: tuple[int, int], options: Augmentation):
  """Returns (centre of the cut-out relative to the picture's, (y, x) in px; angle in rad) for `reframe`."""
  # Of openpi's crop, enlargement and rotation, the second draws nothing.
  crop_rng, _, rotation_rng = jax.random.split(rng, 3)
  room_2 = (jnp.array(size) - jnp.array(_cut_size(size, options.crop))) / 2
  limit = jnp.deg2rad(options.rotation_deg)
  center_2 = jax.random.uniform(crop_rng, (2,), minval=-room_2, maxval=room_2)
  return center_2, jax.random.uniform(rotation_rng, minval=-limit, maxval=limit)


def reframe(image_HWC, center_2, angle, *, crop: float):
  """Returns a cut-out of a picture, enlarged to the picture's size and rotated, sampled once, linearly.

  Args:
    center_2, angle: as of `draw_frame`; a positive angle turns the picture anticlockwise.
    crop: side of the cut-out over the picture's.
  """
  size = image_HWC.shape[:2]
  middle_211 = jnp.array(size).reshape(2, 1, 1) / 2 - 0.5
  shrink_21 = jnp.array(_cut_size(size, crop)).reshape(2, 1) / jnp.array(size).reshape(2, 1)
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  grid_2HW = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij")) - middle_211
  turn_22 = shrink_21 * jnp.array([[cos, sin], [-sin, cos]])
  # In float32 on every device: a hundredth of a pixel shows.
  where_2HW = jnp.tensordot(turn_22, grid_2HW, axes=1, precision="highest") + center_2[:, None, None] + middle_211
  sample = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=where_2HW, order=1, mode="constant")
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image_HWC)


def draw_colors(rng, options: Augmentation) -> dict[str, jax.Array]:
  """Returns the amounts of `change_colors`; all are 0 for a picture whose colours stay."""
  (rng,) = jax.random.split(rng, 1)
  apply = jax.random.bernoulli(rng, options.color_probability)
  rngs = jax.random.split(rng, 5)  # one more than there are amounts
  limits = jnp.array([getattr(options, name) for name in COLORS])
  amounts = jax.vmap(lambda rng, limit: jax.random.uniform(rng, minval=-limit, maxval=limit))(rngs[:-1], limits)
  return dict(zip(COLORS, jnp.where(apply, amounts, 0.0)))


def change_colors(image_HWC, brightness, contrast, hue, saturation):
  """Returns a picture in [0, 1] with other colours: value, hue and saturation are changed, in the HSV model.

  Args:
    brightness, contrast, hue, saturation: scalars, see Augmentation.
  """
  high_HW, span_HW = image_HWC.max(axis=-1), jnp.ptp(image_HWC, axis=-1)
  hue_HW = _hue(image_HWC, span_HW) + hue
  saturation_HW = jnp.minimum(span_HW / jnp.where(high_HW == 0, 1, high_HW) * (1 + saturation), 1)
  value_HW1 = _stretch(_towards(high_HW, brightness), contrast)[..., None]
  sixth_HWC = jnp.mod(jnp.array(CHANNEL_OFFSETS) + 6 * hue_HW[..., None], 6)
  return value_HW1 * (1 - saturation_HW[..., None] * jnp.clip(jnp.minimum(sixth_HWC, 4 - sixth_HWC), 0, 1))


def _hue(image_HWC, span_HW):
  """Returns where a picture's colours are on the circle, in turns from red; 0 for greys."""
  red, green, blue = jnp.moveaxis(image_HWC, -1, 0)
  differences = (green - blue, blue - red, red - green)
  largest = jnp.argmax(image_HWC, axis=-1)
  return (2 * largest + jnp.choose(largest, differences, mode="clip") / jnp.where(span_HW == 0, 1, span_HW)) / 6


def _towards(x, amount):
  """Returns x moved by a share of the way to 1, or of the way to 0 where the amount is negative."""
  return x * (1 - jnp.abs(amount)) + jnp.maximum(amount, 0)


def _stretch(x, amount):
  """Returns x with the middle tones spread, or drawn together where the amount is negative; 0 and 1 stay.

  Three straight pieces: the middle one has the slope tan(pi/4 (1 + amount)), the outer ones its inverse.
  """
  slope = jnp.tan((1 + amount) * jnp.pi / 4)
  knee = slope / (2 * (1 + slope))
  middle = 0.5 + slope * (x - 0.5)
  return jnp.where(x < knee, x / slope, jnp.where(x > 1 - knee, 1 - (1 - x) / slope, middle))


def _cut_size(size: tuple[int, ...], crop: float) -> tuple[int, ...]:
  """Returns the (height, width) of the cut-out, in px, rounded down."""
  return tuple(int(side * crop) for side in size)
