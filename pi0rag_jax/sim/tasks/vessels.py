"""Round vessels of boxes: a disc with eight walls around it, upright or leaning outwards."""

import dataclasses
import math

from pi0rag_jax.sim.scene import GeomSpec

WALLS = 8
# The walls hang so far above the foot's underside: on the table they would add 80 contacts.
_GAP_M = 0.003


@dataclasses.dataclass(frozen=True)
class Vessel:
  """Sizes in m, inside unless said otherwise. The frame's origin is the middle of the underside, z is up."""

  radius: float  # of the floor, to the middle of each wall
  height: float  # of the rim above the underside
  thickness: float  # of the walls and the floor
  foot_radius: float  # of the disc under it
  lean_rad: float = 0.0  # of the walls, outwards
  foot_mass_kg: float = 0.0
  walls_mass_kg: float = 0.0
  foot_friction: float = 1.0  # sliding, on anything

  @property
  def rim_radius(self) -> float:
    """Where the walls end, to the middle of each."""
    return self.radius + (self.height - _GAP_M) * math.tan(self.lean_rad)

  def geoms(self) -> tuple[GeomSpec, ...]:
    """Returns the foot and the walls."""
    half = self.thickness / 2
    foot = GeomSpec(
      "cylinder",
      (self.foot_radius, half),
      (0.0, 0.0, half),
      mass_kg=self.foot_mass_kg,
      friction=(self.foot_friction, 0.005, 0.0001),
      priority=1,
    )
    return foot, *(self._wall(2 * math.pi * i / WALLS) for i in range(WALLS))

  def _wall(self, heading: float) -> GeomSpec:
    """Returns the wall on the side `heading`."""
    rise = (self.height - _GAP_M) / 2
    distance = (self.radius + self.rim_radius + self.thickness) / 2
    width = (self.rim_radius + self.thickness) * math.tan(math.pi / WALLS)
    size = (self.thickness / 2, width, rise / math.cos(self.lean_rad))
    position = (distance * math.cos(heading), distance * math.sin(heading), _GAP_M + rise)
    (c, s), (cl, sl) = ((math.cos(angle / 2), math.sin(angle / 2)) for angle in (heading, self.lean_rad))
    quaternion = (c * cl, -s * sl, c * sl, s * cl)
    return GeomSpec("box", size, position, quaternion, mass_kg=self.walls_mass_kg / WALLS, contact_dims=3)
