"""What really happens at a tick, for measurements: who touches what and how hard, read off the simulation's contacts.

No robot can measure this. It is worked out from the identities of bodies and from whole contact forces, not from
the sums that `Physics.contacts` gives to failure detectors.
"""

import dataclasses
from collections.abc import Mapping

import mujoco
import numpy as np

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.physics import Physics

# Geoms of the robot: the inner faces of the fingers, and all the rest of it.
_PADS = ("pad_left", "pad_right")
_ARM = ("link", "hand_", "finger_")
_SIDEWAYS = 0.5  # share of a pad's force along the closing axis, from which it presses from its side and not on top


@dataclasses.dataclass(frozen=True)
class Truth:
  """One tick. Forces in N."""

  held: str  # the free object that both pads press from their sides, '' if none
  heights_m: Mapping[str, float]  # of the free objects' origins over the table
  arm_N: float  # greatest force of one contact of links, hand or finger backs with something else
  arm_body: str  # what that is
  push_N: float  # of the whole world on the robot, but for what the fingers squeeze


class Witness:
  """Looks at a simulation after its `refresh`."""

  def __init__(self, physics: Physics):
    model = physics.model
    self._physics = physics
    names = [model.geom(i).name for i in range(model.ngeom)]
    self._bodies = [model.body(int(i)).name for i in model.geom_bodyid]
    self._pads = [names.index(pad) for pad in _PADS]
    self._arm = frozenset(i for i, name in enumerate(names) if name.startswith(_ARM))
    self._robot = self._arm | set(self._pads)
    self._free = frozenset(physics.object_names())
    self._hand = model.site(panda.FINGERTIP_SITE).id

  def look(self) -> Truth:
    """Returns the truth of this moment."""
    arm, push = (0.0, ""), np.zeros(3)
    closing_axis = self._physics.data.site_xmat[self._hand].reshape(3, 3)[:, 1]
    touching: tuple[set[str], set[str]] = (set(), set())
    for first, second, force in self._contacts():
      ours = [geom for geom in (first, second) if geom in self._robot]
      if len(ours) != 1:
        continue  # among things, or of the robot with itself
      body = self._bodies[second if ours[0] == first else first]
      # mj_contactForce gives what the first geom does to the second.
      push += force if ours[0] == second else -force
      if ours[0] in self._arm:
        arm = max(arm, (float(np.linalg.norm(force)), body))
      elif body in self._free and abs(force @ closing_axis) > _SIDEWAYS * np.linalg.norm(force):
        touching[self._pads.index(ours[0])].add(body)
    held = min(touching[0] & touching[1], default="")
    heights_m = {name: float(self._physics.object_pose(name)[0][2]) for name in self._free}
    return Truth(held, heights_m, arm[0], arm[1], float(np.linalg.norm(push)))

  def _contacts(self):
    """Yields (first geom, second geom, float[3] force in the base frame) of each contact that presses."""
    model, data = self._physics.model, self._physics.data
    wrench = np.zeros(6)
    for i, contact in enumerate(data.contact[: data.ncon]):
      mujoco.mj_contactForce(model, data, i, wrench)
      if wrench[0] > 0.0:
        yield int(contact.geom[0]), int(contact.geom[1]), contact.frame.reshape(3, 3).T @ wrench[:3]
