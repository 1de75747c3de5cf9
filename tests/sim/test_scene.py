"""Tests of the scene: what the cameras are pointed at, and the ray-casting fix."""

import mujoco
import numpy as np
import pytest

from pi0rag_jax.sim.conditions import get_condition
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.scene import BASE_VIEW, CAMERAS, WRIST_VIEW, SceneSpec, build_model, camera_axes
from pi0rag_jax.worlds.world import CameraShift


def _project(view, point, size=64) -> np.ndarray:
  """Returns the pixel (x, y) at which a camera sees a point."""
  position, axes = camera_axes(view, CameraShift())
  x, y, z = axes.T @ (np.array(point) - position)
  focal = size / 2 / np.tan(np.deg2rad(view.fovy_deg) / 2)
  return np.array([size / 2 + focal * x / -z, size / 2 - focal * y / -z])


def test_base_camera_holds_the_work_area_closely():
  config = PandaEnv().task.config
  xs, ys = zip(config.area_low, config.area_high)
  pixels = np.array([_project(BASE_VIEW, (x, y, 0.0)) for x in xs for y in ys])
  assert pixels.min() > 2 and pixels.max() < 62
  cube = _project(BASE_VIEW, (0.5, 0.05, 0.025)) - _project(BASE_VIEW, (0.5, 0.0, 0.025))
  assert np.linalg.norm(cube) >= 5.5


def test_wrist_camera_sees_the_fingertips():
  pixel = _project(WRIST_VIEW, (0.0, 0.0, 0.1034))
  assert 2 < pixel[0] < 62 and 2 < pixel[1] < 62


def test_a_shift_moves_camera_and_axes():
  position, axes = camera_axes(BASE_VIEW, CameraShift())
  moved, turned = camera_axes(BASE_VIEW, CameraShift((0.1, 0.0, 0.0), (0.0, 0.2, 0.0)))
  np.testing.assert_allclose(moved - position, 0.1 * axes[:, 0], atol=1e-12)
  # A turn about the camera's up axis leaves it and moves the view by its angle.
  np.testing.assert_allclose(turned[:, 1], axes[:, 1], atol=1e-12)
  assert turned[:, 2] @ axes[:, 2] == pytest.approx(np.cos(0.2))


def test_batched_rays_see_what_single_rays_see():
  """mj_multiRay 3.8 drops turned bodies unless their bounds are widened: fingers would be invisible."""
  env = PandaEnv()
  env.reset(seed=1)
  model, data = env.physics.model, env.physics.data
  geom = np.zeros(1, np.int32)
  for camera in CAMERAS:
    origin = data.camera(camera).xpos
    aims = [data.geom(name).xpos for name in ("pad_left", "pad_right", "finger_left_0", "cube_target_0")]
    for ray in [aim - origin for aim in aims]:
      mujoco.mj_ray(model, data, origin, ray, None, 1, -1, geom, None)
      expected = geom[0]
      mujoco.mj_multiRay(model, data, origin, ray, None, 1, -1, geom, np.zeros(1), None, 1, 10.0)
      assert geom[0] == expected


def test_an_empty_scene_compiles():
  model = build_model(SceneSpec(), get_condition("nominal"))
  assert model.nq == 9 and model.nu == 8
