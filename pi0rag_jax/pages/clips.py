"""Short looping films, one or more side by side, as animated WebP."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pi0rag_jax.errors import Pi0RagError

CLIP_FPS = 10
CLIP_BYTES = 300_000
CLIP_PANE_PX = 192  # Target width of one side, reached by whole-number enlargement.
CLIP_GAP_PX = 8


def clip_webp(*sides, limit_bytes: int = CLIP_BYTES) -> bytes:
  """Returns one looping animation of about CLIP_FPS, its sides from left to right.

  They start together; a shorter one holds its last frame. Frames are left out until it fits.

  Args:
    sides: uint8[N, H, W, 3] each, N may differ.
    limit_bytes: size that the result keeps to, unless three frames are already more.
  """
  images = _side_by_side([np.asarray(side) for side in sides])
  stride = 1
  content = _animation(images, stride)
  while len(content) > limit_bytes and len(images) > 3 * stride:
    stride += 1
    content = _animation(images, stride)
  return content


def clip_still(*sides) -> bytes:
  """Returns the last frames of all sides as a WebP picture, for readers who want no motion."""
  buffer = io.BytesIO()
  _side_by_side([np.asarray(side)[-1:] for side in sides])[0].save(buffer, "WEBP")
  return buffer.getvalue()


def _side_by_side(sides: Sequence[np.ndarray]) -> list[Image.Image]:
  """Returns one picture per frame: all sides enlarged by a whole factor, with gaps between them."""
  if len({side.shape[1:] for side in sides}) != 1 or not all(len(side) for side in sides):
    shapes = " and ".join(str(side.shape) for side in sides)
    raise Pi0RagError(f"clip frames have the shapes {shapes}: all sides need frames of one size")
  height, width = sides[0].shape[1:3]
  scale = max(1, CLIP_PANE_PX // width)
  pane = (width * scale, height * scale)
  images = []
  for step in range(max(map(len, sides))):
    image = Image.new("RGBA", (len(sides) * (pane[0] + CLIP_GAP_PX) - CLIP_GAP_PX, pane[1]))
    for i, frames in enumerate(sides):
      frame = Image.fromarray(frames[min(step, len(frames) - 1)])
      image.paste(frame.resize(pane, Image.Resampling.NEAREST), (i * (pane[0] + CLIP_GAP_PX), 0))
    images.append(image)
  return images


def _animation(images: Sequence[Image.Image], stride: int) -> bytes:
  """Returns every `stride`-th picture as an animated WebP of unchanged speed that rests on the last one."""
  kept = [*images[:-1:stride], images[-1]]
  durations_ms = [1000 * stride // CLIP_FPS] * (len(kept) - 1) + [1500]
  buffer = io.BytesIO()
  kept[0].save(
    buffer, "WEBP", save_all=True, append_images=kept[1:], duration=durations_ms, loop=0, quality=70, method=4
  )
  return buffer.getvalue()
