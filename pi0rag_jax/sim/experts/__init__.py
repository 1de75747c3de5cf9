"""The scripted experts, one for each task."""

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.sim.experts.base import NO_MISTAKE, Expert, Mistake
from pi0rag_jax.sim.experts.insertion import InsertionExpert
from pi0rag_jax.sim.experts.pick_and_place import PickAndPlaceExpert
from pi0rag_jax.sim.experts.pouring import PouringExpert
from pi0rag_jax.sim.experts.stacking import StackingExpert

__all__ = ["EXPERTS", "NO_MISTAKE", "Expert", "Mistake", "get_expert"]

EXPERTS: dict[str, type[Expert]] = {
  "pick_and_place": PickAndPlaceExpert,
  "insertion": InsertionExpert,
  "stacking": StackingExpert,
  "stacking_three": StackingExpert,
  "pouring": PouringExpert,
}


def get_expert(task_name: str) -> Expert:
  """Returns the expert of the task `task_name`."""
  if task_name not in EXPERTS:
    raise unknown_name("expert", task_name, EXPERTS)
  return EXPERTS[task_name]()
