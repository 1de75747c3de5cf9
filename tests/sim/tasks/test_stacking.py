"""Tests of the tower: layouts, success and what has to move next."""

import itertools

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.tasks.cubes import Move
from pi0rag_jax.sim.tasks.stacking import TOWER_CLEARANCE_M, Stacking, StackingConfig, StackingThree

FAR, NEAR = (0.40, -0.15, 0.025), (0.60, 0.10, 0.025)
TASKS = pytest.mark.parametrize("task", [Stacking(), StackingThree()], ids=lambda task: task.name)


@TASKS
def test_layouts_keep_cubes_apart_and_prompts_name_the_tower_from_its_top(task):
  rng = np.random.default_rng(0)
  for _ in range(50):
    layout = task.sample(rng)
    points = [cube[:2] for cube in layout.cubes]
    gaps = [np.hypot(*np.subtract(a, b)) for a, b in itertools.combinations(points, 2)]
    assert len(points) == 3 and min(gaps) >= task.config.clearance
    assert sorted(layout.cube_colours) == ["blue", "green", "red"]
    assert tuple(layout.prompt.split(" the ")[i].split()[0] for i in range(1, task.config.levels + 1)) == (
      layout.cube_colours[: task.config.levels])
  assert len({task.sample(rng).prompt for _ in range(60)}) == 6


@TASKS
def test_all_cubes_that_move_obey_the_region(task):
  rng, north = np.random.default_rng(0), task.config.held_out_low[1]
  for _ in range(20):
    held_out, seen = task.sample(rng, "held_out").cubes, task.sample(rng, "seen").cubes
    moved = task.config.levels - 1
    assert all(y >= north for _, y, _ in held_out[:moved]) and all(y < north for _, y, _ in seen[:moved])


def test_more_cubes_than_colours_are_refused():
  with pytest.raises(Pi0RagError, match=r"4 cubes need 4 colours.*red"):
    Stacking(StackingConfig(levels=2, distractors=2))


def _placed(task, centres, tool_z=0.3) -> PandaEnv:
  """Returns an environment with the cubes at `centres` and the tool over the first."""
  env = PandaEnv(task, render_images=False)
  env.reset(seed=0)
  for name, centre in zip(env.task.cube_names, centres):
    env.physics.place_object(name, centre, 0.0)
  env.controller.reset((*centres[0][:2], tool_z, 0.0))
  env.physics.refresh()
  return env


def _on(centre, dx=0.0, dz=0.0):
  x, y, z = centre
  return x + dx, y, z + 0.05 + dz


@pytest.mark.parametrize(
  ("centres", "tool_z", "success"),
  [
    ((_on(NEAR), NEAR, FAR), 0.12, True),
    ((_on(NEAR, dx=0.017), NEAR, FAR), 0.12, True),
    ((_on(NEAR, dx=0.019), NEAR, FAR), 0.12, False),
    ((_on(NEAR, dz=0.01), NEAR, FAR), 0.15, False),
    ((_on(NEAR), NEAR, FAR), 0.10, False),
    ((NEAR, _on(NEAR), FAR), 0.15, False),
    ((_on(FAR), NEAR, FAR), 0.15, False),
    ((_on(_on(FAR)), _on(FAR), FAR), 0.2, False),
  ],
  ids=["on it", "off its centre", "too far off", "in the air", "not retreated", "reversed", "on the third", "too high"],
)
def test_two_cubes_succeed(centres, tool_z, success):
  env = _placed("stacking", centres, tool_z)
  assert env.task.succeeded(env.physics, env.layout) == success


def test_three_cubes_succeed_only_all_together():
  for centres, success in [
    ((_on(_on(NEAR)), _on(NEAR), NEAR), True),
    ((_on(_on(NEAR), dx=0.03), _on(NEAR, dx=0.015), NEAR), True),
    ((FAR, _on(NEAR), NEAR), False),
    ((_on(NEAR), NEAR, FAR), False),
    ((_on(NEAR), _on(_on(NEAR)), NEAR), False),
  ]:
    env = _placed("stacking_three", centres)
    assert env.task.succeeded(env.physics, env.layout) == success


def test_a_tower_that_moves_is_no_success():
  env = _placed("stacking", (_on(NEAR), NEAR, FAR))
  env.physics.data.qvel[env.physics.model.joint("cube_1").dofadr[0]] = 0.2
  assert not env.task.succeeded(env.physics, env.layout)


def _next(task, centres, held=None) -> Move:
  return task.next_move(dict(zip(task.cube_names, centres)), held)


def test_the_tower_grows_from_its_base():
  third = (0.45, 0.15, 0.025)
  assert _next(Stacking(), (FAR, NEAR, third)) == Move("cube_0", NEAR[:2], 0.05)
  assert _next(Stacking(), (_on(NEAR), NEAR, FAR)) == Move("cube_0", NEAR[:2], 0.05)
  task = StackingThree()
  assert _next(task, (third, FAR, NEAR)) == Move("cube_1", NEAR[:2], 0.05)
  assert _next(task, (FAR, _on(NEAR, dx=0.01), NEAR)) == Move("cube_0", _on(NEAR, dx=0.01)[:2], pytest.approx(0.1))
  assert _next(task, (FAR, _on(NEAR), NEAR), held="cube_1").cube == "cube_1"


@pytest.mark.parametrize(
  ("centres", "held", "cube"),
  [
    ((FAR, NEAR, _on(NEAR)), None, "cube_2"),
    ((FAR, NEAR, _on(FAR)), None, "cube_2"),
    ((_on(_on(NEAR)), NEAR, _on(NEAR)), None, "cube_0"),
    ((NEAR, _on(NEAR), FAR), None, "cube_1"),
    ((FAR, _on(NEAR), NEAR), None, "cube_1"),
    ((FAR, NEAR, (0.5, 0.0, 0.2)), "cube_2", "cube_2"),
    (((0.5, 0.0, 0.2), NEAR, _on(NEAR)), "cube_0", "cube_0"),
  ],
  ids=["on the base", "on the target", "pile on the base", "reversed", "base on the third", "wrong one held",
       "base covered while carrying"],
)
def test_what_is_in_the_way_goes_aside_onto_a_free_place(centres, held, cube):
  move = _next(Stacking(), centres, held)
  assert (move.cube, move.support) == (cube, 0.0)
  others = [centre for name, centre in zip(Stacking().cube_names, centres) if name != cube]
  assert min(np.hypot(*np.subtract(move.goal, centre[:2])) for centre in others) >= TOWER_CLEARANCE_M
