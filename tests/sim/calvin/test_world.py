"""The play table: experts, chains on one table, lights, what a snapshot keeps. The contract has the rest."""

import pickle

import numpy as np
import pytest

from pi0rag_jax.sim.calvin import expert, oracle, scene, symbols
from pi0rag_jax.sim.calvin import table as at
from pi0rag_jax.sim.calvin.world import CHAIN, FAMILY, TIME_LIMIT, PlayTable
from pi0rag_jax.worlds.world import WorldConfig

SEED = 390_001
# One of each kind; the experts' table in results/chains has all.
QUICK = ("rotate_pink_block_left", "push_red_block_right", "lift_red_block_slider", "lift_blue_block_drawer",
         "move_slider_left", "close_drawer", "place_in_slider", "stack_block", "turn_on_led", "turn_off_lightbulb")


def config(task, **changes):
  return WorldConfig(task, world="calvin", image_size=16, **changes)


def succeed(world, seed=SEED):
  world.begin(seed)
  done = False
  while not done:
    progress = world.advance(world.act()[None])
    done = progress.done
  assert not progress.error
  return progress


@pytest.mark.parametrize("task", QUICK)
def test_the_expert_succeeds(task):
  assert succeed(PlayTable(config(task))).success


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["A", "B", "C", "D"])
@pytest.mark.parametrize("task", symbols.TASKS)
def test_the_expert_succeeds_at_every_table(task, condition):
  assert succeed(PlayTable(config(task, condition=condition))).success


def test_a_handle_in_the_hand_is_no_block_to_be_put_down(monkeypatch):
  world = PlayTable(config("turn_on_led"))  # nothing is held
  world.begin(SEED)
  start = oracle.Facts.of(world._physics)
  monkeypatch.setattr(type(world._physics), "held", f"{scene.SLIDER}_handle")
  for task in ("place_in_drawer", "place_in_slider", "stack_block"):
    assert expert.act(task, start, world._physics).shape == (5,)
    place_3 = expert.target(task, start, world._physics)[:3]
    assert any(np.allclose(place_3, world._physics.block(block), atol=1e-6) for block in at.BLOCKS)


def test_things_start_where_the_symbols_say():
  world, state = PlayTable(config(CHAIN)), None
  for seed in (SEED, SEED + 1, SEED + 2):
    world.begin(seed)
    state, facts = symbols.draw_chain(seed)[0], oracle.Facts.of(world._physics)
    assert facts.lights == {"led": bool(state["led"]), "lightbulb": bool(state["lightbulb"])}
    assert (facts.joints["drawer"] > 0.1) == (state["drawer"] == "open")
    assert (facts.joints["slider"] > 0.1) == (state["slider"] == "left")
    for name in at.BLOCKS:
      assert facts.blocks[name].touches == {"table" if state[name] == "table" else "plank"}
  world = PlayTable(config("unstack_block"))
  world.begin(SEED)
  assert sum(block.on_blocks for block in oracle.Facts.of(world._physics).blocks.values()) == 1
  world = PlayTable(config("place_in_drawer"))
  world.begin(SEED)
  assert world._physics.held in at.BLOCKS


def test_a_chain_asks_for_one_task_after_the_other_on_one_table():
  world, wanted = PlayTable(config(CHAIN)), FAMILY.asks(CHAIN, SEED)
  world.begin(SEED)
  ended, stages = [], 0
  while True:
    before = world.observe()["prompt"]
    assert before == symbols.TASKS[wanted[stages]].prompt
    plan_TA = world.plan(90)
    world_before = world.snapshot()
    progress = world.advance(plan_TA)  # it stops where something else is asked for
    while progress.stages == stages:
      progress = world.advance(world.plan(40))
    assert progress.stages == stages + 1
    stages += 1
    ended.append(progress.ticks)
    if progress.done:
      break
    assert world._deadline == progress.ticks + TIME_LIMIT  # as long again
    assert world.data.time > 0.0 and not np.array_equal(world.snapshot()["physics"], world_before["physics"])
  assert (progress.success, stages, len(ended)) == (True, symbols.LENGTH, symbols.LENGTH)
  assert FAMILY.time_limit(CHAIN) == 5 * TIME_LIMIT and FAMILY.asks("open_drawer", 3) == ("open_drawer",)


def test_a_chain_goes_on_elsewhere_from_its_snapshot():
  world, other = PlayTable(config(CHAIN)), PlayTable(config(CHAIN))
  world.begin(SEED)
  while world._done < 2:
    world.advance(world.act()[None])
  world.advance(np.repeat(world.act()[None], 3, axis=0))
  other.begin(SEED + 1)
  other.restore(pickle.loads(pickle.dumps(world.snapshot())))
  actions_TA = world.plan(12)
  for one in (world, other):
    one.advance(actions_TA)
  assert (other._tasks, other._done, other.task) == (world._tasks, world._done, world.task)
  np.testing.assert_array_equal(other.snapshot()["physics"], world.snapshot()["physics"])


def test_a_failed_task_ends_the_chain():
  world = PlayTable(config(CHAIN))
  world.begin(SEED)
  progress = world.advance(np.repeat([[0.0, 0.0, 0.01, 0.0, 1.0]], TIME_LIMIT + 5, axis=0))
  assert (progress.ticks, progress.success, progress.done, progress.stages) == (TIME_LIMIT, False, True, 0)


def test_the_button_toggles_once_each_time_it_is_pressed():
  world = PlayTable(config("turn_on_led"))
  succeed(world)
  physics = world._physics
  assert physics.led.on and physics.joint(scene.BUTTON) > at.BUTTON_DOWN_M
  world.more_time()
  for _ in range(3):
    physics.tick(np.zeros(5))
  assert physics.led.on  # it is still down
  x, y, _, _ = physics.controller.state.pose
  assert np.hypot(x - physics.table.button[0], y - physics.table.button[1]) < 0.01
  for _ in range(8):
    physics.tick(np.array([0.0, 0.0, 0.015, 0.0, 0.0]))
  assert physics.led.on and not physics.led.pressed


def test_lights_are_seen():
  for task, light in (("turn_on_led", "led"), ("turn_off_lightbulb", "lightbulb")):
    world = PlayTable(config(task))
    world.begin(SEED)
    world.film(64)
    geom = world.model.geom(light)
    before = geom.rgba[:3].copy()
    while not world.advance(world.act()[None]).done:
      pass
    world.film(64)
    assert (geom.rgba[:3].sum() > before.sum()) == ("on" in task)


def test_tables_differ_in_looks_and_places():
  pictures, buttons = {}, set()
  for condition in ("A", "B", "C", "D", "nominal"):
    world = PlayTable(config("turn_on_led", condition=condition))
    world.begin(SEED)
    pictures[condition] = world.film(64)
    buttons.add(world._physics.table.button)
  assert len(buttons) == 4
  np.testing.assert_array_equal(pictures["D"], pictures["nominal"])
  for one, two in (("A", "B"), ("B", "C"), ("C", "D"), ("A", "D")):
    assert (np.abs(pictures[one].astype(int) - pictures[two]).max(axis=-1) > 30).mean() > 0.1
