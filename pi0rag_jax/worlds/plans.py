"""The plan of a data set: how many episodes of which tasks, and how it is filled with successes."""

from collections.abc import Callable, Mapping

from pi0rag_jax.data.validation import Schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.world import Family

Job = tuple[str, int]  # a task's name and a seed
_TURN = 10  # episodes of a task, before those of the next one
_MOST_TRIES = 2  # episodes recorded for each that a plan asks for, before its expert is called too weak


def planned_tasks(family: Family, episodes: int) -> dict[str, int]:
  """Returns how many episodes of each task a plan has; the tasks of a category share its episodes.

  Errors: Pi0RagError where the family has no plan.
  """
  if not family.shares:
    raise Pi0RagError(f"--plan={episodes}: the robot '{family.robot}' has no plan of categories; use --tasks")
  counts = {}
  for category, number in schema(family, episodes).planned().items():
    tasks = [task for task in family.tasks if family.categories[task] == category]
    counts |= {task: number // len(tasks) + (i < number % len(tasks)) for i, task in enumerate(tasks)}
  return {task: counts[task] for task in family.tasks if counts[task]}


def schema(family: Family, episodes: int, *, cameras: Mapping[str, tuple[int, int]] | None = None, state_dim: int = 0,
           action_dim: int = 0, fps: float = 0.0) -> Schema:
  """Returns the schema of a planned data set."""
  return Schema(dict(cameras or {}), state_dim, action_dim, fps, name=family.robot, categories=dict(family.shares),
                planned_episodes=episodes)


def fill(counts: Mapping[str, int], first: int, record: Callable[[list[Job]], None],
         succeeded: Callable[[Job], bool]) -> list[Job]:
  """Returns the jobs of a plan's episodes, all of them successes; those that fail are followed by others.

  Args:
    counts: task -> successes that it takes.
    first: seed of each task.
    record: records the jobs that it is given, where they are missing.
    succeeded: whether a recorded job did.
  Errors: Pi0RagError where an expert fails too often.
  """
  tried, kept = dict.fromkeys(counts, 0), {task: [] for task in counts}
  while missing := {task: count - len(kept[task]) for task, count in counts.items() if count > len(kept[task])}:
    # In turns, so that a plan that was stopped has some of everything.
    jobs = [(task, first + tried[task] + i) for start in range(0, max(missing.values()), _TURN)
            for task, count in missing.items() for i in range(start, min(start + _TURN, count))]
    record(jobs)
    for task, seed in jobs:
      tried[task] += 1
      if succeeded((task, seed)):
        kept[task].append((task, seed))
    if weak := [task for task in missing if tried[task] > _MOST_TRIES * counts[task] + 10]:
      raise Pi0RagError(f"the expert succeeded in {len(kept[weak[0]])} of {tried[weak[0]]} episodes of '{weak[0]}': "
                        "the plan cannot be filled")
  return [job for jobs in kept.values() for job in jobs]
