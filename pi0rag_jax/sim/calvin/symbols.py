"""What the play table looks like in symbols, when each of the 34 tasks can be done, what follows, and chains of five.

Conditions and effects are CALVIN's (arXiv 2112.03227), with three differences: what is put into the cabinet goes where
the door is not; nothing is put where a block is already; `unstack_block` leaves the upper block on the table in
earnest (see `oracle`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.sim.calvin.table import BLOCKS

LENGTH = 5  # tasks of a chain
_MOST_WAYS = 16  # of going on in a chain
TABLE, DRAWER, HAND, SLIDER_LEFT, SLIDER_RIGHT = "table", "drawer", "grasped", "slider_left", "slider_right"
STACKED_TOP, STACKED_BOTTOM = "stacked_top", "stacked_bottom"
SLIDER = {"left": SLIDER_LEFT, "right": SLIDER_RIGHT}
_OTHER_SIDE = {"left": "right", "right": "left"}
# Of the variables, values at the start of a chain.
_STARTS = {"led": (0, 1), "lightbulb": (0, 1), "slider": ("right", "left"), "drawer": ("closed", "open"),
           **dict.fromkeys(BLOCKS, (TABLE, SLIDER_RIGHT, SLIDER_LEFT))}
State = Mapping[str, int | str]  # of led, lightbulb, slider, drawer, red, blue, pink


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way in which a task can be done; its other ways differ in the block, say."""

  condition: Mapping[str, tuple[int | str, ...]]  # values that are allowed
  effect: Mapping[str, int | str]

  def applies(self, state: State) -> bool:
    """Returns whether it can be done."""
    return all(state[name] in allowed for name, allowed in self.condition.items())


@dataclasses.dataclass(frozen=True)
class Task:
  """What is asked for."""

  prompt: str  # CALVIN's of its validation
  category: int  # tasks of the same are not in one chain
  variants: tuple[Variant, ...]
  free_hand: bool = True  # the hand holds nothing before

  def after(self, state: State) -> State | None:
    """Returns what follows, None where it cannot be done, or is not clear about which block."""
    if self.free_hand == (HAND in state.values()):
      return None
    found = [variant for variant in self.variants if variant.applies(state)]
    return {**state, **found[0].effect} if len(found) == 1 else None


def _one(condition: Mapping[str, int | str], effect: Mapping[str, int | str]) -> Variant:
  return Variant({name: (value,) for name, value in condition.items()}, effect)


def _others(block: str) -> list[str]:
  return [other for other in BLOCKS if other != block]


def _of_block(block: str) -> dict[str, Task]:
  lies, lifted, tasks = {block: TABLE}, {block: HAND}, {}
  for verb in ("rotate", "push"):
    for side in ("right", "left"):
      prompt = f"{verb} the {block} block to the {side}"
      tasks[f"{verb}_{block}_block_{side}"] = Task(prompt, 1, (_one(lies, {}),))
  behind = tuple(_one({block: SLIDER[_OTHER_SIDE[door]], "slider": door}, lifted) for door in SLIDER)
  tasks[f"lift_{block}_block_table"] = Task(f"pick up the {block} block", 4, (_one(lies, lifted),))
  tasks[f"lift_{block}_block_slider"] = Task(f"pick up the {block} block in the sliding cabinet", 5, behind)
  tasks[f"lift_{block}_block_drawer"] = Task(
    f"grasp the {block} block in the drawer", 6, (_one({block: DRAWER, "drawer": "open"}, lifted),))
  return tasks


def _place_in_slider(block: str, door: str) -> Variant:
  free = SLIDER[_OTHER_SIDE[door]]
  elsewhere = {other: (TABLE, DRAWER, SLIDER[door], STACKED_TOP, STACKED_BOTTOM) for other in _others(block)}
  return Variant({block: (HAND,), "slider": (door,), **elsewhere}, {block: free})


def _push_into_drawer(block: str) -> Variant:
  away = {other: (SLIDER_RIGHT, SLIDER_LEFT) for other in _others(block)}
  return Variant({block: (TABLE,), "drawer": ("open",), **away}, {block: DRAWER})


def _switched(name: str, prompt: str) -> dict[str, Task]:
  return {f"turn_{word}_{name}": Task(f"turn {word} the {prompt}", 8, (_one({name: 1 - on}, {name: on}),))
          for word, on in (("on", 1), ("off", 0))}


def _moved(name: str, task: str, prompt: str, category: int, before: str, after: str) -> dict[str, Task]:
  return {task: Task(prompt, category, (_one({name: before}, {name: after}),))}


_PAIRS = tuple(itertools.permutations(BLOCKS, 2))
TASKS: dict[str, Task] = {
  **_of_block("red"), **_of_block("blue"), **_of_block("pink"),
  **_moved("slider", "move_slider_left", "slide the door to the left", 2, "right", "left"),
  **_moved("slider", "move_slider_right", "slide the door to the right", 2, "left", "right"),
  **_moved("drawer", "open_drawer", "open the drawer", 3, "closed", "open"),
  **_moved("drawer", "close_drawer", "close the drawer", 3, "open", "closed"),
  "place_in_slider": Task("put the block in the sliding cabinet", 7, tuple(
    _place_in_slider(block, door) for block in BLOCKS for door in SLIDER), free_hand=False),
  "place_in_drawer": Task("put the block in the drawer", 7, tuple(
    _one({block: HAND, "drawer": "open"}, {block: DRAWER}) for block in BLOCKS), free_hand=False),
  "push_into_drawer": Task("push the block into the drawer", 9, tuple(map(_push_into_drawer, BLOCKS))),
  "stack_block": Task("stack the blocks", 10, tuple(
    _one({top: HAND, low: TABLE}, {top: STACKED_TOP, low: STACKED_BOTTOM}) for top, low in _PAIRS), free_hand=False),
  "unstack_block": Task("unstack the blocks", 11, tuple(
    _one({top: STACKED_TOP, low: STACKED_BOTTOM}, {top: TABLE, low: TABLE}) for top, low in _PAIRS)),
  **_switched("lightbulb", "light bulb"), **_switched("led", "led light"),
}


def get_task(name: str) -> Task:
  """Returns a task by name. Errors: Pi0RagError for another one."""
  if name not in TASKS:
    raise unknown_name("task", name, TASKS)
  return TASKS[name]


@functools.cache
def starts() -> tuple[State, ...]:
  """Returns the 192 states in which chains begin: one or two blocks on the table, at most one in a half of the cabinet.
  """
  states = (dict(zip(_STARTS, values)) for values in itertools.product(*_STARTS.values()))
  return tuple(state for state in states if _can_begin(state))


def _can_begin(state: State) -> bool:
  return any(state[block] == TABLE for block in BLOCKS) and _can_be(state)


@functools.lru_cache(maxsize=10_000)
def draw_chain(seed: int) -> tuple[State, tuple[str, ...]]:
  """Returns (where it begins, its five tasks): such orders are equally likely; 192 seeds in a row have all starts."""
  start, rng = starts()[seed % len(starts())], np.random.default_rng(seed)
  while True:
    chain, likely = _walk(start, rng)
    # A walk comes by one order more often than by another, where it has fewer ways to go: so it is kept less often.
    if rng.random() < likely:
      return start, chain


def _walk(state: State, rng: np.random.Generator) -> tuple[tuple[str, ...], float]:
  """Returns (tasks one after the other, each drawn of those that can be done, no two of one category; how many ways
  there were, as a share of the most that there could be): 0 where there was none.
  """
  chain, share = (), 1.0
  for _ in range(LENGTH):
    ways = next_tasks(state, chain)
    share *= len(ways) / _MOST_WAYS
    if not ways:
      break
    name = list(ways)[rng.integers(len(ways))]
    chain, state = (*chain, name), ways[name]
  return chain, share


def next_tasks(state: State, before: tuple[str, ...]) -> dict[str, State]:
  """Returns the tasks that can follow in a chain, and what follows from them."""
  past = {TASKS[name].category for name in before}
  return {name: after for name, after in _following(tuple(state[name] for name in _STARTS)).items()
          if TASKS[name].category not in past}


@functools.cache
def _following(values: tuple[int | str, ...]) -> dict[str, State]:
  """Returns the tasks that can be done in a state, given by its values, and what follows."""
  state = dict(zip(_STARTS, values))
  follow = {name: task.after(state) for name, task in TASKS.items()}
  return {name: after for name, after in follow.items() if after is not None}


def draw_start(task: str, rng: np.random.Generator) -> State:
  """Returns a state in which a task can be done: a chain's start, changed as far as the task needs it."""
  found = get_task(task)
  while True:
    state = dict(starts()[rng.integers(len(starts()))])
    variant = found.variants[rng.integers(len(found.variants))]
    state |= {name: allowed[rng.integers(len(allowed))] for name, allowed in variant.condition.items()
              if state[name] not in allowed}
    if _can_be(state) and found.after(state) is not None:
      return state


def _can_be(state: State) -> bool:
  """Returns whether there is room for the blocks, and one on another where it says so."""
  places = [state[block] for block in BLOCKS]
  return (all(places.count(half) < 2 for half in SLIDER.values()) and places.count(STACKED_TOP) < 2
          and places.count(STACKED_TOP) == places.count(STACKED_BOTTOM)
          and places.count(TABLE) + places.count(STACKED_BOTTOM) <= 2)
