"""The world around the robot: table, lights, cameras, free objects and fixtures, assembled into a model."""

import dataclasses
import math

import mujoco
import numpy as np

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.conditions import Condition
from pi0rag_jax.worlds.world import CameraShift

BASE_CAMERA = "base_0_rgb"
WRIST_CAMERA = panda.WRIST_CAMERA
CAMERAS = (BASE_CAMERA, WRIST_CAMERA)
TABLE_GEOM = "table"
# The table top is z = 0. Half sizes and centre, m.
TABLE_HALF_SIZE_M = (0.55, 0.6, 0.02)
TABLE_CENTER_M = (0.45, 0.0, -0.02)
GOAL_HALF_THICKNESS_M = 0.0005
BACKGROUND_RGB = (0.72, 0.8, 0.88)
# Of the headlight and of the lamp in OpenGL pictures; renderers compare a model's light with it.
LIGHT_AMBIENT = 0.4


@dataclasses.dataclass(frozen=True)
class CameraSpec:
  """A camera that looks from `position_m` at `target_m`; `up` is roughly the top of the picture."""

  position_m: tuple[float, float, float]
  target_m: tuple[float, float, float]
  up: tuple[float, float, float]
  fovy_deg: float


# Opposite the robot, so that the arm hides little: the work area fills the picture.
BASE_VIEW = CameraSpec((1.0, 0.0, 0.76), (0.49, 0.0, 0.03), (0.0, 0.0, 1.0), 34.0)
# Hand frame: in front of the palm, looking down past the fingertips.
WRIST_VIEW = CameraSpec((0.09, 0.0, 0.03), (0.02, 0.0, 0.13), (1.0, 0.0, 0.0), 75.0)


@dataclasses.dataclass(frozen=True)
class GeomSpec:
  """One primitive of a body, in the body's frame."""

  shape: str  # box, cylinder, capsule, sphere
  size_m: tuple[float, ...]  # MuJoCo's half sizes
  position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
  quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  # wxyz
  mass_kg: float = 0.0
  friction: tuple[float, float, float] = (1.0, 0.005, 0.0001)  # sliding, torsional, rolling
  contact_dims: int = 4  # MuJoCo's condim: 4 has torsional friction, 6 rolling friction too
  priority: int = 0  # of two geoms that touch, the one of higher priority sets the friction; else the greater counts


@dataclasses.dataclass(frozen=True)
class BodySpec:
  """A thing on the table. Pose and colour are set at reset."""

  name: str
  geoms: tuple[GeomSpec, ...]
  solid: bool = True  # False: nothing touches it
  may_fall: bool = False  # off the table, without the simulation being at fault


def box(name: str, half_size_m: tuple[float, float, float], mass_kg: float) -> BodySpec:
  """Returns a body that is one box."""
  return BodySpec(name, (GeomSpec("box", half_size_m, mass_kg=mass_kg),))


def pad(name: str, radius_m: float) -> BodySpec:
  """Returns a thin disc that marks a place and touches nothing."""
  return BodySpec(name, (GeomSpec("cylinder", (radius_m, GOAL_HALF_THICKNESS_M)),), solid=False)


@dataclasses.dataclass(frozen=True)
class SceneSpec:
  """What a task puts on the table."""

  objects: tuple[BodySpec, ...] = ()  # move freely
  fixtures: tuple[BodySpec, ...] = ()  # stay where reset puts them


def build_model(spec: SceneSpec, condition: Condition) -> mujoco.MjModel:
  """Returns the compiled model of robot, table and `spec` under `condition`."""
  model = mujoco.MjModel.from_xml_string(scene_xml(spec, condition))
  widen_bounds(model)
  return model


def widen_bounds(model: mujoco.MjModel) -> None:
  """Makes each body's bounding box a cube around its inertial frame's origin that contains all its geoms.

  mj_multiRay 3.8 culls bodies by a sphere whose centre it does not rotate with the body: fingers that point
  down would be missing from ray-cast pictures. A centre at the origin is right under any rotation. What stands still
  and unturned keeps its box, which fits better.
  """
  for body in range(model.nbody):
    count, root = int(model.body_geomnum[body]), int(model.body_bvhadr[body])
    still = model.body_weldid[body] == 0 and model.body_quat[body, 0] == 1.0 and model.body_parentid[body] == 0
    if count == 0 or root < 0 or (body and still):
      continue
    first = int(model.body_geomadr[body])
    offsets = model.geom_pos[first : first + count] - model.body_ipos[body]
    radius = float((np.linalg.norm(offsets, axis=1) + model.geom_rbound[first : first + count]).max())
    model.bvh_aabb[root] = (0.0, 0.0, 0.0, radius, radius, radius)


def scene_xml(spec: SceneSpec, condition: Condition) -> str:
  """Returns the MJCF text of the scene."""
  wrist = _camera(WRIST_CAMERA, WRIST_VIEW, condition.wrist_camera)
  hand = panda.hand_body(condition.tool_offset_m, condition.friction_scale, wrist)
  objects = "".join(_object(body, condition) for body in spec.objects)
  fixtures = "".join(f'<body name="{body.name}" mocap="true">{_geoms(body)}</body>' for body in spec.fixtures)
  light = _numbers(LIGHT_AMBIENT * scale for scale in condition.light_rgb)
  headlight = _numbers(0.3 * scale for scale in condition.light_rgb)
  background = _numbers(scale * value for scale, value in zip(condition.light_rgb, BACKGROUND_RGB))
  size, center = _numbers(TABLE_HALF_SIZE_M), _numbers(TABLE_CENTER_M)
  return f"""<mujoco model="panda_table">
  <compiler angle="radian"/>
  <option timestep=".002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="640" offheight="640"/><quality offsamples="0"/>
    <headlight ambient="{light}" diffuse="{headlight}" specular="0 0 0"/><map znear="0.005" zfar="10"/>
  </visual>
  <asset><texture type="skybox" builtin="flat" width="8" height="8"
    rgb1="{background}" rgb2="{background}"/></asset>
  {panda.DEFAULTS}
  <worldbody>
    <light pos="0.4 -0.6 1.8" dir="0 0.3 -1" directional="true" diffuse="{light}" specular="0 0 0"/>
    <geom name="{TABLE_GEOM}" type="box" size="{size}" pos="{center}" rgba="{_numbers(condition.table_rgb)} 1"/>
    {_camera(BASE_CAMERA, BASE_VIEW, condition.base_camera)}
    {panda.arm_body(hand)}{objects}{fixtures}
  </worldbody>
  {panda.actuators()}
</mujoco>"""


def camera_axes(view: CameraSpec, shift: CameraShift):
  """Returns (position [3] m, axes float[3, 3] whose columns are the camera's right, up and backward axes)."""
  position = np.asarray(view.position_m, dtype=float)
  backward = position - np.asarray(view.target_m)
  backward /= np.linalg.norm(backward)
  right = np.cross(view.up, backward)
  right /= np.linalg.norm(right)
  axes = np.stack([right, np.cross(backward, right), backward], axis=1)
  return position + axes @ np.asarray(shift.translation_m), axes @ _rotation(shift.rotation_rad)


def _rotation(angles_rad) -> np.ndarray:
  """Returns float[3, 3], the rotation by the vector `angles_rad` [3] (axis times angle)."""
  quaternion, matrix = np.zeros(4), np.zeros(9)
  angle = math.sqrt(sum(value * value for value in angles_rad))
  axis = np.asarray(angles_rad, dtype=float) / angle if angle else np.array([1.0, 0.0, 0.0])
  mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
  mujoco.mju_quat2Mat(matrix, quaternion)
  return matrix.reshape(3, 3)


def _camera(name: str, view: CameraSpec, shift: CameraShift) -> str:
  position, axes = camera_axes(view, shift)
  numbers = [*axes[:, 0], *axes[:, 1]]
  return (
    f'<camera name="{name}" pos="{_numbers(position)}" xyaxes="{_numbers(numbers)}"'
    f' fovy="{view.fovy_deg}"/>'
  )


def _object(body: BodySpec, condition: Condition) -> str:
  geoms = _geoms(body, condition.object_mass_scale, condition.friction_scale)
  return f'<body name="{body.name}"><freejoint name="{body.name}"/>{geoms}</body>'


def _geoms(body: BodySpec, mass_scale: float = 1.0, friction_scale: float = 1.0) -> str:
  """Returns the <geom> elements of a body, named after it and numbered."""
  touches = "" if body.solid else ' contype="0" conaffinity="0"'
  return "".join(
    f'<geom name="{body.name}_{i}" type="{geom.shape}" size="{_numbers(geom.size_m)}"'
    f' mass="{geom.mass_kg * mass_scale}" pos="{_numbers(geom.position_m)}" quat="{_numbers(geom.quaternion)}"'
    f' condim="{geom.contact_dims}" priority="{geom.priority}"{touches}'
    f' friction="{geom.friction[0] * friction_scale} {_numbers(geom.friction[1:])}"/>'
    for i, geom in enumerate(body.geoms)
  )


def _numbers(values) -> str:
  return " ".join(map(str, values))
