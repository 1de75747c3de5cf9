"""MuJoCo models of other people: pictures of their cameras, their whole state, and what may be shifted in them."""

import atexit
import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.backend import INSTALL_HINT
from pi0rag_jax.worlds.world import MAX_DELAY_TICKS, CameraShift

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
# MuJoCo begins again from the start where one of these is not finite, or huge.
_BROKEN = {"positions": mujoco.mjtWarning.mjWARN_BADQPOS, "velocities": mujoco.mjtWarning.mjWARN_BADQVEL,
           "accelerations": mujoco.mjtWarning.mjWARN_BADQACC}


@dataclasses.dataclass(frozen=True)
class Shift:
  """What differs from the world of the demonstrations. It applies when a world is made, to a model of its own."""

  description: str
  cameras: Mapping[str, CameraShift] = dataclasses.field(default_factory=dict)
  friction: float = 1.0  # factor on the friction of the robot and of things that move
  mass: float = 1.0  # factor on the mass of things that move
  table_m: float = 0.0  # by which the table is higher, with what stands on it
  light_rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factor on every light
  delay_ticks: int = 0  # by which the robot gets its actions late
  measured_offset: tuple[float, ...] = ()  # added to the first entries of the measured state

  def __post_init__(self):
    if not 0 <= self.delay_ticks <= MAX_DELAY_TICKS:
      raise Pi0RagError(f"delay_ticks is {self.delay_ticks}, allowed: 0..{MAX_DELAY_TICKS}")

  def apply(self, model: mujoco.MjModel, *, robot: Sequence[str], table: Sequence[str]) -> None:
    """Changes a compiled model, which cannot be undone: every world has a model of its own.

    Args:
      robot: names of the bodies that the robot hangs on.
      table: names of the table's bodies, which hang on the world.
    """
    for name, camera in self.cameras.items():
      _shift_camera(model, model.camera(name).id, camera)
    robot_ids = set(_trees(model, robot))
    things = [body for body in range(1, model.nbody) if body not in robot_ids and _moves(model, body)]
    touching = np.isin(model.geom_bodyid, [*robot_ids, *things])
    model.geom_friction[touching] *= self.friction
    model.body_mass[things] *= self.mass
    model.body_inertia[things] *= self.mass
    model.body_pos[[model.body(name).id for name in table], 2] += self.table_m
    lights = (model.light_diffuse, model.light_ambient, model.light_specular, model.vis.headlight.diffuse,
              model.vis.headlight.ambient, model.vis.headlight.specular)
    for colour in lights:
      colour[...] *= self.light_rgb
    if self.mass != 1.0:
      mujoco.mj_setConst(model, mujoco.MjData(model))


NOTHING = Shift("the world of the demonstrations")


def turned(**angles_rad: tuple[float, float]) -> dict[str, CameraShift]:
  """Returns cameras, by name, that are turned about their right and up axes."""
  return {camera: CameraShift(rotation_rad=(*angles, 0.0)) for camera, angles in angles_rad.items()}


def turn_upright(model: mujoco.MjModel, camera: str) -> None:
  """Turns a camera that hangs upside down by half a turn about its view."""
  _shift_camera(model, model.camera(camera).id, CameraShift(rotation_rad=(0.0, 0.0, np.pi)))


def free_things(model: mujoco.MjModel, robot: Sequence[str]) -> list[int]:
  """Returns the addresses in qpos of the things that lie loose, none of them the robot's."""
  robot_ids = _trees(model, robot)
  return [int(model.jnt_qposadr[joint]) for joint in range(model.njnt)
          if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE and model.jnt_bodyid[joint] not in robot_ids]


def get_state(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
  """Returns float64[N], all from which the simulation continues bit for bit."""
  state_N = np.empty(mujoco.mj_stateSize(model, _STATE))
  mujoco.mj_getState(model, data, state_N, _STATE)
  return state_N


def set_state(model: mujoco.MjModel, data: mujoco.MjData, state_N: np.ndarray) -> None:
  """Continues from there, with the places, contacts and forces that follow from it."""
  mujoco.mj_setState(model, data, state_N, _STATE)
  work_out(model, data)
  data.warning.number[:] = 0


def work_out(model: mujoco.MjModel, data: mujoco.MjData) -> None:
  """Works out the places, contacts and forces that follow from the state: a step leaves those of its beginning."""
  state_N = get_state(model, data)
  mujoco.mj_forward(model, data)
  # `mj_forward` replaces the start of the solver's next iteration, which is part of the state.
  mujoco.mj_setState(model, data, state_N, _STATE)


def fault(data: mujoco.MjData) -> str:
  """Returns why the simulation cannot be trusted any more, or nothing."""
  broken = [name for name, warning in _BROKEN.items() if data.warning[warning].number]
  return f"the simulation became unstable: {', '.join(broken)} grew beyond bounds" if broken else ""


class Delay:
  """Hands actions on as many ticks late as it is made for."""

  def __init__(self, ticks: int):
    self._ticks, self._waiting = ticks, deque[np.ndarray]()

  def begin(self, rest_A: np.ndarray) -> None:
    """Starts an episode; before the first action arrives, the robot gets `rest_A`."""
    self._waiting = deque(np.array(rest_A, copy=True) for _ in range(self._ticks))

  def __call__(self, action_A: np.ndarray) -> np.ndarray:
    """Returns the action that arrives at this tick, in which `action_A` is sent."""
    self._waiting.append(action_A)
    return self._waiting.popleft()

  def snapshot(self) -> list[np.ndarray]:
    """Returns the actions under way."""
    return [action_A.copy() for action_A in self._waiting]

  def restore(self, waiting: Iterable[np.ndarray]) -> None:
    """Continues from a `snapshot`."""
    self._waiting = deque(np.array(action_A, copy=True) for action_A in waiting)


class Pictures:
  """What a model's cameras see, by MuJoCo's own renderer, upright as they hang.

  Args:
    hidden: groups of geoms that are not drawn, beside those that MuJoCo hides.
    effects: whether there are shadows, reflections and soft edges; without a GPU they take most of the time.
  """

  def __init__(self, model: mujoco.MjModel, *, hidden: Sequence[int] = (), effects: bool = False):
    require_opengl()
    self._model, self._seen = model, mujoco.MjData(model)
    self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
    self._effects, self._option = effects, mujoco.MjvOption()
    self._option.geomgroup[list(hidden)] = 0
    if not effects:
      model.vis.quality.offsamples = 0

  def take(self, data: mujoco.MjData, cameras: Sequence[str], size: int | tuple[int, int]) -> list[np.ndarray]:
    """Returns uint8[H, W, 3] of each camera; a function of the state alone, which it leaves as it is.

    Args:
      size: px, (height, width) or one number for both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    mujoco.mj_setState(self._model, self._seen, get_state(self._model, data), _STATE)
    mujoco.mj_kinematics(self._model, self._seen)
    mujoco.mj_comPos(self._model, self._seen)
    mujoco.mj_camlight(self._model, self._seen)
    renderer = self._renderer(height, width)
    pictures = []
    for camera in cameras:
      renderer.update_scene(self._seen, camera=camera, scene_option=self._option)
      pictures.append(renderer.render())
    return pictures

  def _renderer(self, height: int, width: int) -> mujoco.Renderer:
    """Returns the renderer of a size, made when it is first asked for."""
    if (height, width) not in self._renderers:
      screen = self._model.vis.global_
      screen.offheight, screen.offwidth = max(screen.offheight, height), max(screen.offwidth, width)
      renderer = self._renderers[height, width] = mujoco.Renderer(self._model, height, width)
      # A context that outlives OpenGL's display, which the first one opens, fails noisily.
      atexit.unregister(self.close)
      atexit.register(self.close)
      renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._effects
      renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self._effects
    return self._renderers[height, width]

  def close(self) -> None:
    """Frees the OpenGL contexts."""
    atexit.unregister(self.close)
    for renderer in self._renderers.values():
      renderer.close()
    self._renderers.clear()


def require_opengl() -> None:
  """Raises Pi0RagError where MuJoCo has no OpenGL."""
  if not hasattr(mujoco, "GLContext"):
    raise Pi0RagError(f"pictures of this world need OpenGL, which MuJoCo does not find here: {INSTALL_HINT}")


def _shift_camera(model: mujoco.MjModel, camera: int, shift: CameraShift) -> None:
  """Moves and turns a camera in its own frame, on the body that it is mounted on."""
  axes, quaternion = np.empty(9), np.empty(4)
  mujoco.mju_quat2Mat(axes, model.cam_quat[camera])
  model.cam_pos[camera] += axes.reshape(3, 3) @ np.asarray(shift.translation_m)
  angle = float(np.linalg.norm(shift.rotation_rad))
  if angle:
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(shift.rotation_rad, float) / angle, angle)
    mujoco.mju_mulQuat(model.cam_quat[camera], model.cam_quat[camera].copy(), quaternion)


def _trees(model: mujoco.MjModel, roots: Sequence[str]) -> list[int]:
  """Returns the bodies of the trees that hang on named bodies."""
  found = [model.body(name).id for name in roots]
  for body in range(1, model.nbody):  # parents come before their children
    if model.body_parentid[body] in found and body not in found:
      found.append(body)
  return found


def _moves(model: mujoco.MjModel, body: int) -> bool:
  """Returns whether a body has a joint, or hangs on one that has."""
  while body and not model.body_jntnum[body]:
    body = int(model.body_parentid[body])
  return bool(body)
