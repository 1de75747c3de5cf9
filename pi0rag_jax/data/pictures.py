"""Pictures: which arrays are a camera's, and how encoded and plain ones become uint8[H, W, 3] in RGB."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Others (EPS among them) run programs or have decoders that nobody needs here.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "JPEG2000")
Image.init()  # else `open` knows of few
# 8-bit grey or colour, with or without a palette or an alpha channel.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
MAX_PIXELS = 2**25  # 8K video has 33.2 million
CHANNELS = (1, 3, 4)
# Pictures with such a word in their name measure something else than light, unless a word of light is there too.
OTHER_WORDS = ("depth", "disparity", "segm", "mask", "label", "normals", "optical_flow", "point_cloud", "heatmap")
LIGHT_WORDS = ("rgb", "color", "colour")


class NotRgbError(ValueError):
  """Depth, a mask, or something else that no camera of a policy sees."""


def decode(source: bytes | Path) -> np.ndarray:
  """Returns uint8[H, W, 3] of an encoded picture; an alpha channel is dropped.

  Raises:
    NotRgbError: it has more than 8 bits per channel.
    ValueError or OSError: it is damaged, too large, or of another kind.
  """
  stream = io.BytesIO(source) if isinstance(source, bytes) else source
  try:
    image = Image.open(stream, formats=FORMATS)
  except Image.UnidentifiedImageError:
    start = source[:8] if isinstance(source, bytes) else f"'{source}'"
    raise ValueError(f"{start!r}... is no picture of a kind that is read: {', '.join(FORMATS)}") from None
  with image:
    check_size(image.height, image.width)
    if image.mode not in MODES:
      raise NotRgbError(f"the picture has pixels of kind '{image.mode}', no 8-bit grey or colour")
    return np.asarray(image.convert("RGB"))


def check_size(height: int, width: int) -> None:
  """Raises ValueError for pictures that no camera takes, before they are decoded."""
  if height * width > MAX_PIXELS:
    raise ValueError(f"the picture has {height} x {width} px, read are up to {MAX_PIXELS} px")


def stack(pictures: Sequence[np.ndarray], indices: Sequence[int]) -> np.ndarray:
  """Returns uint8[N, H, W, 3]; `indices` are the frames' numbers, for the message.

  Raises:
    ValueError: they differ in size.
  """
  for picture, index in zip(pictures, indices):
    if picture.shape != pictures[0].shape:
      (height, width), (other_height, other_width) = pictures[0].shape[:2], picture.shape[:2]
      raise ValueError(f"pictures differ in size: frame {indices[0]} has {height} x {width} px, frame {index} "
                       f"{other_height} x {other_width} px")
  return np.stack(pictures) if pictures else np.zeros((0, 1, 1, 3), np.uint8)


def why_not_rgb(name: str, shape: Sequence[int], dtype: Any) -> str:
  """Returns why an array [F, ...] of that name holds no RGB pictures, '' where it does."""
  dtype, shape = np.dtype(dtype), tuple(shape)
  channels = 1 if len(shape) == 3 else _channels(shape) if len(shape) == 4 else 0
  if channels and (word := other_word(name)):
    return f"'{word}' in its name"
  if channels in CHANNELS and 0 not in shape[1:] and (dtype == np.uint8 or (dtype.kind == "f" and channels > 1)):
    return ""
  return f"stored is {dtype}{list(shape)}, no picture in 8-bit grey or colour"


def other_word(name: str) -> str:
  """Returns the word in a name that says that it is no camera's, or ''."""
  name = name.lower()
  return "" if any(word in name for word in LIGHT_WORDS) else next((word for word in OTHER_WORDS if word in name), "")


def as_rgb(frames: np.ndarray, *, white: float = 1.0) -> np.ndarray:
  """Returns uint8[F, H, W, 3] of pictures in grey or colour, with an alpha channel or without.

  Args:
    frames: uint8 or floats, [F, H, W], [F, H, W, C] or [F, C, H, W].
    white: the value of white in floats.
  Raises:
    ValueError: it is something else, or floats outside 0 to `white`.
  """
  if reason := why_not_rgb("", frames.shape, frames.dtype):
    raise NotRgbError(reason)
  if frames.ndim == 3:
    frames = frames[..., None]
  elif frames.shape[-1] not in CHANNELS:
    frames = np.moveaxis(frames, 1, -1)
  if frames.dtype.kind == "f":
    low, high = (float(f(initial=0.0)) for f in (frames.min, frames.max))
    if not (low >= 0 and high <= white):
      raise ValueError(f"pictures in floats reach from {low:g} to {high:g}, allowed: 0 to {white:g}")
    frames = np.rint(frames * (255 / white)).astype(np.uint8)
  return np.ascontiguousarray(np.broadcast_to(frames[..., :3], (*frames.shape[:-1], 3)))


def _channels(shape: Sequence[int]) -> int:
  return next((size for size in (shape[-1], shape[1]) if size in CHANNELS), shape[-1])
