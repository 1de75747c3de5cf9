"""Camera pictures on their way to a model: dtype, channel order and size, as openpi's policies convert them."""

import numpy as np
from PIL import Image

from pi0rag_jax import errors

CHANNELS = 3


def to_uint8(image) -> np.ndarray:
  """Returns uint8 pictures; floats in [0, 1] are multiplied by 255 and cut off, not rounded.

  Errors: Pi0RagError for floats outside [0, 1] and for dtypes that are neither uint8 nor floating.
  """
  image = np.asarray(image)
  if image.dtype == np.uint8:
    return image
  if not np.issubdtype(image.dtype, np.floating):
    raise errors.Pi0RagError(f"image is {image.dtype}; allowed: uint8 in [0, 255] or floats in [0, 1]")
  if not (image.min(initial=0.0) >= 0.0 and image.max(initial=0.0) <= 1.0):
    raise errors.Pi0RagError(f"float image has values from {image.min():g} to {image.max():g}; allowed: [0, 1] "
                             "(uint8 images use [0, 255])")
  return (255 * image).astype(np.uint8)


def parse_image(image, name: str = "image") -> np.ndarray:
  """Returns a picture as uint8[H, W, 3], from uint8 or floats in [0, 1] with channels first or last."""
  image = np.asarray(image)
  if image.ndim != 3 or CHANNELS not in (image.shape[0], image.shape[-1]) or 0 in image.shape:
    raise errors.Pi0RagError(f"{name} has shape {image.shape}; allowed: [H, W, 3] or [3, H, W]")
  try:
    image = to_uint8(image)
  except errors.Pi0RagError as error:
    raise errors.Pi0RagError(f"{name}: {error}") from None
  return _channels_last(image) if image.shape[0] == CHANNELS else image


def _channels_last(image_CHW: np.ndarray) -> np.ndarray:
  """Returns a copy [H, W, C] in memory order; plane by plane takes a third of the time of a transposing copy."""
  image_HWC = np.empty((*image_CHW.shape[1:], len(image_CHW)), image_CHW.dtype)
  for channel, plane_HW in enumerate(image_CHW):
    image_HWC[..., channel] = plane_HW
  return image_HWC


def resize_with_pad(image_BHWC: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns uint8 pictures of another size in their own aspect ratio, centred on black.

  Pillow's bilinear filter, which averages where it shrinks; the client and the policies of openpi use it.

  Args:
    image_BHWC: uint8[..., H, W, 3]; pictures that have the size already may be of any type.
    height, width: px.
  """
  if image_BHWC.shape[-3:-1] == (height, width):
    return image_BHWC
  if image_BHWC.dtype != np.uint8:
    raise errors.Pi0RagError(f"images are resized as uint8, got {image_BHWC.dtype}{list(image_BHWC.shape)} for "
                             f"{height} x {width} px")
  small_height, small_width = _fitted_size(image_BHWC.shape[-3:-1], (height, width))
  top, left = (height - small_height) // 2, (width - small_width) // 2
  flat_XHWC = image_BHWC.reshape(-1, *image_BHWC.shape[-3:])
  out_XHWC = np.zeros((len(flat_XHWC), height, width, image_BHWC.shape[-1]), np.uint8)
  for out_HWC, image_HWC in zip(out_XHWC, flat_XHWC):
    resized = Image.fromarray(image_HWC).resize((small_width, small_height), Image.Resampling.BILINEAR)
    out_HWC[top : top + small_height, left : left + small_width] = np.asarray(resized)
  return out_XHWC.reshape(*image_BHWC.shape[:-3], height, width, image_BHWC.shape[-1])


def _fitted_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
  """Returns the largest (height, width) of the same aspect ratio within the target, rounded down."""
  ratio = max(size[0] / target[0], size[1] / target[1])
  return int(size[0] / ratio), int(size[1] / ratio)
