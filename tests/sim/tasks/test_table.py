"""Tests of what tasks on the table share: draws that keep apart and in their region, colours, and things left alone."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.tasks import table

CONFIG = table.TableConfig()


@pytest.mark.parametrize(
  ("point", "full", "held_out"), [((0.5, 0.0), True, False), ((0.5, 0.1), True, True), ((0.3, 0.1), True, False)])
def test_a_point_is_seen_or_held_out(point, full, held_out):
  regions = [table.in_region(point, region, CONFIG) for region in ("full", "held_out", "seen")]
  assert regions == [full, held_out, not held_out]


def test_points_keep_apart_each_pair_as_far_as_it_needs_and_in_their_region():
  rng = np.random.default_rng(0)
  for _ in range(50):
    points = table.draw_points(rng, CONFIG, 3, "held_out", obeying=(0, 2), wider={(1, 2): 0.2})
    gaps = [np.hypot(*np.subtract(points[i], points[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) >= CONFIG.clearance and gaps[2] >= 0.2
    assert points[0][1] >= CONFIG.held_out_low[1] <= points[2][1]
    assert np.all(np.array(points) >= CONFIG.area_low) and np.all(np.array(points) <= CONFIG.area_high)
  with pytest.raises(Pi0RagError, match="no room for 2 things: widen the area or lower the clearance"):
    table.draw_points(rng, CONFIG, 2, "full", wider={(0, 1): 0.6})


def test_tool_poses_spread_around_home():
  rng = np.random.default_rng(0)
  poses = np.array([table.draw_tool_pose(rng, CONFIG) for _ in range(200)])
  offsets = np.abs(poses - [*CONFIG.tool_home, 0.0]).max(axis=0) / CONFIG.tool_spread
  assert np.all(offsets <= 1.0) and np.all(offsets > 0.95)


def test_colours_are_drawn_without_repetition_and_have_to_suffice():
  rng, colours = np.random.default_rng(0), ("red", "green", "blue")
  draws = {table.draw_colours(rng, colours, 2) for _ in range(60)}
  assert len(draws) == 6 and all(first != second for first, second in draws)
  table.require_colours("cups", 3, colours)
  with pytest.raises(Pi0RagError, match=r"4 cups need 4 colours, there are .'red'.*no two cups may look alike"):
    table.require_colours("cups", 4, colours)


def test_a_thing_is_left_alone_when_it_is_still_and_released_and_the_tool_is_above():
  env = PandaEnv(render_images=False)
  env.reset(seed=0)
  physics, (x, y, yaw) = env.physics, env.layout.cubes[0]
  above = physics.fingertip_pose()[0][2] - physics.object_pose("cube_target")[0][2]
  assert table.is_left_alone(physics, "cube_target", above - 1e-6)
  assert not table.is_left_alone(physics, "cube_target", above + 1e-6)
  physics.data.qvel[physics.model.joint("cube_target").dofadr[0]] = 0.04
  assert not table.is_still(physics, "cube_target") and table.is_still(physics, "cube_target", 0.05)
  assert not table.is_left_alone(physics, "cube_target", 0.0)
  env.reset(seed=0)
  env.controller.reset((x, y, 0.025, yaw))
  env.advance(np.zeros((8, 5)))
  assert table.is_held(physics, "cube_target") and not table.is_held(physics, "cube_1")
  assert not table.is_left_alone(physics, "cube_target", -1.0)
