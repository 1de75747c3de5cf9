"""Tests of the renderers."""

import mujoco
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.outlines import Outlines
from pi0rag_jax.sim.render import make_renderer
from pi0rag_jax.sim.scene import CAMERAS

HAS_GL = hasattr(mujoco, "GLContext")


def _red(picture) -> np.ndarray:
  picture = picture.astype(int)
  return (picture[..., 0] > 60) & (picture[..., 1:].max(axis=-1) < 0.3 * picture[..., 0])


def _env_with_red_target(**options) -> PandaEnv:
  env = PandaEnv(**options)
  seed = next(s for s in range(50) if env.reset(seed=s)[0]["prompt"].startswith("pick up the red"))
  env.reset(seed=seed)
  return env


@pytest.mark.parametrize("size", [32, 64, 100])
def test_raycast_pictures_have_the_size_and_colours(size):
  pictures = _env_with_red_target(image_size=size).observe()["image"]
  for name in CAMERAS:
    assert pictures[name].shape == (size, size, 3) and pictures[name].dtype == np.uint8
    assert len(np.unique(pictures[name].reshape(-1, 3), axis=0)) > 5
  # A 5 cm cube is about a tenth of the picture wide.
  share = _red(pictures["base_0_rgb"]).mean()
  assert 0.004 < share < 0.04


def test_the_wrist_camera_sees_both_pads():
  env = PandaEnv()
  picture = env.reset(seed=0)[0]["image"]["left_wrist_0_rgb"].astype(int)
  orange = (picture[..., 0] > 100) & (picture[..., 2] < 40) & (picture[..., 1] > 50) & (picture[..., 1] < 160)
  assert orange[:, :32].sum() > 10 and orange[:, 32:].sum() > 10


def test_raycast_is_deterministic_across_renderers():
  first, second = PandaEnv(), PandaEnv()
  for env in (first, second):
    env.reset(seed=7)
  for name in CAMERAS:
    assert np.array_equal(first.observe()["image"][name], second.observe()["image"][name])


@pytest.mark.parametrize(("task", "condition", "size"), [
  ("pick_and_place", "camera_shift_double", 64), ("pouring", "wrist_camera_turn", 33), ("stacking", "nominal", 48)])
def test_pixels_that_are_not_cast_are_what_a_ray_would_see(task, condition, size, monkeypatch):
  env, left_out = PandaEnv(task, condition, image_size=size), 0
  moves_NTA = np.random.default_rng(0).uniform((-0.015,) * 3 + (-0.075, 0), (0.015, 0.015, 0.008, 0.075, 1), (6, 1, 5))
  moves_NTA = np.repeat(moves_NTA, 8, axis=1)

  def looks():
    env.begin(seed=3)
    for moves_TA in moves_NTA:
      yield from env.observe()["image"].values()
      env.advance(moves_TA)

  seen = list(looks())
  pixels = Outlines.pixels

  def counted(*args):
    nonlocal left_out
    left_out += size * size - len(pixels(*args))
    return np.arange(size * size)

  monkeypatch.setattr(Outlines, "pixels", counted)
  for few, every in zip(seen, looks()):
    np.testing.assert_array_equal(few, every)
  assert left_out > 0.3 * len(seen) * size * size


def test_unknown_renderers_list_the_valid_ones():
  with pytest.raises(Pi0RagError, match=r"unknown renderer 'opengl2'.*auto, opengl, raycast"):
    PandaEnv(renderer="opengl2")


def test_auto_takes_what_there_is():
  env = PandaEnv(render_images=False)
  renderer = make_renderer("auto", env.physics.model, 32)
  assert renderer.name == ("opengl" if HAS_GL else "raycast")
  renderer.close()


@pytest.mark.skipif(HAS_GL, reason="OpenGL is there")
def test_missing_opengl_says_what_to_install():
  env = PandaEnv(renderer="opengl")
  with pytest.raises(Pi0RagError, match="apt-get install"):
    env.reset(seed=0)


@pytest.mark.skipif(not HAS_GL, reason="no OpenGL here")
def test_opengl_sees_the_same_scene_as_raycast():
  raycast, opengl = (_env_with_red_target(renderer=name) for name in ("raycast", "opengl"))
  ours, theirs = raycast.observe()["image"], opengl.observe()["image"]
  opengl.close()
  for name in CAMERAS:
    assert theirs[name].shape == (64, 64, 3)
    here, there = np.argwhere(_red(ours[name])), np.argwhere(_red(theirs[name]))
    if len(here) > 10:
      np.testing.assert_allclose(here.mean(axis=0), there.mean(axis=0), atol=1.0)
