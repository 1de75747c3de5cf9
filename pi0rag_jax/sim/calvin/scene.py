"""The play table with the Panda as a MuJoCo model, of primitive shapes of our own."""

from collections.abc import Sequence

import mujoco
import numpy as np

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.calvin import table as at
from pi0rag_jax.sim.calvin.table import Table
from pi0rag_jax.sim.scene import (
  BACKGROUND_RGB,
  BASE_CAMERA,
  LIGHT_AMBIENT,
  WRIST_CAMERA,
  WRIST_VIEW,
  CameraSpec,
  camera_axes,
  widen_bounds,
)
from pi0rag_jax.worlds.world import CameraShift

DRAWER, SLIDER, SWITCH, BUTTON = JOINTS = ("drawer", "slider", "switch", "button")
TOP, PLANK, BULB, LED = "top", "plank", "lightbulb", "led"
# From the right and above, as CALVIN's static camera: the arm comes from the left of the picture.
_BASE_VIEW = CameraSpec((0.2, -0.72, 0.86), (0.57, -0.03, 0.12), (0.0, 0.0, 1.0), 47.0)
_HANDLE_RGB, _METAL_RGB, _WALL_RGB = (0.15, 0.15, 0.17), (0.6, 0.62, 0.65), (0.55, 0.56, 0.55)
_GRIP = 'friction="1.2 0.01 0.0005" condim="4"'
_GHOST = 'contype="0" conaffinity="0"'  # nothing touches it


def build_model(table: Table) -> mujoco.MjModel:
  """Returns the compiled model of robot and table."""
  model = mujoco.MjModel.from_xml_string(_xml(table))
  widen_bounds(model)
  return model


def _xml(table: Table) -> str:
  light = _numbers([LIGHT_AMBIENT] * 3)
  wrist = _camera(WRIST_CAMERA, WRIST_VIEW)
  return f"""<mujoco model="play_table">
  <compiler angle="radian" autolimits="true"/>
  <option timestep=".002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="640" offheight="640"/><quality offsamples="0"/>
    <headlight ambient="{light}" diffuse="0.3 0.3 0.3" specular="0 0 0"/><map znear="0.005" zfar="10"/>
  </visual>
  <asset><texture type="skybox" builtin="flat" width="8" height="8" rgb1="{_numbers(BACKGROUND_RGB)}"
    rgb2="{_numbers(BACKGROUND_RGB)}"/></asset>
  {panda.DEFAULTS}
  <worldbody>
    <light pos="0.4 -0.6 1.8" dir="0 0.3 -1" directional="true" diffuse="{light}" specular="0 0 0"/>
    {_box("floor", (0.45, 0.0, -0.02), (0.7, 0.8, 0.02), (0.5, 0.48, 0.46))}
    {_camera(BASE_CAMERA, _BASE_VIEW)}
    {panda.arm_body(panda.hand_body((0.0, 0.0, 0.0), 1.0, wrist))}
    {_top(table)}{_drawer(table)}{_cabinet(table)}{_slider(table)}{_switch(table)}{_button(table)}
    {"".join(_block(name) for name in at.BLOCKS)}
  </worldbody>
  <contact><exclude body1="{BUTTON}" body2="table"/></contact>
  {panda.actuators()}
</mujoco>"""


def _top(table: Table) -> str:
  """Returns the top with its stripes, which nothing touches, and legs beside the drawer."""
  middle_x, half_x = (at.EDGE_X_M + at.BACK_X_M) / 2, (at.BACK_X_M - at.EDGE_X_M) / 2
  parts = [_box(TOP, (middle_x, 0.0, at.TOP_M - 0.01), (half_x, at.SIDE_Y_M, 0.01), table.top_rgb)]
  parts += [_box(f"stripe_{i}", (middle_x, y, at.TOP_M), (half_x, 0.03, 0.0004), table.stripe_rgb, _GHOST)
            for i, y in enumerate((-0.32, -0.16, 0.0, 0.16, 0.32))]
  parts += [_box(f"leg_{side}", (middle_x, side * 0.29, 0.05), (half_x, 0.11, 0.05), table.cabinet_rgb)
            for side in (-1, 1)]
  return f'<body name="table">{"".join(parts)}</body>'


def _drawer(table: Table) -> str:
  """Returns a box without lid that slides out from under the top; its handle stands up before it."""
  rgb, x, floor, high = table.drawer_rgb, at.EDGE_X_M, at.DRAWER_FLOOR_M, 0.065
  wide, middle, half_high = at.DRAWER_HALF_Y_M, x + at.DRAWER_DEPTH_M / 2, (high - floor) / 2
  return (
    f'<body name="{DRAWER}"><joint name="{DRAWER}" type="slide" axis="-1 0 0" range="0 {at.DRAWER_TRAVEL_M}" '
    'damping="6" frictionloss="2" armature="0.1"/>'
    + _box("drawer_floor", (middle, 0, floor - 0.005), (at.DRAWER_DEPTH_M / 2, wide, 0.005), rgb)
    + "".join(_box(f"drawer_side_{side}", (middle, side * (wide + 0.005), floor + half_high),
                   (at.DRAWER_DEPTH_M / 2, 0.005, half_high), rgb) for side in (-1, 1))
    + _box("drawer_back", (x + at.DRAWER_DEPTH_M - 0.005, 0, floor + half_high), (0.005, wide, half_high), rgb)
    + _box("drawer_front", (x - 0.006, 0, 0.055), (0.005, wide + 0.02, 0.045), rgb)
    + _post("drawer_handle", (at.DRAWER_HANDLE_X_M, 0, 0.12), 0.045)
    + _box("drawer_bridge", (at.DRAWER_HANDLE_X_M + 0.012, 0, 0.085), (0.012, 0.008, 0.008), _HANDLE_RGB, _GHOST)
    + "</body>")


def _cabinet(table: Table) -> str:
  """Returns the cabinet's floor and low walls, and the board with the two lights behind it."""
  y, rgb, wide = table.cabinet_y, table.cabinet_rgb, 2 * at.HALF_Y_M
  x, high = at.CABINET_X_M, (at.LID_M - 0.006 - at.TOP_M) / 2
  parts = [_box(PLANK, (x, y, at.PLANK_M - 0.003), (0.05, wide, 0.003), rgb)]
  parts += [_box(f"cabinet_side_{side}", (x, y + side * (wide + 0.006), at.TOP_M + high), (0.06, 0.006, high), rgb)
            for side in (-1, 1)]
  parts += [_box("cabinet_back", (x + 0.055, y, at.TOP_M + high), (0.005, wide, high), rgb),
            _box("cabinet_lip", (x - 0.055, y, at.TOP_M + 0.01), (0.005, wide, 0.01), rgb),
            _box("board", (0.805, 0.0, 0.19), (0.006, 0.36, 0.09), _WALL_RGB)]
  for name, side in ((BULB, 1), (LED, -1)):
    parts.append(f'<geom name="{name}" type="sphere" size="0.034" pos="0.79 {side * 0.29} 0.25" {_GHOST}/>')
  return f'<body name="cabinet">{"".join(parts)}</body>'


def _slider(table: Table) -> str:
  """Returns the cabinet's door: a lid with an apron over half of it, with a handle on top."""
  y = table.cabinet_y - at.HALF_Y_M  # closed to the right
  apron = (at.LID_M - at.TOP_M - 0.024) / 2
  return (
    f'<body name="{SLIDER}"><joint name="{SLIDER}" type="slide" axis="0 1 0" range="0 {at.SLIDER_TRAVEL_M}" '
    'damping="6" frictionloss="2" armature="0.1"/>'
    + _box("lid", (at.CABINET_X_M, y, at.LID_M), (0.055, at.HALF_Y_M, 0.003), _METAL_RGB)
    + _box("apron", (at.CABINET_X_M - 0.062, y, at.TOP_M + 0.022 + apron), (0.002, at.HALF_Y_M, apron), _METAL_RGB)
    + _post("slider_handle", (at.SLIDER_HANDLE_X_M, y, at.LID_M + 0.03), 0.03) + "</body>")


def _switch(table: Table) -> str:
  """Returns the light bulb's switch, a post in a slot."""
  x, y = table.switch
  slot = _box("slot", (x + at.SWITCH_TRAVEL_M / 2, y, at.TOP_M + 0.002), (0.055, 0.02, 0.002), _METAL_RGB, _GHOST)
  return (f'{slot}<body name="{SWITCH}"><joint name="{SWITCH}" type="slide" axis="1 0 0" '
          f'range="0 {at.SWITCH_TRAVEL_M}" damping="4" frictionloss="1.5" armature="0.1"/>'
          + _post("switch_handle", (x, y, at.TOP_M + 0.036), 0.03) + "</body>")


def _button(table: Table) -> str:
  """Returns the LED's button, which a spring lifts."""
  x, y = table.button
  return (f'<body name="{BUTTON}"><joint name="{BUTTON}" type="slide" axis="0 0 -1" range="0 {at.BUTTON_TRAVEL_M}" '
          'stiffness="250" damping="6" springref="-0.002"/>'
          f'<geom name="button" type="cylinder" size="0.022 0.016" pos="{x} {y} {at.BUTTON_TOP_M - 0.016}" mass="0.05" '
          'rgba="0.1 0.65 0.65 1"/></body>')


def _block(name: str) -> str:
  return (f'<body name="{name}"><freejoint name="{name}"/><geom name="{name}" type="box" '
          f'size="{_numbers(at.BLOCK_HALF_M[name])}" mass="0.06" rgba="{_numbers(at.BLOCK_RGB[name])} 1" '
          'friction="0.8 0.005 0.0001" condim="4"/></body>')


def _post(name: str, place_3: Sequence[float], half_high: float) -> str:
  """Returns what fingers close around."""
  return (f'<geom name="{name}" type="box" size="0.01 0.01 {half_high}" pos="{_numbers(place_3)}" mass="0.05" '
          f'rgba="{_numbers(_HANDLE_RGB)} 1" {_GRIP}/>')


def _box(name: str, place_3: Sequence[float], half_3: Sequence[float], rgb: Sequence[float], more: str = "") -> str:
  return (f'<geom name="{name}" type="box" size="{_numbers(half_3)}" pos="{_numbers(place_3)}" mass="0.2" '
          f'rgba="{_numbers(rgb)} 1" {more}/>')


def _camera(name: str, view: CameraSpec) -> str:
  place_3, axes_33 = camera_axes(view, CameraShift())
  return (f'<camera name="{name}" pos="{_numbers(place_3)}" xyaxes="{_numbers(axes_33[:, :2].T)}" '
          f'fovy="{view.fovy_deg}"/>')


def _numbers(values) -> str:
  return " ".join(str(float(value)) for value in np.asarray(values).reshape(-1))
