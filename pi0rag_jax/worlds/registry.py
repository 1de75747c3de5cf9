"""The worlds that a configuration may name, and how one is made."""

import importlib
from collections.abc import Mapping
from typing import Any

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.worlds import bridge
from pi0rag_jax.worlds.world import EXPERT, Family, World, WorldConfig

# Modules with a FAMILY; each imports its simulation only when a world is made.
FAMILIES = {"aloha": "pi0rag_jax.worlds.aloha_sim", "calvin": "pi0rag_jax.sim.calvin.world",
            "kitchen": "pi0rag_jax.worlds.kitchen", "libero": "pi0rag_jax.worlds.libero",
            "metaworld": "pi0rag_jax.worlds.metaworld", "mobile": "pi0rag_jax.sim.mobile.world",
            "panda": "pi0rag_jax.sim.world", "widowx": "pi0rag_jax.worlds.widowx"}
GYM = "pi0rag_jax.worlds.gym_world"  # has `family(id, options)`: any environment that gymnasium knows
PYTHON = "python"  # the option that names another interpreter, in which the world runs behind a bridge


def family(world: str, options: Mapping[str, Any] | None = None) -> Family:
  """Returns the family that a configuration names.

  Args:
    world: a name of FAMILIES, or the id of a gymnasium environment.
    options: of the world.
  Raises:
    Pi0RagError: neither, or an option that it does not have.
  """
  if world in FAMILIES:
    found: Family = importlib.import_module(FAMILIES[world]).FAMILY
    for name in options or {}:
      if name not in (*found.options, PYTHON):
        raise unknown_name(f"option of the world '{world}'", name, (*found.options, PYTHON))
    return found
  if "/" in world or ":" in world or (options or {}).get("robot"):
    return importlib.import_module(GYM).family(world, options or {})
  raise unknown_name("world", world, FAMILIES)


def require(config: WorldConfig) -> Family:
  """Returns the family of a configuration, of which a world can be made.

  Errors: Pi0RagError for an unknown task or condition, and for what is missing here, or in the interpreter that the
    configuration asks for.
  """
  found = family(config.world, config.options)
  check(found, config.task, config.condition)
  if python := config.options.get(PYTHON):
    bridge.require(config, python)
  else:
    found.require(config.task, config.condition)
  return found


def require_expert(config: WorldConfig) -> None:
  """Raises Pi0RagError where nobody knows how the task is done."""
  found = family(config.world, config.options)
  if EXPERT not in found.abilities:
    raise Pi0RagError(f"the world '{config.world}' has no expert")
  if why := found.no_expert(config.task_name, str(config.condition)):
    raise Pi0RagError(why)


def make_world(config: WorldConfig) -> World:
  """Returns the world of a configuration: here, or behind a bridge where it asks for another interpreter.

  Errors: those of `require`.
  """
  if python := config.options.get(PYTHON):
    return bridge.BridgedWorld(config, python)
  return require(config).make(config)


def read(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """Returns (name, options) of what a configuration says of its world: a name, or a dictionary with its `id`."""
  if isinstance(value, str):
    return value, {}
  options = value.to_dict() if hasattr(value, "to_dict") else dict(value)
  if not isinstance(options.get("id"), str):
    raise Pi0RagError(f"a world is {dict(value)!r}; allowed: a name ({', '.join(FAMILIES)}), or a dictionary such as "
                      "{'id': 'gym_aloha/AlohaTransferCube-v0', 'robot': 'aloha'}")
  return options.pop("id"), options


def check(found: Family, task: Any, condition: Any) -> None:
  """Raises Pi0RagError for a task or condition, if given by name, that a family lacks."""
  if isinstance(task, str) and task not in found.tasks:
    raise unknown_name("task", task, found.tasks)
  if isinstance(condition, str) and condition not in found.conditions:
    raise unknown_name("condition", condition, found.conditions)
