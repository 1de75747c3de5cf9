"""Films side by side: their size in pixels and bytes, and what they show."""

import io

import numpy as np
import pytest
from PIL import Image

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.pages import clips


def _film(frames: int) -> np.ndarray:
  """Returns a red square that crosses grey pictures of 64 px, uint8[frames, 64, 64, 3]."""
  film = np.full((frames, 64, 64, 3), 200, np.uint8)
  for step, frame in enumerate(film):
    frame[28:36, step : step + 8] = (200, 40, 30)
  return film


def test_a_clip_shows_both_sides_enlarged_and_rests_on_the_last_frame():
  content = clips.clip_webp(_film(25), _film(40))
  image = Image.open(io.BytesIO(content))
  assert image.size == (2 * 192 + clips.CLIP_GAP_PX, 192) and image.n_frames == 40
  image.seek(39)
  pixels = np.asarray(image.convert("RGB")).astype(int)
  # The left side ended at step 24, the right one at step 39; the square is three times as large.
  assert abs(pixels[96, 3 * (24 + 4)] - (200, 40, 30)).max() < 30
  assert abs(pixels[96, 192 + clips.CLIP_GAP_PX + 3 * (39 + 4)] - (200, 40, 30)).max() < 30
  assert len(content) <= clips.CLIP_BYTES


def test_one_side_is_a_clip_too():
  image = Image.open(io.BytesIO(clips.clip_webp(_film(5))))
  assert image.size == (192, 192) and image.n_frames == 5
  assert Image.open(io.BytesIO(clips.clip_still(_film(5)))).size == (192, 192)


def test_a_busy_clip_loses_frames_rather_than_grow():
  noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8)
  content = clips.clip_webp(noise, noise, limit_bytes=200_000)
  assert len(content) <= 200_000 and Image.open(io.BytesIO(content)).n_frames < 12


def test_sides_of_different_size_are_refused():
  with pytest.raises(Pi0RagError, match="frames of one size"):
    clips.clip_webp(np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8))
  with pytest.raises(Pi0RagError, match="frames of one size"):
    clips.clip_webp(np.zeros((0, 64, 64, 3), np.uint8))
