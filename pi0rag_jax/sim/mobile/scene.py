"""The flat and its robot as a MuJoCo model, of primitive shapes of our own.

The robot: a round base whose wheels are velocity motors on two slides and a hinge, driven forward and in turns alone; a
mast with a lift; an arm that extends forward; two fingers that close sideways. Nothing helps them: what they hold, they
hold by friction.
"""

import math

import mujoco
import numpy as np

from pi0rag_jax.robots.mobile import LIFT_M, REACH_M
from pi0rag_jax.sim.mobile import flat
from pi0rag_jax.sim.scene import LIGHT_AMBIENT, widen_bounds

FRONT_CAMERA, GRIPPER_CAMERA = "front", "gripper"
CEILING_CAMERAS = {room: f"ceiling {room}" for room in flat.ROOMS}
CAMERAS = (FRONT_CAMERA, GRIPPER_CAMERA, *CEILING_CAMERAS.values())
BASE, DRAWER = "base", "drawer"
JOINTS = ("x", "y", "yaw", "lift", "reach", "left_finger")  # and actuators
STEP_S = 0.01
FINGER_RANGE_M = (0.0, 0.08)
SQUEEZE_M = 0.02  # by which closed fingers are told to go further than they can
GRASP_FORWARD_M = 0.33  # from the base's middle to between the fingers, with the arm drawn in
_WALL_HEIGHT_M, _WALL_HALF_M = 1.6, 0.05
_FLOORS = {"kitchen": (0.8, 0.78, 0.7), "living room": (0.6, 0.5, 0.4), "bedroom": (0.5, 0.55, 0.65),
           "bathroom": (0.6, 0.75, 0.75)}
_WALL_RGB = (0.9, 0.88, 0.82)
_TRAY_RGB = (1.0, 1.0, 1.0)
_THING_KG, _THING_FRICTION = 0.15, "1.2 0.01 0.0005"


def build_model(out_m: float = 0.0) -> mujoco.MjModel:
  """Returns the compiled model; `out_m` is how far tables stand away from their walls."""
  model = mujoco.MjModel.from_xml_string(_xml(out_m))
  widen_bounds(model)
  return model


def _xml(out_m: float) -> str:
  furniture = "".join(_furniture(piece, out_m) for piece in flat.FURNITURE.values() if piece != flat.DRESSER)
  things = "".join(_thing(thing) for thing in flat.THINGS.values())
  return f"""<mujoco model="flat">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{STEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="640" offheight="640"/><quality offsamples="0"/>
    <headlight ambient="{_numbers([LIGHT_AMBIENT] * 3)}" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
    <map znear="0.01" zfar="20"/>
  </visual>
  <worldbody>
    <light pos="0 0 5" dir="0.3 -0.3 -1" directional="true" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
    {_robot()}{_dresser()}{_rooms()}{furniture}{things}
  </worldbody>
  <equality><joint joint1="right_finger" joint2="left_finger" polycoef="0 1 0 0 0"/></equality>
  <actuator>
    <velocity name="x" joint="x" kv="600" forcerange="-300 300"/>
    <velocity name="y" joint="y" kv="600" forcerange="-300 300"/>
    <velocity name="yaw" joint="yaw" kv="60" forcerange="-60 60"/>
    <position name="lift" joint="lift" kp="3000" kv="300" ctrlrange="{_numbers(LIFT_M)}" forcerange="-150 150"/>
    <position name="reach" joint="reach" kp="2000" kv="200" ctrlrange="{_numbers(REACH_M)}"
      forcerange="-100 100"/>
    <position name="left_finger" joint="left_finger" kp="600" kv="30" ctrlrange="{-SQUEEZE_M} {FINGER_RANGE_M[1]}"
      forcerange="-25 25"/>
  </actuator>
</mujoco>"""


def _rooms() -> str:
  """Returns floors, walls and the cameras at the ceilings."""
  quarter, height = flat.HALF_M / 2, _WALL_HEIGHT_M / 2
  parts = [_still_box(f"floor {room}", (x * quarter, y * quarter, -0.05), (quarter, quarter, 0.05), _FLOORS[room])
           for room, (x, y) in flat.ROOMS.items()]
  long, walls = flat.HALF_M + 2 * _WALL_HALF_M, []
  for side in (-1, 1):
    walls += [((side * (flat.HALF_M + _WALL_HALF_M), 0.0), (_WALL_HALF_M, long)),
              ((0.0, side * (flat.HALF_M + _WALL_HALF_M)), (long, _WALL_HALF_M))]
    inner, outer = flat.DOOR_M - flat.DOOR_HALF_M, flat.DOOR_M + flat.DOOR_HALF_M
    for low, high in ((0.0, inner), (outer, flat.HALF_M)):
      middle, half = side * (low + high) / 2, (high - low) / 2
      walls += [((0.0, middle), (_WALL_HALF_M, half)), ((middle, 0.0), (half, _WALL_HALF_M))]
  parts += [_still_box(f"wall {i}", (*middle_2, height), (*half_2, height), _WALL_RGB)
            for i, (middle_2, half_2) in enumerate(walls)]
  parts += [f'<camera name="{CEILING_CAMERAS[room]}" pos="{x * quarter} {y * quarter} 3.3" xyaxes="1 0 0 0 1 0" '
            'fovy="57"/>' for room, (x, y) in flat.ROOMS.items()]
  return "".join(parts)


def _still_box(name: str, place_3, half_3, rgb) -> str:
  return (f'<body name="{name}" pos="{_numbers(place_3)}"><geom type="box" size="{_numbers(half_3)}" '
          f'rgba="{_numbers(rgb)} 1"/></body>')


def _box_sizes(piece: flat.Furniture) -> tuple[float, float]:
  """Returns half its extent along x and y."""
  deep, wide = piece.depth / 2, piece.width / 2
  return (deep, wide) if piece.wall == flat.EAST_WEST else (wide, deep)


def _furniture(piece: flat.Furniture, out_m: float) -> str:
  """Returns a piece; a table has its tray on it, which nothing touches."""
  table = piece in flat.TABLES.values()
  middle_2 = piece.spot(depth=piece.depth / 2, out=out_m if table else 0.0)
  tray = ""
  if table:
    tray_2 = piece.inward * (flat.SPOT_DEPTH_M - piece.depth / 2)
    tray = (f'<geom type="cylinder" size="{flat.TRAY_RADIUS_M} 0.001" pos="{_numbers(tray_2)} {piece.height / 2}" '
            f'rgba="{_numbers(_TRAY_RGB)} 1" contype="0" conaffinity="0"/>')
  return (f'<body name="{piece.name}" pos="{_numbers(middle_2)} {piece.height / 2}"><geom type="box" '
          f'size="{_numbers(_box_sizes(piece))} {piece.height / 2}" rgba="{_numbers(piece.rgb)} 1"/>{tray}</body>')


def _dresser() -> str:
  """Returns the dresser: a box whose one drawer slides out of its front by a bar that fingers can close around."""
  piece, half_drawer = flat.DRESSER, 0.12
  front_2, (half_x, half_y) = piece.spot(), _box_sizes(piece)
  middle_2, out_2 = piece.spot(depth=piece.depth / 2 + 0.02), -piece.inward
  z = flat.HANDLE_HEIGHT_M
  bar_2, bridge_2 = out_2 * flat.HANDLE_OUT_M, out_2 * flat.HANDLE_OUT_M / 2
  return (
    f'<body name="dresser" pos="{_numbers(middle_2)} {piece.height / 2}"><geom type="box" '
    f'size="{half_x} {half_y - 0.02} {piece.height / 2}" rgba="{_numbers(piece.rgb)} 1"/></body>'
    f'<body name="drawer" pos="{_numbers(front_2)} {z}">'
    f'<joint name="drawer" type="slide" axis="{_numbers(out_2)} 0" range="0 {flat.DRAWER_TRAVEL_M}" damping="15" '
    'frictionloss="2"/>'
    f'<geom type="box" size="0.28 0.015 {half_drawer}" pos="0 0 0" mass="1" rgba="0.85 0.65 0.35 1"/>'
    f'<geom type="box" size="0.24 0.14 0.02" pos="{_numbers(-out_2 * 0.14)} -0.08" mass="1" rgba="0.85 0.65 0.35 1" '
    'contype="0" conaffinity="0"/>'
    f'<geom name="handle" type="cylinder" size="0.012 0.07" pos="{_numbers(bar_2)} 0" mass="0.1" '
    f'rgba="0.1 0.1 0.1 1" friction="{_THING_FRICTION}" condim="4"/>'
    f'<geom type="box" size="0.008 {flat.HANDLE_OUT_M / 2} 0.008" pos="{_numbers(bridge_2)} 0.06" mass="0.05" '
    'rgba="0.1 0.1 0.1 1" contype="0" conaffinity="0"/></body>')


def _thing(thing: flat.Thing) -> str:
  return (f'<body name="{thing.name}"><freejoint name="{thing.name}"/><geom name="{thing.name}" type="{thing.shape}" '
          f'size="{_numbers(thing.size)}" mass="{_THING_KG}" rgba="{_numbers(thing.rgb)} 1" condim="4" '
          f'friction="{_THING_FRICTION}"/></body>')


def _robot() -> str:
  finger = ('<joint name="{side}_finger" type="slide" axis="0 {sign} 0" range="0 0.08" damping="5"/>'
            '<geom name="{side}_finger" type="box" size="0.06 0.008 0.02" mass="0.05" rgba="1 0.5 0.1 1" '
            f'friction="{_THING_FRICTION}" condim="4"/>')
  left, right = finger.format(side="left", sign=1), finger.format(side="right", sign=-1)
  return f"""<body name="{BASE}">
    <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
    <joint name="yaw" type="hinge" axis="0 0 1"/>
    <geom type="cylinder" size="0.2 0.11" pos="0 0 0.13" mass="25" rgba="0.2 0.2 0.25 1" friction="0.2 0.005 0.0001"/>
    <geom type="box" size="0.04 0.05 0.5" pos="-0.04 0 0.74" mass="4" rgba="0.3 0.3 0.35 1"/>
    {_camera(FRONT_CAMERA, (0.02, 0.0, 1.3), math.radians(42), 82)}
    <body name="lift" gravcomp="1">
      <joint name="lift" type="slide" axis="0 0 1" range="{_numbers(LIFT_M)}" damping="20"/>
      <geom type="box" size="0.05 0.06 0.03" pos="0.05 0 0" mass="1" rgba="0.5 0.5 0.55 1"/>
      <body name="arm" gravcomp="1">
        <joint name="reach" type="slide" axis="1 0 0" range="{_numbers(REACH_M)}" damping="20"/>
        <geom type="box" size="0.1 0.02 0.02" pos="0.14 0 0" mass="0.6" rgba="0.6 0.6 0.65 1"/>
        <geom type="box" size="0.015 0.1 0.02" pos="0.25 0 0" mass="0.4" rgba="0.6 0.6 0.65 1"/>
        {_camera(GRIPPER_CAMERA, (0.2, 0.0, 0.14), math.radians(38), 85)}
        <body name="left_finger" pos="{GRASP_FORWARD_M} 0.008 0" gravcomp="1">{left}</body>
        <body name="right_finger" pos="{GRASP_FORWARD_M} -0.008 0" gravcomp="1">{right}</body>
      </body>
    </body>
  </body>"""


def _camera(name: str, place_3, down_rad: float, fovy_deg: float) -> str:
  """Returns a camera that looks ahead and down."""
  axes = (0.0, -1.0, 0.0, math.sin(down_rad), 0.0, math.cos(down_rad))
  return f'<camera name="{name}" pos="{_numbers(place_3)}" xyaxes="{_numbers(axes)}" fovy="{fovy_deg}"/>'


def _numbers(values) -> str:
  return " ".join(str(float(value)) for value in np.asarray(values).reshape(-1))
