"""Tests of the task's layouts, its cup and its success rule."""

import math

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.tasks.pouring import CUP, Pouring, PouringConfig


@pytest.fixture(scope="module")
def env():
  return PandaEnv("pouring", render_images=False)


def _put_balls(env: PandaEnv, count: int, position) -> None:
  """Places `count` balls in a ring around `position` [3], at rest."""
  for i, name in enumerate(env.task.ball_names[:count]):
    heading = 2 * math.pi * i / count
    x, y = position[0] + 0.03 * math.cos(heading), position[1] + 0.03 * math.sin(heading)
    env.physics.place_object(name, (x, y, position[2]), 0.0)


def test_layouts_keep_everything_apart_and_name_what_is_meant():
  task, rng = Pouring(), np.random.default_rng(0)
  for _ in range(50):
    layout = task.sample(rng)
    cup, points = layout.cup[:2], np.array([layout.cup[:2], *layout.bowls])
    assert min(math.dist(cup, bowl) for bowl in layout.bowls) >= task.config.clearance
    assert math.dist(*layout.bowls) >= task.config.bowl_clearance
    assert np.all(points >= task.config.area_low) and np.all(points <= task.config.area_high)
    assert layout.bowl_colours[0] != layout.bowl_colours[1]
    assert f"{layout.cup_colour} cup into the {layout.bowl_colours[0]} bowl" in layout.prompt


@pytest.mark.parametrize(("region", "inside"), [("held_out", True), ("seen", False)])
def test_the_cup_obeys_the_region(region, inside):
  task, rng = Pouring(), np.random.default_rng(0)
  assert all((task.sample(rng, region).cup[1] >= task.config.held_out_low[1]) == inside for _ in range(30))


def test_more_bowls_than_colours_are_refused():
  with pytest.raises(Pi0RagError, match="2 bowls need 2 colours, there are"):
    Pouring(PouringConfig(bowl_colours=("white",)))


def test_the_balls_lie_in_the_cup_and_stay_there(env):
  env.reset(seed=0)
  env.advance(np.tile([0, 0, 0, 0, 1.0], (10, 1)))
  cup = env.physics.object_pose(CUP)[0]
  np.testing.assert_allclose(cup, (*env.layout.cup[:2], 0.0), atol=1e-3)
  for name in env.task.ball_names:
    x, y, z = env.physics.object_pose(name)[0] - cup
    assert math.hypot(x, y) < env.task.config.cup.radius and z < env.task.config.cup.height - 0.02


def test_a_leaning_cup_rights_itself(env):
  env.reset(seed=0)
  _put_balls(env, 8, (0.3, 0.3, 0.02))
  address = env.physics.model.joint(CUP).qposadr[0]
  env.physics.data.qpos[address + 2] = 0.03
  env.physics.data.qpos[address + 3 : address + 7] = [math.cos(0.4), math.sin(0.4), 0.0, 0.0]
  env.physics.refresh()
  assert env.physics.object_axis(CUP)[2] == pytest.approx(math.cos(0.8))
  env.advance(np.tile([0, 0, 0, 0, 1.0], (20, 1)))
  assert env.physics.object_axis(CUP)[2] > 0.99


@pytest.mark.parametrize(
  ("bowl", "count", "height", "success"),
  [(0, 6, 0.014, True), (0, 5, 0.014, False), (1, 8, 0.014, False), (0, 8, 0.06, False)],
  ids=["enough", "too few", "the other bowl", "above the bowl"],
)
def test_success_needs_enough_balls_in_the_target_bowl(env, bowl, count, height, success):
  env.reset(seed=0)
  _put_balls(env, count, (*env.layout.bowls[bowl], height))
  env.physics.refresh()
  assert env.task.succeeded(env.physics, env.layout) == success


def test_balls_that_still_roll_do_not_count(env):
  env.reset(seed=0)
  _put_balls(env, 8, (*env.layout.bowls[0], 0.014))
  for name in env.task.ball_names:
    env.physics.data.qvel[env.physics.model.joint(name).dofadr[0]] = 0.3
  assert not env.task.succeeded(env.physics, env.layout)


def test_a_lost_ball_is_no_fault_of_the_simulation(env):
  env.reset(seed=0)
  env.physics.place_object("ball_0", (0.5, 0.0, -1.0), 0.0)
  assert env.physics.fault() is None
  env.physics.place_object(CUP, (0.5, 0.0, -1.0), 0.0)
  assert env.physics.fault() == "object 'cup' fell off the table"
