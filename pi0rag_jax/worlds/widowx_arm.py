"""A WidowX AI on a table: the model that `trossen_arm_sim` brings, with things beside it, and its hand's kinematics."""

import importlib.util
import pathlib
from collections.abc import Sequence

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.rotations import rotation, rotation_vector
from pi0rag_jax.worlds.widowx_tasks import Thing

PACKAGE = "trossen_arm_sim"
FRONT, WRIST, BASE, TABLE = "front", "cam", "base_link", "table"
ROBOT = (BASE,)
JOINTS, FINGERS = tuple(f"joint_{number}" for number in range(6)), ("carriage_left", "carriage_right")
MOUNT_M = 0.04  # the base stands so high above the table
STROKE_M = 0.044  # of a finger
HOME_Q = (0.0, 1.2, 0.95, 1.3, 0.0, 0.0)  # rad; inverse kinematics starts from there
HOME_M = (0.27, 0.0, 0.13)
# Where fingertips may be told to be: beyond it no hand points down.
LOW_M, HIGH_M = np.array([0.15, -0.25, 0.005]), np.array([0.45, 0.25, 0.15])
_STEP_S = 0.004
_CAMERA_M, _LOOKS_AT_M, _FOV_DEG = (0.78, 0.0, 0.5), (0.25, 0.0, 0.03), 34.0
_WALL_RGB = (0.6, 0.63, 0.66)
_FRICTION, _ROLLING = (1.2, 0.02, 0.001), 6  # of what is held; contacts resist rolling too
_SOLVER_STEPS, _SOLVED, _DAMPING = 12, 1e-4, 1e-3


def model(things: Sequence[Thing], *, table_rgb: Sequence[float], checkered: bool) -> mujoco.MjModel:
  """Returns the arm on a table with things, whose bodies have their names; what is not loose is moved as mocap.

  Args:
    table_rgb: its colour.
    checkered: with a pattern on it that is half as bright.
  """
  spec = mujoco.MjSpec.from_file(str(assets() / "wxai_follower.xml"))
  spec.meshdir = str(assets())
  spec.option.timestep, spec.option.cone, spec.option.impratio = _STEP_S, mujoco.mjtCone.mjCONE_ELLIPTIC, 10.0
  spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.25,) * 3, (0.3,) * 3
  spec.body(BASE).pos[2] = MOUNT_M
  _furnish(spec, table_rgb, checkered)
  for finger in FINGERS:
    for geom in spec.body(finger).geoms:
      geom.friction, geom.condim = _FRICTION, _ROLLING
  for thing in things:
    _put(spec, thing)
  return spec.compile()


def _furnish(spec: mujoco.MjSpec, table_rgb: Sequence[float], checkered: bool) -> None:
  world = spec.worldbody
  table = world.add_body(name=TABLE)
  top = table.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.35, 0.45, 0.02), pos=(0.3, 0.0, -0.02),
                       rgba=(*table_rgb, 1.0))
  if checkered:
    dark = [0.5 * colour for colour in table_rgb]
    spec.add_texture(name="cloth", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
                     rgb1=table_rgb, rgb2=dark, width=64, height=64)
    cloth = spec.add_material(name="cloth", texrepeat=(6, 6))
    cloth.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "cloth"
    top.material, top.rgba = "cloth", (1.0,) * 4
  table.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.06, 0.06, MOUNT_M / 2), pos=(0.0, 0.0, MOUNT_M / 2),
                 rgba=(0.3, 0.3, 0.32, 1.0), contype=0, conaffinity=0)
  spec.add_texture(name="wall", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
                   rgb1=_WALL_RGB, rgb2=_WALL_RGB, width=16, height=96)
  world.add_light(pos=(0.4, 0.3, 1.5), dir=(-0.1, -0.2, -1.0), diffuse=(0.5,) * 3,
                  type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
  back = np.subtract(_CAMERA_M, _LOOKS_AT_M)
  back /= np.linalg.norm(back)
  right = np.cross((0.0, 0.0, 1.0), back)
  right /= np.linalg.norm(right)
  quaternion = np.empty(4)
  mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], axis=1).ravel())
  world.add_camera(name=FRONT, pos=_CAMERA_M, quat=quaternion, fovy=_FOV_DEG)


def _put(spec: mujoco.MjSpec, thing: Thing) -> None:
  body = spec.worldbody.add_body(name=thing.name, mocap=not thing.loose)
  if thing.loose:
    body.add_freejoint()
  for part in thing.geoms:
    size = (*part.size, 0.0, 0.0)[:3]
    quat = (np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0) if part.along_x else (1.0, 0.0, 0.0, 0.0)
    body.add_geom(type=getattr(mujoco.mjtGeom, f"mjGEOM_{part.shape.upper()}"), size=size, pos=part.place, quat=quat,
                  rgba=(*part.rgb, 1.0), mass=thing.mass / len(thing.geoms), friction=_FRICTION, condim=_ROLLING)


def assets() -> pathlib.Path:
  """Returns the folder of the arm's model. Errors: Pi0RagError where its package is missing."""
  found = importlib.util.find_spec(PACKAGE)
  if found is None or not found.submodule_search_locations:
    raise Pi0RagError(f"world 'widowx' needs {PACKAGE}, which has the arm's model: pip install 'pi0rag-jax[widowx]'")
  return pathlib.Path(found.submodule_search_locations[0]) / "assets"


def pointing_down(turn: float = 0.0) -> np.ndarray:
  """Returns float[3, 3], how a hand is turned that points down; at 0 its fingers close along y."""
  return rotation(np.array([0.0, 0.0, turn])) @ _DOWN_33


_DOWN_33 = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


class Hand:
  """The arm from the base to between its fingertips."""

  def __init__(self, arm: mujoco.MjModel):
    self._model, self._scratch, self._site = arm, mujoco.MjData(arm), arm.site("ee_site").id
    joints = [arm.joint(name) for name in JOINTS]
    self.qpos, self._dofs = [int(j.qposadr[0]) for j in joints], [int(j.dofadr[0]) for j in joints]
    self._range = np.array([j.range for j in joints])
    self.fingers = [int(arm.joint(f"{side}_carriage_joint").qposadr[0]) for side in ("left", "right")]

  def pose(self, joints_6: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (place float[3], turn float[3, 3]) of the fingertips at the joints."""
    self._scratch.qpos[self.qpos] = joints_6
    mujoco.mj_kinematics(self._model, self._scratch)
    mujoco.mj_comPos(self._model, self._scratch)
    return self._scratch.site_xpos[self._site].copy(), self._scratch.site_xmat[self._site].reshape(3, 3).copy()

  def joints(self, place_3: np.ndarray, turn_33: np.ndarray, near_6: np.ndarray, steps: int = _SOLVER_STEPS
             ) -> np.ndarray:
    """Returns the joints float[6] that bring the fingertips there, or as near as they get, by damped least squares."""
    joints_6, jacobian, error_6 = np.array(near_6), np.empty((6, self._model.nv)), np.empty(6)
    for _ in range(steps):
      tip_3, now_33 = self.pose(joints_6)
      error_6[:3], error_6[3:] = place_3 - tip_3, rotation_vector(turn_33 @ now_33.T)
      if np.abs(error_6).max() < _SOLVED:
        break
      mujoco.mj_jacSite(self._model, self._scratch, jacobian[:3], jacobian[3:], self._site)
      arm_66 = jacobian[:, self._dofs]
      change_6 = arm_66.T @ np.linalg.solve(arm_66 @ arm_66.T + _DAMPING * np.eye(6), error_6)
      joints_6 = np.clip(joints_6 + change_6, *self._range.T)
    return joints_6

  def home(self) -> np.ndarray:
    """Returns the joints of an arm that waits above the table, its hand pointing down."""
    return self.joints(np.asarray(HOME_M), pointing_down(), np.asarray(HOME_Q), steps=200)
