"""What the play table's physics answers: where things are, what touches what, which lights are on; and one tick."""

import dataclasses
import math

import mujoco
import numpy as np

from pi0rag_jax.sim import physics as simulation
from pi0rag_jax.sim.calvin import scene
from pi0rag_jax.sim.calvin import table as at
from pi0rag_jax.sim.calvin.table import Table
from pi0rag_jax.sim.conditions import Calibration
from pi0rag_jax.sim.controller import OPEN_M, Controller, Workspace

ROBOT, TABLE, PLANK, DRAWER, OTHER = "robot", "table", "plank", "drawer", "other"  # what blocks touch, beside blocks
WORKSPACE = Workspace(low=(0.25, -0.36, 0.03, -1.7), high=(0.74, 0.36, 0.32, 1.7))
HELD_M = 0.012  # fingers further apart than this hold what both touch
_GRIPPED_M = 0.006  # of the fingertips above the middle of a block in the hand
_LIGHTS = {scene.BULB: ((0.3, 0.28, 0.2), (1.0, 0.9, 0.15)), scene.LED: ((0.08, 0.2, 0.1), (0.1, 1.0, 0.2))}
_HANDLES = ("drawer_handle", "slider_handle", "switch_handle")


@dataclasses.dataclass
class Led:
  """What the button does beside its place: it toggles the LED once each time that it is pressed."""

  on: bool = False
  pressed: bool = False


class Physics(simulation.Physics):
  """The play table with the Panda and its controller."""

  def __init__(self, model: mujoco.MjModel, table: Table):
    super().__init__(model, may_fall=at.BLOCKS)
    self.table, self.led = table, Led()
    self.controller = Controller(self, Calibration(), WORKSPACE)
    self._joint = {name: int(model.joint(name).qposadr[0]) for name in scene.JOINTS}
    self._handle = {name: model.geom(name).id for name in _HANDLES}
    self._light = {name: model.geom(name).id for name in _LIGHTS}
    self._pad = {model.geom(f"pad_{side}").id for side in ("left", "right")}
    self._label = [self._label_of(geom) for geom in range(model.ngeom)]
    self._geom = {name: model.geom(name).id for name in (*at.BLOCKS, *_HANDLES)}

  def _label_of(self, geom: int) -> str:
    name, body = self.model.geom(geom).name, self.model.body(self.model.geom_bodyid[geom]).name
    if body.startswith(("link", "hand", "finger")):
      return ROBOT
    return name if name in at.BLOCKS else {scene.TOP: TABLE, scene.PLANK: PLANK}.get(
      name, DRAWER if body == scene.DRAWER else OTHER)

  def tick(self, action_A: np.ndarray) -> None:
    """Moves on by one control tick."""
    self.controller.tick(action_A.tolist())
    depth = self.joint(scene.BUTTON)
    if not self.led.pressed and depth > at.BUTTON_DOWN_M:
      self.led = Led(not self.led.on, pressed=True)
    elif self.led.pressed and depth < at.BUTTON_UP_M:
      self.led = Led(self.led.on, pressed=False)

  def show_lights(self) -> None:
    """Colours the lights as they are now."""
    for name, on in ((scene.BULB, self.bulb_on), (scene.LED, self.led.on)):
      self.model.geom_rgba[self._light[name], :3] = _LIGHTS[name][on]

  def joint(self, name: str) -> float:
    """Returns how far the drawer is out, the door to the left, the switch pushed or the button down, m."""
    return float(self.data.qpos[self._joint[name]])

  def set_joint(self, name: str, place_m: float) -> None:
    """Puts one of them there."""
    self.data.qpos[self._joint[name]] = place_m

  @property
  def bulb_on(self) -> bool:
    """Whether the light bulb is on: where its switch is."""
    return self.joint(scene.SWITCH) > at.SWITCH_ON_M

  def handle(self, joint: str) -> np.ndarray:
    """Returns where fingers close around the handle of a drawer, slider or switch, float[3]."""
    place_3 = self.data.geom_xpos[self._handle[f"{joint}_handle"]].copy()
    place_3[2] = {scene.DRAWER: at.DRAWER_GRIP_Z_M, scene.SLIDER: at.SLIDER_GRIP_Z_M, scene.SWITCH: at.SWITCH_GRIP_Z_M
                  }[joint]
    return place_3

  def block(self, name: str) -> np.ndarray:
    """Returns where a block's middle is, float[3]."""
    return self.object_pose(name)[0]

  def half_extents(self, name: str) -> np.ndarray:
    """Returns half of what a block, as it is turned now, extends along x, y and z, float[3]."""
    axes_9 = np.empty(9)
    mujoco.mju_quat2Mat(axes_9, self.object_pose(name)[1])
    return np.abs(axes_9.reshape(3, 3)) @ np.array(at.BLOCK_HALF_M[name])

  def touching(self) -> dict[str, frozenset[str]]:
    """Returns what each block touches: ROBOT, TABLE, PLANK, DRAWER, OTHER, names of blocks."""
    found: dict[str, set[str]] = {name: set() for name in at.BLOCKS}
    for first, second in self.data.contact.geom.tolist():
      one, two = self._label[first], self._label[second]
      if one in found:
        found[one].add(two)
      if two in found:
        found[two].add(one)
    return {name: frozenset(labels) for name, labels in found.items()}

  @property
  def held(self) -> str:
    """What is between the fingers and touches both: a block, a handle such as 'drawer_handle', or ''."""
    if self.gripper_width() < HELD_M:
      return ""
    touched: dict[int, set[int]] = {}
    for pair in self.data.contact.geom.tolist():
      for pad, other in (pair, pair[::-1]):
        if pad in self._pad:
          touched.setdefault(other, set()).add(pad)
    return next((name for name, geom in self._geom.items() if touched.get(geom) == self._pad), "")

  def put_in_hand(self, name: str) -> None:
    """Puts a block between the fingers, which are told to close."""
    (x, y, z), yaw = self.fingertip_pose()
    self.place_object(name, (x, y, z - _GRIPPED_M), yaw)
    self.data.qpos[self._finger_qpos] = at.BLOCK_HALF_M[name][1]
    self.controller.state = dataclasses.replace(self.controller.state, gripper_open=False)
    self.data.ctrl[-1] = 0.0

  def start_robot(self, pose_4) -> None:
    """Puts the arm there, at rest, with open fingers."""
    self.controller.reset(pose_4)
    self.data.ctrl[-1] = OPEN_M
    self.refresh()


def turns_like(yaw: float, alike: float = math.pi) -> list[float]:
  """Returns the hand's turns that grasp a block alike, which half a turn leaves as it is, or another angle."""
  return [turn for turn in (yaw + k * alike for k in range(-6, 7)) if abs(turn) <= WORKSPACE.high[3]]

