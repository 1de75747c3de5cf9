"""What can be done when, in symbols, and chains of it."""

import collections

import numpy as np
import pytest

from configs import calvin_small
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.calvin import symbols
from pi0rag_jax.sim.calvin.symbols import TASKS, draw_chain, draw_start, next_tasks

START = {"led": 0, "lightbulb": 1, "slider": "right", "drawer": "open", "red": "table", "blue": "slider_left",
         "pink": "slider_right"}


def test_calvins_34_tasks():
  assert len(TASKS) == 34 and set(calvin_small.TASKS) == set(TASKS)
  assert len({task.prompt for task in TASKS.values()}) == 34
  assert collections.Counter(name.split("_")[0] for name in TASKS) == {
    "rotate": 6, "push": 7, "lift": 9, "move": 2, "open": 1, "close": 1, "place": 2, "stack": 1, "unstack": 1,
    "turn": 4}
  with pytest.raises(Pi0RagError, match="unknown task"):
    symbols.get_task("juggle")


def test_effects_follow_where_conditions_hold():
  for name, changed in (("open_drawer", None), ("turn_on_led", {"led": 1}), ("turn_on_lightbulb", None),
                        ("lift_blue_block_slider", {"blue": "grasped"}), ("lift_pink_block_slider", None),
                        ("push_into_drawer", {"red": "drawer"}), ("place_in_drawer", None), ("stack_block", None)):
    assert TASKS[name].after(START) == (None if changed is None else {**START, **changed}), name
  held = {**START, "red": "grasped", "blue": "table"}
  assert TASKS["turn_on_led"].after(held) is None  # first it puts down what it holds
  assert TASKS["stack_block"].after(held) == {**held, "red": "stacked_top", "blue": "stacked_bottom"}
  assert TASKS["stack_block"].after({**held, "pink": "table"}) is None  # on which one?
  assert TASKS["place_in_slider"].after(held) == {**held, "red": "slider_left"}  # the door is on the right
  assert TASKS["place_in_slider"].after({**held, "pink": "slider_left"}) is None  # somebody is there
  stacked = {**START, "red": "stacked_top", "blue": "stacked_bottom"}
  assert TASKS["unstack_block"].after(stacked) == {**stacked, "red": "table", "blue": "table"}


def test_chains_are_feasible_in_order_and_their_seeds():
  chains = [draw_chain(seed) for seed in range(200_000, 200_040)]
  draw_chain.cache_clear()
  assert chains == [draw_chain(seed) for seed in range(200_000, 200_040)]
  assert len({chain for _, chain in chains}) > 35
  for state, chain in chains:
    assert len(chain) == symbols.LENGTH
    for place, name in enumerate(chain):
      assert len(next_tasks(state, chain[:place])) <= symbols._MOST_WAYS
      state = next_tasks(state, chain[:place])[name]
  assert set(next_tasks(START, ("rotate_red_block_left", "turn_on_led"))) == {
    "move_slider_left", "close_drawer", "lift_red_block_table", "lift_blue_block_slider", "push_into_drawer"}


def test_all_orders_are_alike_likely(monkeypatch):
  """Of two tasks, in a made-up world in which one of them leaves more to do than the others."""
  state, few = START, {"turn_on_led": ("open_drawer",)}
  ways = lambda _, before: dict.fromkeys(  # noqa: E731
    few.get(before[0], ("close_drawer", "open_drawer", "stack_block")) if before else (*few, "move_slider_left"), state)
  monkeypatch.setattr(symbols, "next_tasks", ways)
  monkeypatch.setattr(symbols, "LENGTH", 2)
  monkeypatch.setattr(symbols, "_MOST_WAYS", 3)
  draw_chain.cache_clear()
  counts = collections.Counter(draw_chain(seed)[1] for seed in range(2000))
  draw_chain.cache_clear()
  assert len(counts) == 4
  for chain, count in counts.items():
    assert 420 < count < 580, chain


def test_chains_begin_in_each_start_alike():
  assert len(symbols.starts()) == 192
  for state in symbols.starts():
    places = [state[block] for block in ("red", "blue", "pink")]
    assert places.count("table") in (1, 2) and max(map(places.count, ("slider_left", "slider_right"))) < 2
  assert draw_chain(192 + 7)[0] == draw_chain(7)[0] != draw_chain(8)[0]


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_own_starts_allow_it(name):
  rng = np.random.default_rng(0)
  states = [draw_start(name, rng) for _ in range(12)]
  assert all(TASKS[name].after(state) is not None for state in states)
  assert len({tuple(state.values()) for state in states}) > 4
