"""Pictures: what is decoded, and what is refused before it fills the memory."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pi0rag_jax.data import pictures

RGB = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)


def encoded(array, kind="PNG", **options) -> bytes:
  file = io.BytesIO()
  Image.fromarray(array).save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize("data, expected", [
  (encoded(RGB), RGB), (encoded(RGB, "BMP"), RGB), (encoded(RGB, "WEBP", lossless=True), RGB),
  (encoded(np.dstack([RGB, RGB[..., 0]])), RGB), (encoded(RGB[..., 0]), np.repeat(RGB[..., :1], 3, -1)),
], ids=["png", "bmp", "webp", "rgba", "grey"])
def test_colour_and_grey_are_decoded(data, expected):
  np.testing.assert_array_equal(pictures.decode(data), expected)


def test_deep_pixels_are_no_rgb():
  with pytest.raises(pictures.NotRgbError, match=r"no 8-bit grey or colour"):
    pictures.decode(encoded(np.full((8, 12), 700, np.uint16)))


def test_gigantic_pictures_are_refused_before_they_are_decoded():
  header = (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
  chunk = lambda kind, data: (  # noqa: E731
    len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big"))
  bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
  with pytest.raises(Exception, match=r"50000 x 50000 px, read are up to|exceeds limit"):
    pictures.decode(bomb)


@pytest.mark.parametrize("data", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a" + bytes(20)])
def test_other_kinds_are_told(data):
  with pytest.raises(ValueError, match=r"no picture of a kind that is read: JPEG, PNG"):
    pictures.decode(data)


def test_sizes_that_differ_name_their_frames():
  with pytest.raises(ValueError, match=r"frame 3 has 8 x 12 px, frame 7 4 x 12 px"):
    pictures.stack([RGB, RGB, RGB[:4]], [3, 5, 7])


@pytest.mark.parametrize(("name", "shape", "why_not"), [
  ("head_depth", (2, 8, 8, 3), "'depth' in its name"), ("view_segmentation", (2, 8, 8, 3), "'segm' in its name"),
  ("normals", (2, 8, 8, 3), "'normals' in its name"), ("depth_camera/rgb", (2, 8, 8, 3), ""), ("grey", (2, 8, 8), ""),
  ("front", (2, 0, 8, 3), "no picture"),
])
def test_names_and_sizes_tell_what_is_no_camera(name, shape, why_not):
  found = pictures.why_not_rgb(name, shape, np.uint8)
  assert why_not in found and bool(found) == bool(why_not)
