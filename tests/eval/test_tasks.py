"""What of a sweep may run at once, and what has to wait: without any worker."""

import random

import pytest

from configs import quickstart
from eval import plan, tasks
from eval.plan import Fork, Learn, Merge
from eval.tasks import Filming, Fitting, Graph, Running

POLICIES = ({"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"},
            {"name": "memory", "steering": "residual"}, {"name": "flowdagger", "steering": "flowdagger"})


def tasks_of(*, stop_early=False, group=None, **changes):
  config = quickstart.get_config()
  config.update_from_flattened_dict({
    "conditions": ("nominal", "camera_shift"), "stream.episodes": 4, "stream.checkpoints": (2,),
    "evaluation.episodes": 8, "evaluation.latency_episodes": 1, "evaluation.policies": POLICIES} | changes)
  methods = {method.name: method for method in plan.read_methods(POLICIES)}
  return tasks.tasks(config, plan.steps(config), filmed=(methods["base_z0"], methods["memory"]), stop_early=stop_early,
                     group=group)


def before(found, *, shared_account=False):
  """Returns for each task all that have to be over before it, directly or not."""
  graph, above = Graph(found, shared_account=shared_account), {}
  for number, waits in sorted(graph._waits.items()):
    above[number] = waits.union(*(above[one] for one in waits))
  return above


def numbers(found, kind, **fields):
  return [n for n, task in enumerate(found) if isinstance(task, kind)
          and all(getattr(task, name) == value for name, value in fields.items())]


def test_tasks_wait_for_what_changes_what_they_use_and_for_nothing_else():
  assert tasks.waits([
    {"m": tasks.CHANGES}, {"m": tasks.USES}, {"m": tasks.USES, "cell": tasks.ADDS}, {"cell": tasks.ADDS},
    {"m": tasks.CHANGES}, {"cell": tasks.USES}, {"other": tasks.USES}]) == {
      0: set(), 1: {0}, 2: {0}, 3: set(), 4: {0, 1, 2}, 5: {2, 3}, 6: set()}


def test_a_memory_is_evaluated_between_the_parts_of_its_stream():
  found = tasks_of()
  above = before(found)
  for stream in {task.stream for task in found if isinstance(task, Learn)}:
    first, second = (numbers(found, Learn, stream=stream, until=until)[0] for until in (2, 4))
    evaluated = [n for n in numbers(found, Running) if found[n].step.stream == stream and found[n].step.after == 2
                 and found[n].method.steering]
    assert len(evaluated) == 2 and all(first in above[n] and n in above[second] for n in evaluated)
  assert not any(above[n] for n in numbers(found, Running) if not found[n].method.steering)
  streams = [n for n in numbers(found, Learn) if found[n].begin == 0]
  assert len(streams) == 2 and not any(above[n] for n in streams)


def test_what_is_fitted_to_a_memory_is_fitted_once_and_before_it_is_used():
  found = tasks_of(**{"pool.conditions": ("nominal",)}, group=2)
  above = before(found)
  for fitting in numbers(found, Fitting):
    users = [n for n in numbers(found, Running, step=found[fitting].step, method=found[fitting].method)]
    assert len(users) >= 4 and all(fitting in above[n] for n in users)
  merge, = numbers(found, Merge)
  assert {found[n].until for n in above[merge] if isinstance(found[n], Learn)} == {2, 4}
  pooled = [n for n in numbers(found, Fitting) if merge in above[n]]
  own = [n for n in numbers(found, Fitting) if merge not in above[n]]
  assert len(pooled) == 1 and set(own) <= above[pooled[0]]  # it adds to the noise of each stream


def test_clips_wait_for_both_of_their_cells_and_copies_of_a_memory_come_before_it_goes_on():
  found = tasks_of(**{"focus.conditions": ("camera_shift",), "focus.return_episodes": 2, "focus.episodes": 6}, group=3)
  above = before(found)
  for filming in numbers(found, Filming):
    cells = {(found[n].method.name, found[n].step.after) for n in above[filming] if isinstance(found[n], Running)}
    assert {("base_z0", 0), ("memory", 4)} <= cells
  fork, = numbers(found, Fork)
  longer = numbers(found, Learn, until=6)[0]
  assert fork in above[longer] and fork in above[numbers(found, Learn, stream=found[fork].target)[0]]


def test_an_evaluation_that_may_stop_early_waits_for_its_controls():
  found = tasks_of(stop_early=True, group=2)
  above = before(found)
  decided = [n for n in numbers(found, Running) if found[n].controls]
  assert {found[n].method.name for n in decided} == {"memory", "flowdagger"}
  for n in decided:
    assert {cell.policy for cell in found[n].controls} == {"base", "base_z0"}
    controls = [m for m in numbers(found, Running) if tasks.cell(found[m].step, found[m].method) in found[n].controls]
    assert len(controls) == 2 * (4 + 1) and set(controls) <= above[n]
    assert len(found[n].seeds) == 8


def test_a_base_at_another_pace_is_a_control_that_runs_to_its_end():
  paced = {"name": "base_z0_8", "start": "zero", "execute_steps": 8}
  found = tasks_of(stop_early=True, **{"evaluation.policies": (POLICIES[0], POLICIES[1], paced, *POLICIES[2:])})
  decided = [task for task in found if isinstance(task, Running) and task.controls]
  assert decided and {task.method.name for task in decided} == {"memory", "flowdagger"}
  assert all({cell.policy for cell in task.controls} == {"base", "base_z0", "base_z0_8"} for task in decided)


def test_groups_have_every_seed_once():
  whole, parts = ({(task.step, task.method): [] for task in tasks_of() if isinstance(task, Running)} for _ in range(2))
  for seeds, group in ((whole, None), (parts, 3)):
    for task in tasks_of(group=group):
      if isinstance(task, Running):
        assert group is None or len(task.seeds) <= group
        seeds[task.step, task.method] += task.seeds
  assert {key: sorted(seeds) for key, seeds in whole.items()} == {key: sorted(seeds) for key, seeds in parts.items()}
  assert all(sorted(seeds) == list(step.seeds) for (step, _), seeds in whole.items())


@pytest.mark.parametrize("seed", range(3))
def test_all_tasks_begin_once_whatever_ends_first(seed):
  found, rng = tasks_of(group=2, **{"pool.conditions": ("nominal",)}), random.Random(seed)
  above, graph = before(found), Graph(found)
  running, over = graph.ready(), set()
  while running:
    task = running.pop(rng.randrange(len(running)))
    assert above[task] <= over
    over.add(task)
    running += graph.over(task)
  assert len(over) == len(found)


def test_streams_follow_one_another_where_they_share_an_account():
  found = tasks_of()
  above = before(found, shared_account=True)
  streams = numbers(found, Learn)
  assert all(set(streams[:n]) <= above[stream] for n, stream in enumerate(streams))
