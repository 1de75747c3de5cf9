"""FrankaKitchen: physics and counts are the package's, chains count in order, and the expert takes over anywhere."""

import importlib.util
import types

import numpy as np
import pytest

from eval import chains
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import kitchen, registry
from pi0rag_jax.worlds import kitchen_scene as scene
from pi0rag_jax.worlds.world import WorldConfig

brought = pytest.mark.skipif(importlib.util.find_spec(scene.PACKAGE) is None, reason="no model of the kitchen")


@pytest.fixture(scope="module")
def chain():
  world = registry.make_world(WorldConfig(kitchen.CHAIN, world="kitchen"))
  yield world
  world.close()


@brought
def test_a_chain_is_what_the_package_makes_of_its_actions(chain, monkeypatch):
  from gymnasium_robotics.envs.franka_kitchen import KitchenEnv

  monkeypatch.setattr(scene, "NOISE_RAD", 0.0)
  theirs = KitchenEnv([task.replace("_", " ") for task in scene.IN_A_ROW], robot_noise_ratio=0.0,
                      object_noise_ratio=0.0)
  theirs.reset(seed=0)
  chain.begin(300_000)
  assert np.array_equal(theirs.data.qpos, chain.data.qpos)
  counts, prompts, done = [], [], False
  while not done:
    action_A = chain.plan(1)[0]
    prompts.append(scene.TASKS[chain.task].prompt)
    progress = chain.advance(action_A[None])
    *_, done, _, info = theirs.step(action_A)
    assert progress.stages == len(info["episode_task_completions"])
    assert (progress.success, progress.done) == (done, done)
    counts.append(progress.stages)
  assert np.abs(theirs.data.qpos - chain.data.qpos).max() < 1e-9
  assert [task.replace(" ", "_") for task in info["episode_task_completions"]] == list(scene.IN_A_ROW)
  assert prompts[0] == "open the microwave" and len(set(prompts)) == 4 == counts[-1]
  assert progress.ticks < kitchen.TIME_LIMIT


@brought
def test_a_task_counts_only_after_those_before_it(chain):
  chain.begin(300_000)
  last = scene.TASKS["slide_cabinet"]
  chain.data.qpos[list(last.entries)] = last.goal
  rest_A = np.zeros((1, chain.dim), np.float32)
  assert chain.advance(rest_A).stages == 0
  chain.data.qpos[22] = -0.75  # the microwave is open
  assert chain.advance(np.repeat(rest_A, 5, axis=0)).ticks == 2  # the robot is told something else
  assert chain.task == "kettle"
  for name in ("kettle", "light_switch"):
    chain.data.qpos[list(scene.TASKS[name].entries)] = scene.TASKS[name].goal
  progress = chain.advance(rest_A)
  assert (progress.stages, progress.success, progress.done) == (4, True, True)


@pytest.mark.parametrize(("task", "qpos", "done"), [
  ("microwave", {22: -0.46}, True), ("microwave", {22: -0.44}, False), ("microwave", {22: -1.1}, False),
  ("bottom_burner", {11: -0.88, 12: -0.01}, True), ("bottom_burner", {9: -0.88}, False),
  ("kettle", {}, False), ("kettle", {24: 0.47}, True)])
def test_what_counts_as_done(task, qpos, done):
  state = scene.START.copy()
  for entry, value in qpos.items():
    state[entry] = value
  assert scene.TASKS[task].is_done(state) is done


@brought
@pytest.mark.parametrize("task", ["microwave", "bottom_burner"])
def test_the_expert_takes_over_where_somebody_else_left_the_arm(task):
  world = registry.make_world(WorldConfig(task, "scattered", "kitchen"))
  world.begin(300_000)
  rng = np.random.default_rng(0)
  world.advance(np.repeat(rng.uniform(-1.0, 1.0, (4, world.dim)), 5, axis=0))
  world.more_time()
  while not (progress := world.advance(world.plan(1))).done:
    pass
  assert progress.success


@brought
def test_the_robot_is_measured_with_noise_and_offset():
  states = []
  for condition in ("nominal", "joint_offset"):
    world = registry.make_world(WorldConfig("kettle", condition, "kitchen"))
    world.begin(300_000)
    states.append(world.state())
    exact = np.concatenate([world.data.qpos[:9], world.data.qvel[:9]])
    world.begin(300_001)
    states.append(world.state())
  assert 0 < np.abs(states[0] - exact).max() <= scene.NOISE_RAD
  assert not np.array_equal(states[0], states[1])
  assert np.allclose(states[2] - states[0], [0.05, *[0.0] * 17], atol=1e-6)


def test_a_chain_is_one_episode_of_four_tasks():
  family = registry.family("kitchen")
  assert chains.legs("kitchen", family, ()) == (kitchen.CHAIN,)
  assert family.asks(kitchen.CHAIN, 5) == scene.IN_A_ROW and family.asks("kettle", 5) == ("kettle",)


def test_a_missing_model_is_told(monkeypatch):
  monkeypatch.setattr(scene, "importlib", types.SimpleNamespace(
    util=types.SimpleNamespace(find_spec=lambda name: None)))
  with pytest.raises(Pi0RagError, match=r"needs gymnasium_robotics.*pip install 'pi0rag-jax\[kitchen\]'"):
    registry.require(WorldConfig("kettle", world="kitchen"))
