"""Pictures of the named cameras: a ray-caster that needs no OpenGL, and MuJoCo's own renderer."""

import atexit
from collections.abc import Sequence
from typing import Protocol

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.sim.outlines import TOP_NORMAL, Boxes, Outlines
from pi0rag_jax.sim.scene import BACKGROUND_RGB, CAMERAS, LIGHT_AMBIENT, TABLE_GEOM
from pi0rag_jax.worlds.backend import INSTALL_HINT, select_backend

__all__ = ["RENDERERS", "OpenGLRenderer", "RaycastRenderer", "Renderer", "make_renderer", "select_backend"]

# Light: from above and the front left, plus what every surface gets.
_LIGHT_DIRECTION = np.array([0.35, -0.35, 0.87])
_AMBIENT, _DIFFUSE = 0.55, 0.45
_FAR_M = 10.0  # where rays end
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
  """Flat colours with Lambert shading from one ray per pixel: the same picture on every machine.

  Where the model has the Panda's table, pixels that show nothing else need no ray. In others, cameras of the world body
  hang still: rays go where something that moves may be.
  """

  name = "raycast"

  def __init__(self, model: mujoco.MjModel, size: int, cameras: Sequence[str] = CAMERAS):
    self._model = model
    self._size = size
    self._cameras = {name: model.camera(name).id for name in cameras}
    self._half = {name: np.tan(np.deg2rad(float(model.cam_fovy[i])) / 2) for name, i in self._cameras.items()}
    self._rays = {name: _pixel_rays(half, size) for name, half in self._half.items()}
    has_table = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, TABLE_GEOM) >= 0
    self._outlines = Outlines(model, size) if has_table else None
    moves_G = model.body_weldid[model.geom_bodyid] != 0
    self._moving, self._backdrops = Boxes(model, size, np.flatnonzero(moves_G)), dict[str, tuple[np.ndarray, ...]]()
    count = size * size
    self._geom_ids = np.empty(count, np.int32)
    self._distances = np.empty(count)
    self._cast_N3, self._normals = np.empty((2, count, 3))
    self._top_normals = np.broadcast_to(TOP_NORMAL, (count, 3)).copy()
    light = _LIGHT_DIRECTION / np.linalg.norm(_LIGHT_DIRECTION)
    self._light = np.ascontiguousarray(light * _DIFFUSE)
    # How bright the model's light is per colour, against the nominal one.
    self._brightness_3 = np.asarray(model.vis.headlight.ambient, np.float32) / np.float32(LIGHT_AMBIENT)

  def render(self, data: mujoco.MjData, cameras: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Returns uint8[size, size, 3] for each camera, or those that are asked for; `data` must be up to date."""
    # The last row of the palette is the background, which a miss (id -1) picks.
    palette = np.concatenate([self._model.geom_rgba[:, :3], [BACKGROUND_RGB]]).astype(np.float32) * self._brightness_3
    return {name: self._picture(data, name, palette) for name in cameras or self._cameras}

  def _picture(self, data: mujoco.MjData, name: str, palette: np.ndarray) -> np.ndarray:
    camera = self._cameras[name]
    directions = self._rays[name] @ data.cam_xmat[camera].reshape(3, 3).T
    if self._outlines is None:
      return self._of_any_model(data, name, directions, palette)
    # All other pixels show the table's top.
    pixels_N = self._outlines.pixels(data, camera, directions, self._half[name])
    geom_ids, cast_N3 = self._cast(data, camera, directions, pixels_N)
    # Shaded in their places: the same product for each pixel, however many are cast.
    np.copyto(self._normals, self._top_normals)
    self._normals[pixels_N] = cast_N3
    shade_N = np.maximum((self._normals @ self._light).take(pixels_N), 0.0) + _AMBIENT
    shade_N[geom_ids < 0] = 1.0
    table_3 = _shaded(palette[self._outlines.table], self._light[2:] + _AMBIENT)[0]
    picture = np.tile(np.tile(table_3, self._size), self._size).reshape(-1, 3)
    picture[pixels_N] = _shaded(palette.take(geom_ids, axis=0, mode="wrap"), shade_N)
    return picture.reshape(self._size, self._size, 3)

  def _of_any_model(self, data: mujoco.MjData, name: str, directions: np.ndarray, palette: np.ndarray) -> np.ndarray:
    camera = self._cameras[name]
    if self._model.cam_bodyid[camera]:
      ids_N, normals_N3 = self._cast(data, camera, directions, np.arange(len(directions)))
    else:
      ids_N, normals_N3 = (array.copy() for array in self._backdrop(data, name, directions))
      seen = np.zeros((self._size, self._size), bool)
      self._moving.mark(seen, data, camera, self._half[name])
      pixels_N = np.flatnonzero(seen)
      ids_N[pixels_N], normals_N3[pixels_N] = self._cast(data, camera, directions, pixels_N)
    shade_N = np.maximum(normals_N3 @ self._light, 0.0) + _AMBIENT
    shade_N[ids_N < 0] = 1.0
    return _shaded(palette.take(ids_N, axis=0, mode="wrap"), shade_N).reshape(self._size, self._size, 3)

  def _backdrop(self, data: mujoco.MjData, name: str, directions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns what a camera that hangs still sees of what stands still: geoms int32[N], normals float[N, 3]."""
    if name not in self._backdrops:
      without = mujoco.MjData(self._model)
      mujoco.mj_kinematics(self._model, without)
      mujoco.mj_comPos(self._model, without)
      without.geom_xpos[self._moving.geoms_G] += 2 * _FAR_M  # out of sight
      without.cam_xpos[:] = data.cam_xpos
      found = self._cast(without, self._cameras[name], directions, np.arange(len(directions)))
      self._backdrops[name] = tuple(array.copy() for array in found)
    return self._backdrops[name]

  def _cast(self, data: mujoco.MjData, camera: int, directions: np.ndarray, pixels_N: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the geoms that the rays of pixels hit, int32[N], -1 for none, and the normals there, float[N, 3]."""
    count = len(pixels_N)
    geom_ids, cast_N3 = self._geom_ids[:count], self._cast_N3[:count]
    if count:
      mujoco.mj_multiRay(
        self._model, data, data.cam_xpos[camera], directions.take(pixels_N, axis=0).reshape(-1), None, 1, -1,
        geom_ids, self._distances[:count], cast_N3.reshape(-1), count, _FAR_M,
      )  # fmt: skip
    return geom_ids, cast_N3

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


def _shaded(colours_N3: np.ndarray, shade_N: np.ndarray) -> np.ndarray:
  """Returns uint8[N, 3] of colours in [0, 1] and how bright each is."""
  return np.minimum(colours_N3 * (shade_N * 255.0).astype(np.float32)[:, None] + 0.5, 255.0).astype(np.uint8)


def _pixel_rays(half: float, size: int) -> np.ndarray:
  """Returns float[size * size, 3], unit directions of the pixel centres in the camera frame, row by row."""
  offsets = (2 * (np.arange(size) + 0.5) / size - 1) * half
  x, y = np.meshgrid(offsets, -offsets)
  rays = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3)
  return rays / np.linalg.norm(rays, axis=1, keepdims=True)
