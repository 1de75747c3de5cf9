"""The registered tasks."""

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.sim.tasks.base import Layout, Task
from pi0rag_jax.sim.tasks.insertion import Insertion
from pi0rag_jax.sim.tasks.pick_and_place import PickAndPlace
from pi0rag_jax.sim.tasks.pouring import Pouring
from pi0rag_jax.sim.tasks.stacking import Stacking, StackingThree

__all__ = ["TASKS", "Layout", "Task", "get_task", "task_names"]

TASKS: dict[str, type[Task]] = {
  PickAndPlace.name: PickAndPlace,
  Insertion.name: Insertion,
  Stacking.name: Stacking,
  StackingThree.name: StackingThree,
  Pouring.name: Pouring,
}


def task_names() -> tuple[str, ...]:
  """Returns the names of all registered tasks."""
  return tuple(TASKS)


def get_task(name: str) -> Task:
  """Returns the registered task of that name with its default configuration."""
  if name not in TASKS:
    raise unknown_name("task", name, TASKS)
  return TASKS[name]()
