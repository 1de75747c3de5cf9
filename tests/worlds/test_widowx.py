"""The WidowX's tasks: 24 arrangements, and what counts as done, partly done, and not."""

import importlib.util
import itertools
import types

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import registry, rollout, widowx_arm
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Start
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.widowx_tasks import JITTER_M, TASKS, TRIALS, arrange, is_over
from pi0rag_jax.worlds.world import WorldConfig

brought = pytest.mark.skipif(importlib.util.find_spec(widowx_arm.PACKAGE) is None, reason="no model of the arm")


@pytest.mark.parametrize("name", TASKS)
def test_24_seeds_have_24_arrangements_whose_things_are_apart(name):
  task, seen = TASKS[name], []
  for seed in range(200_000, 200_000 + TRIALS):
    found = arrange(task, seed)
    again, later = arrange(task, seed), arrange(task, seed + TRIALS)
    assert found == again != later
    assert np.abs(np.subtract(found.thing[:2], later.thing[:2])).max() < 2 * JITTER_M
    apart_m = np.linalg.norm(np.subtract(found.thing[:2], found.target[:2]))
    assert apart_m > max(task.target.half[:2]) + 0.03
    assert all(np.linalg.norm(np.subtract(free, there[:2])) > 0.09 for free in found.free
               for there in (found.thing, found.target))
    seen.append((*found.thing, *found.target[:2]))
  for one, other in itertools.combinations(seen, 2):  # another place, or another turn
    apart = np.abs(np.subtract(one, other))
    assert apart[[0, 1, 3, 4]].max() > 0.025 or apart[2] > 0.28


@pytest.mark.parametrize(("name", "off_m", "over"), [
  ("stack_cube", (0.0, 0.0, 0.04), True), ("stack_cube", (0.0, 0.0, 0.065), False),
  ("stack_cube", (0.03, 0.0, 0.04), True), ("stack_cube", (0.035, 0.0, 0.04), False),
  ("stack_cube", (0.0, 0.0, -0.001), False),
  ("eggplant_in_basket", (0.07, 0.0, 0.0), True), ("eggplant_in_basket", (0.0, 0.07, 0.0), False),
  ("eggplant_in_basket", (0.0, 0.0, 0.03), False)])
def test_the_rule_of_places(name, off_m, over):
  assert is_over(TASKS[name], TASKS[name].thing, np.array(off_m)) is over


@brought
def test_lifted_is_partly_done_and_lies_there_alone_is_done():
  world = registry.make_world(WorldConfig("spoon_on_towel", world="widowx"))
  world.begin(300_000)
  parts, progress = [], None
  while progress is None or not progress.done:
    held = world.snapshot()
    progress = world.advance(world.plan(1))
    parts.append(progress.partial)
    if progress.partial and parts.count(True) == 3:  # carried on instead of being put down, it is never done
      carried = world.snapshot()
  assert not parts[0] and parts[-1] and parts == sorted(parts) and progress.success
  world.restore(carried)
  stays_TA = np.zeros((100, 7), np.float32)
  kept = world.advance(stays_TA)
  assert (kept.success, kept.partial, kept.done) == (False, True, True)
  world.restore(held)
  assert world.advance(world.plan(1)).success
  world.begin(300_000)
  assert not world.advance(stays_TA[:1]).partial
  world.close()


@brought
def test_a_rollout_keeps_what_was_partly_done():
  running = types.SimpleNamespace(trace=Trace(Job(300_000, 0)))
  with BatchEnv(WorldConfig("spoon_on_towel", world="widowx"), slots=1, processes=0) as env:
    first = env.run({0: Start(300_000, plan=True)})[0]
    rollout._take(running, first)
    assert not running.trace.partial
    rollout._take(running, env.run({0: Advance(first.plan_TA[:10])})[0])
  assert running.trace.partial and not running.trace.outcome


@brought
def test_another_thing_is_named_in_the_prompt():
  prompts = {}
  for setting in ("simple", "unseen_target"):
    world = registry.make_world(WorldConfig("stack_cube", setting, "widowx"))
    world.begin(0)
    prompts[setting] = world.observe()["prompt"]
    world.close()
  assert prompts == {"simple": "stack the green block on the yellow block",
                     "unseen_target": "stack the blue block on the yellow block"}


def test_a_missing_model_is_told(monkeypatch):
  monkeypatch.setattr(widowx_arm.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(Pi0RagError, match=r"needs trossen_arm_sim.*pip install 'pi0rag-jax\[widowx\]'"):
    registry.require(WorldConfig("stack_cube", world="widowx"))


def test_the_sweep_has_every_task_in_every_setting():
  from configs import widowx, widowx_small

  assert tuple(TASKS) == widowx_small.TASKS
  registered = registry.family("widowx").conditions
  assert set(widowx.SETTINGS) <= set(registered) and len(widowx.get_config().conditions) == 16
