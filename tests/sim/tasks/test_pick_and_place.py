"""Tests of the task's layouts and of its success rule."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.tasks.pick_and_place import TARGET, PickAndPlace, PickAndPlaceConfig


@pytest.mark.parametrize("distractors", [0, 1, 2])
def test_layouts_keep_everything_apart_and_in_the_area(distractors):
  task, rng = PickAndPlace(PickAndPlaceConfig(distractors=distractors)), np.random.default_rng(0)
  for _ in range(50):
    layout = task.sample(rng)
    points = np.array([cube[:2] for cube in layout.cubes] + [layout.goal])
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(points), 1)]
    assert len(points) == distractors + 2 and gaps.min() >= task.config.clearance
    assert np.all(points >= task.config.area_low) and np.all(points <= task.config.area_high)
    assert len(set(layout.cube_colours)) == distractors + 1
    assert layout.cube_colours[0] in layout.prompt


def test_the_held_out_region_is_about_a_quarter_of_the_area():
  config = PickAndPlaceConfig()
  area = np.prod(np.subtract(config.area_high, config.area_low))
  assert 0.25 <= np.prod(np.subtract(config.held_out_high, config.held_out_low)) / area <= 0.3


def test_all_colours_are_asked_for():
  task, rng = PickAndPlace(), np.random.default_rng(0)
  assert {task.sample(rng).cube_colours[0] for _ in range(40)} == {"red", "green", "blue"}


def test_more_cubes_than_colours_are_refused():
  with pytest.raises(Pi0RagError, match="4 cubes need 4 colours"):
    PickAndPlace(PickAndPlaceConfig(distractors=3))


@pytest.mark.parametrize(
  ("dx", "dz", "tool_z", "success"),
  [
    (0.0, 0.0, 0.15, True),
    (0.029, 0.0, 0.15, True),
    (0.032, 0.0, 0.15, False),
    (0.0, 0.03, 0.15, False),
    (0.0, 0.0, 0.045, False),
  ],
  ids=["on the goal", "near its edge", "beside it", "in the air", "not retreated"],
)
def test_success_needs_the_target_resting_on_the_goal_and_the_tool_away(dx, dz, tool_z, success):
  env = PandaEnv(render_images=False)
  env.reset(seed=0)
  x, y = env.layout.goal
  env.physics.place_object(TARGET, (x + dx, y, 0.025 + dz), 0.0)
  env.controller.reset((x, y, tool_z, 0.0))
  env.physics.refresh()
  assert env.task.succeeded(env.physics, env.layout) == success


def test_the_distractor_on_the_goal_is_no_success():
  env = PandaEnv(render_images=False)
  env.reset(seed=0)
  env.physics.place_object("cube_1", (*env.layout.goal, 0.025), 0.0)
  env.physics.refresh()
  assert not env.task.succeeded(env.physics, env.layout)


def test_a_held_or_moving_target_is_no_success():
  env = PandaEnv(render_images=False)
  env.reset(seed=0)
  layout = dataclasses.replace(env.layout, goal=env.layout.cubes[0][:2])
  assert env.task.succeeded(env.physics, layout)
  env.physics.data.qvel[env.physics.model.joint(TARGET).dofadr[0]] = 0.2
  assert not env.task.succeeded(env.physics, layout)
