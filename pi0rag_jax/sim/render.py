"""Pictures of the named cameras: a ray-caster that needs no OpenGL, and MuJoCo's own renderer."""

import atexit
from typing import Protocol

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.sim.scene import BACKGROUND_RGB, CAMERAS, LIGHT_AMBIENT
from pi0rag_jax.worlds.backend import INSTALL_HINT, select_backend

__all__ = ["RENDERERS", "OpenGLRenderer", "RaycastRenderer", "Renderer", "make_renderer", "select_backend"]

# Light: from above and the front left, plus what every surface gets.
_LIGHT_DIRECTION = np.array([0.35, -0.35, 0.87])
_AMBIENT, _DIFFUSE = 0.55, 0.45
RENDERERS = ("raycast", "opengl", "auto")


class Renderer(Protocol):
  """Makes pictures of one model at one size."""

  name: str

  def render(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
    """Returns uint8[size, size, 3] for each camera; `data` must be up to date."""
    ...

  def close(self) -> None:
    """Frees what it holds."""
    ...


def available() -> tuple[str, ...]:
  """Returns the renderers that this machine has."""
  return ("raycast", "opengl") if hasattr(mujoco, "GLContext") else ("raycast",)


def make_renderer(name: str, model: mujoco.MjModel, size: int) -> Renderer:
  """Returns the renderer `name` for square pictures of `size` pixels; 'auto' is opengl where it works."""
  if name not in RENDERERS:
    raise unknown_name("renderer", name, RENDERERS)
  if name == "auto":
    name = available()[-1]
  return OpenGLRenderer(model, size) if name == "opengl" else RaycastRenderer(model, size)


class RaycastRenderer:
  """Flat colours with Lambert shading from one ray per pixel: the same picture on every machine."""

  name = "raycast"

  def __init__(self, model: mujoco.MjModel, size: int):
    self._model = model
    self._size = size
    self._cameras = {name: model.camera(name).id for name in CAMERAS}
    self._rays = {name: _pixel_rays(float(model.cam_fovy[i]), size) for name, i in self._cameras.items()}
    count = size * size
    self._geom_ids = np.empty(count, np.int32)
    self._distances = np.empty(count)
    self._normals = np.empty((count, 3))
    light = _LIGHT_DIRECTION / np.linalg.norm(_LIGHT_DIRECTION)
    self._light = np.ascontiguousarray(light * _DIFFUSE)
    # How bright the model's light is per colour, against the nominal one.
    self._brightness_3 = np.asarray(model.vis.headlight.ambient, np.float32) / np.float32(LIGHT_AMBIENT)

  def render(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
    """Returns uint8[size, size, 3] for each camera; `data` must be up to date."""
    return {name: self._picture(data, name) for name in self._cameras}

  def _picture(self, data: mujoco.MjData, name: str) -> np.ndarray:
    camera = self._cameras[name]
    directions = self._rays[name] @ data.cam_xmat[camera].reshape(3, 3).T
    mujoco.mj_multiRay(
      self._model, data, data.cam_xpos[camera], directions.reshape(-1), None, 1, -1,
      self._geom_ids, self._distances, self._normals.reshape(-1), len(directions), 10.0,
    )  # fmt: skip
    # The last row of the palette is the background, which a miss (id -1) picks.
    palette = np.concatenate([self._model.geom_rgba[:, :3], [BACKGROUND_RGB]]).astype(np.float32) * self._brightness_3
    shade = np.maximum(self._normals @ self._light, 0.0) + _AMBIENT
    shade[self._geom_ids < 0] = 1.0
    colours = palette[self._geom_ids] * (shade * 255.0).astype(np.float32)[:, None]
    return np.minimum(colours + 0.5, 255.0).astype(np.uint8).reshape(self._size, self._size, 3)

  def close(self) -> None:
    """Does nothing; there is nothing to free."""


class OpenGLRenderer:
  """MuJoCo's renderer without shadows and reflections. Pictures differ between OpenGL drivers."""

  name = "opengl"

  def __init__(self, model: mujoco.MjModel, size: int):
    if not hasattr(mujoco, "GLContext"):
      raise Pi0RagError(f"renderer 'opengl' finds no OpenGL here: use 'raycast', or {INSTALL_HINT}")
    model.vis.quality.offsamples = 0
    self._renderer = mujoco.Renderer(model, size, size)
    self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    # A context that outlives the interpreter's OpenGL modules fails noisily.
    atexit.register(self.close)

  def render(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
    """Returns uint8[size, size, 3] for each camera; `data` must be up to date."""
    pictures = {}
    for name in CAMERAS:
      self._renderer.update_scene(data, camera=name)
      pictures[name] = self._renderer.render()
    return pictures

  def close(self) -> None:
    """Frees the OpenGL context."""
    atexit.unregister(self.close)
    self._renderer.close()


def _pixel_rays(fovy_deg: float, size: int) -> np.ndarray:
  """Returns float[size * size, 3], unit directions of the pixel centres in the camera frame, row by row."""
  half = np.tan(np.deg2rad(fovy_deg) / 2)
  offsets = (2 * (np.arange(size) + 0.5) / size - 1) * half
  x, y = np.meshgrid(offsets, -offsets)
  rays = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3)
  return rays / np.linalg.norm(rays, axis=1, keepdims=True)
