"""Tests of vessels: their walls stand where the sizes say and leave no gap."""

import math

import mujoco
import numpy as np
import pytest

from pi0rag_jax.sim.tasks.vessels import WALLS, Vessel


def _corners(geom) -> np.ndarray:
  """Returns float[8, 3], the corners of a box in the vessel's frame."""
  matrix = np.zeros(9)
  mujoco.mju_quat2Mat(matrix, np.array(geom.quaternion))
  signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
  return np.array(geom.position_m) + signs * geom.size_m @ matrix.reshape(3, 3).T


@pytest.mark.parametrize("lean", [0.0, 0.6])
def test_walls_enclose_the_floor_and_end_at_the_rim(lean):
  vessel = Vessel(radius=0.04, height=0.033, thickness=0.004, foot_radius=0.05, lean_rad=lean)
  foot, *walls = vessel.geoms()
  assert foot.shape == "cylinder" and foot.position_m[2] == foot.size_m[1] == 0.002
  assert vessel.rim_radius == pytest.approx(0.04 + 0.03 * math.tan(lean)) and len(walls) == WALLS
  for i, wall in enumerate(walls):
    heading = 2 * math.pi * i / WALLS
    corners = _corners(wall)
    outwards = corners @ (math.cos(heading), math.sin(heading), 0.0)
    sideways = corners @ (-math.sin(heading), math.cos(heading), 0.0)
    assert outwards.min() == pytest.approx(vessel.radius, abs=vessel.thickness / 2)
    assert outwards.max() == pytest.approx(vessel.rim_radius + vessel.thickness, abs=vessel.thickness / 2)
    assert corners[:, 2].max() == pytest.approx(vessel.height, abs=vessel.thickness / 2)
    assert sideways.max() >= vessel.rim_radius * math.tan(math.pi / WALLS)


def test_masses_add_up_and_the_foot_alone_decides_how_it_slides():
  vessel = Vessel(0.03, 0.06, 0.003, 0.04, foot_mass_kg=0.1, walls_mass_kg=0.04, foot_friction=0.25)
  foot, *walls = vessel.geoms()
  assert sum(geom.mass_kg for geom in (foot, *walls)) == pytest.approx(0.14)
  assert foot.friction[0] == 0.25 and foot.priority == 1 and {wall.priority for wall in walls} == {0}
