"""Physics: the model and its state, asked geometric questions by name."""

import dataclasses
import math
from collections.abc import Iterable

import mujoco
import numpy as np

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.sim import panda

# Of any degree of freedom, m/s or rad/s; beyond it the simulation has blown up. Rolling balls turn at 130 rad/s.
MAX_SPEED = 300.0
FALLEN_Z_M = -0.05
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_POINTS_DOWN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)


@dataclasses.dataclass(frozen=True)
class Contacts:
  """Normal contact forces in N, and the name of the body that presses most on each pad ('' if none)."""

  arm_N: float  # on all links, the hand and the finger backs together
  pad_left_N: float
  pad_right_N: float
  body_left: str
  body_right: str

  def holds(self, body: str, force_N: float) -> bool:
    """Returns whether both pads press on `body` with more than `force_N`."""
    return self.body_left == self.body_right == body and min(self.pad_left_N, self.pad_right_N) > force_N


class Physics:
  """MjModel and MjData of a scene with the Panda. Positions are in the base frame in m, angles in rad.

  Args:
    hand_axes: what the tool's yaw is measured from, see `controller.Workspace.hand_axes`; the default points down.
    may_fall: objects that may leave the table without the simulation being at fault.
  """

  def __init__(self, model: mujoco.MjModel, *, hand_axes=_POINTS_DOWN, may_fall: Iterable[str] = ()):
    self.model = model
    self._hand_x = hand_axes[:2]
    self._may_fall = frozenset(may_fall)
    self.data = mujoco.MjData(model)
    self._tool = model.site(panda.TOOL_SITE).id
    self._fingertips = model.site(panda.FINGERTIP_SITE).id
    self._arm_qpos = np.array([model.joint(name).qposadr[0] for name in panda.JOINTS])
    self._finger_qpos = np.array([model.joint(name).qposadr[0] for name in panda.FINGER_JOINTS])
    self._pads = [model.geom(f"pad_{side}").id for side in ("left", "right")]
    self._body_names = [model.body(i).name for i in range(model.nbody)]
    self._free = {
      model.joint(j).name: (int(model.jnt_qposadr[j]), int(model.jnt_dofadr[j]))
      for j in range(model.njnt)
      if int(model.jnt_type[j]) == int(mujoco.mjtJoint.mjJNT_FREE)
    }
    hand = model.body("hand").id
    arm_bodies = [b for b in range(model.nbody) if self._body_names[b].startswith(("link", "finger_")) or b == hand]
    is_arm = np.isin(model.geom_bodyid, arm_bodies)
    is_arm[self._pads] = False
    self._is_arm = is_arm
    self._state_size = mujoco.mj_stateSize(model, _STATE)
    self._contacts: Contacts | None = None

  @property
  def time_s(self) -> float:
    """Simulated time since reset."""
    return float(self.data.time)

  def reset(self) -> None:
    """Sets everything to the model's initial state; `refresh` must follow once poses are set."""
    mujoco.mj_resetData(self.model, self.data)
    self._contacts = None

  def refresh(self) -> None:
    """Computes positions and contact forces of the current state, leaving the integration state as it is."""
    warmstart = self.data.qacc_warmstart.copy()
    mujoco.mj_forward(self.model, self.data)
    self.data.qacc_warmstart[:] = warmstart
    self._contacts = None

  def step(self, ctrl, substeps: int) -> None:
    """Advances by `substeps` time steps with the actuator targets `ctrl` [8] (7 joints in rad, gripper in m)."""
    self.data.ctrl[:] = ctrl
    mujoco.mj_step(self.model, self.data, nstep=substeps)

  def arm_q(self) -> np.ndarray:
    """Returns the arm's joint angles, float[7] rad."""
    return self.data.qpos[self._arm_qpos]

  def set_arm(self, q, gripper_width_m: float) -> None:
    """Puts the arm at the joint angles `q` [7] with the fingers `gripper_width_m` apart, at rest."""
    self.data.qpos[self._arm_qpos] = q
    self.data.qpos[self._finger_qpos] = gripper_width_m / 2

  def tool_pose(self) -> tuple[np.ndarray, float]:
    """Returns (position [3], yaw) of the tool site, where the hand's drawing has the tool centre."""
    return self._site_pose(self._tool)

  def fingertip_pose(self) -> tuple[np.ndarray, float]:
    """Returns (position [3], yaw) of the real centre between the pads."""
    return self._site_pose(self._fingertips)

  def _site_pose(self, site: int) -> tuple[np.ndarray, float]:
    x, y, z = self.data.site_xmat[site][::3].tolist()  # the hand's x axis
    cosine, sine = (x * a + y * b + z * c for a, b, c in self._hand_x)
    return self.data.site_xpos[site].copy(), math.atan2(sine, cosine)

  def gripper_width(self) -> float:
    """Returns the distance between the pads in m."""
    left, right = self.data.qpos[self._finger_qpos].tolist()
    return left + right

  def object_names(self) -> tuple[str, ...]:
    """Returns the names of the free objects."""
    return tuple(self._free)

  def object_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (position [3], quaternion [4] wxyz) of a free object."""
    start, _ = self._address(name)
    return self.data.qpos[start : start + 3].copy(), self.data.qpos[start + 3 : start + 7].copy()

  def object_yaw(self, name: str) -> float:
    """Returns the heading on the table, rad, of the object's x axis, or of its y axis when x stands upright."""
    w, x, y, z = self.object_pose(name)[1].tolist()
    east, north = 1 - 2 * (y * y + z * z), 2 * (w * z + x * y)
    if east * east + north * north < 0.5:
      east, north = 2 * (x * y - w * z), 1 - 2 * (x * x + z * z)
    return math.atan2(north, east)

  def object_axis(self, name: str) -> np.ndarray:
    """Returns float[3], the unit vector of the object's z axis: straight up where it stands."""
    w, x, y, z = self.object_pose(name)[1].tolist()
    return np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])

  def object_velocity(self, name: str) -> np.ndarray:
    """Returns float[6]: linear (m/s, base frame) and angular (rad/s, object frame) velocity."""
    _, start = self._address(name)
    return self.data.qvel[start : start + 6].copy()

  def place_object(self, name: str, position_m, yaw: float) -> None:
    """Puts a free object at `position_m` [3] with heading `yaw`, at rest."""
    qpos, dof = self._address(name)
    self.data.qpos[qpos : qpos + 7] = [*position_m, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]
    self.data.qvel[dof : dof + 6] = 0.0

  def _address(self, name: str) -> tuple[int, int]:
    if name not in self._free:
      raise unknown_name("object", name, self._free)
    return self._free[name]

  def place_fixture(self, name: str, position_m, yaw: float = 0.0) -> None:
    """Moves the fixture `name` to `position_m` [3] with heading `yaw`."""
    mocap = self.model.body(name).mocapid[0]
    self.data.mocap_pos[mocap] = position_m
    self.data.mocap_quat[mocap] = [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]

  def paint(self, name: str, rgb: Iterable[float]) -> None:
    """Colours all geoms of an object or fixture, rgb in [0, 1]."""
    body = self.model.body(name)
    first = int(body.geomadr[0])
    self.model.geom_rgba[first : first + int(body.geomnum[0]), :3] = list(rgb)

  def contacts(self) -> Contacts:
    """Returns the contact forces of the current state, after `refresh`."""
    if self._contacts is None:
      self._contacts = self._measure_contacts()
    return self._contacts

  def _measure_contacts(self) -> Contacts:
    arm_N, pad_N, touching, strongest = 0.0, [0.0, 0.0], ["", ""], [0.0, 0.0]
    contact, forces = self.data.contact, self.data.efc_force
    for (first, second), row in zip(contact.geom.tolist(), contact.efc_address.tolist()):
      if row < 0:
        continue
      force = float(forces[row])
      if self._is_arm[first] or self._is_arm[second]:
        arm_N += force
      for side, pad in enumerate(self._pads):
        if pad in (first, second):
          pad_N[side] += force
          other = second if first == pad else first
          if force > strongest[side]:
            strongest[side], touching[side] = force, self._body_names[self.model.geom_bodyid[other]]
    return Contacts(arm_N, pad_N[0], pad_N[1], touching[0], touching[1])

  def fault(self) -> str | None:
    """Returns why the simulation cannot be trusted any more (not the policy's failure), or None."""
    warnings = self.data.warning.number
    if warnings.any():
      return f"mujoco warning: {mujoco.mjtWarning(int(warnings.argmax())).name}"
    speeds = np.abs(self.data.qvel)
    if not np.isfinite(self.data.qpos).all() or not np.isfinite(speeds).all():
      return "state has NaN"
    if speeds.max() > MAX_SPEED:
      return f"speed {speeds.max():.0f} exceeds {MAX_SPEED:.0f}"
    for name, (start, _) in self._free.items():
      if name not in self._may_fall and self.data.qpos[start + 2] < FALLEN_Z_M:
        return f"object '{name}' fell off the table"
    return None

  def snapshot(self) -> np.ndarray:
    """Returns the integration state, float64[n]."""
    state = np.empty(self._state_size)
    mujoco.mj_getState(self.model, self.data, state, _STATE)
    return state

  def restore(self, snapshot: np.ndarray) -> None:
    """Sets the integration state and recomputes everything that follows from it."""
    mujoco.mj_resetData(self.model, self.data)
    mujoco.mj_setState(self.model, self.data, snapshot, _STATE)
    self.refresh()
