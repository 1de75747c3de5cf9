"""Any environment of gymnasium as a world: `{"id": "gym_aloha/AlohaTransferCube-v0", "robot": "aloha"}`.

Its observation is matched with the robot's: pictures by name, else in order, and the vector of the robot's size as its
state. `observation` says it where that is not clear: the robot's entries, with paths into the environment's.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.worlds.world import NOMINAL, Family, Progress, WorldConfig

OPTIONS = ("robot", "kwargs", "observation", "prompt", "success", "time_limit", "python")
# Where environments say that an episode succeeded; without one it is termination with a reward.
SUCCESS = ("is_success", "success")
_STATES = ("agent_pos", "state", "observation.state")


def family(world: str, options: Mapping[str, Any]) -> Family:
  """Returns the family of one environment.

  Args:
    world: its id; the module before '/' or ':' is imported, which registers it.
    options: `robot` (a name of robots.registry; needed), `kwargs` of the environment, `observation`, `prompt`,
      `success` (the entry of `info`), `time_limit` (steps), `python` (another interpreter).
  Raises:
    Pi0RagError: an unknown option, or no robot.
  """
  for name in options:
    if name not in OPTIONS:
      raise unknown_name(f"option of the world '{world}'", name, OPTIONS)
  if not options.get("robot"):
    raise Pi0RagError(f"world '{world}': say what its observations and actions are, such as 'robot': 'aloha'")
  return Family(
    robot=options["robot"], tasks=(world.rpartition("/")[2],), conditions={NOMINAL: "the environment as it is"},
    make=GymWorld, require=lambda task, condition: _register(world))


class GymWorld:
  """An environment; what it does with its actions and pictures is its own business."""

  def __init__(self, config: WorldConfig):
    options = config.options
    kwargs = dict(options.get("kwargs", {}))
    if options.get("time_limit"):
      kwargs["max_episode_steps"] = options["time_limit"]
    self._env = gymnasium.make(config.world, disable_env_checker=True, **kwargs)
    self._success, self._prompt = options.get("success"), options.get("prompt", "")
    self._entries = options.get("observation")
    self._robot = options["robot"]
    self._seen: Any = None
    self._ticks = 0

  def begin(self, seed: int) -> None:
    """Starts the episode of a seed."""
    self._seen, _ = self._env.reset(seed=seed)
    self._ticks = 0

  def advance(self, actions_NA: np.ndarray) -> Progress:
    """Executes actions float[N, A], one a step."""
    wanted = self._env.action_space.shape
    if actions_NA.ndim != 2 or actions_NA.shape[1:] != wanted or not len(actions_NA):
      raise Pi0RagError(f"actions have shape {actions_NA.shape}, the environment takes (N >= 1, "
                        f"{', '.join(map(str, wanted or ()))})")
    if not np.isfinite(actions_NA).all():
      raise Pi0RagError(f"actions have NaN or infinity: {actions_NA.tolist()}")
    success = done = False
    for action_A in actions_NA:
      self._seen, reward, terminated, truncated, info = self._env.step(action_A.astype(self._env.action_space.dtype))
      self._ticks += 1
      success = self._succeeded(info, bool(terminated), float(reward))
      done = bool(terminated or truncated) or success
      if done:
        break
    return Progress(self._ticks, success, done)

  def observe(self) -> dict[str, Any]:
    """Returns the robot's observation."""
    if self._entries is None:
      self._entries = match(self._seen, self._robot)
    found = filled(self._entries, self._seen)
    return found if "prompt" in found else {**found, "prompt": self._prompt}

  def close(self) -> None:
    """Closes the environment."""
    self._env.close()

  def _succeeded(self, info: Mapping, terminated: bool, reward: float) -> bool:
    if self._success is not None:
      if self._success not in info:
        raise unknown_name("entry of the environment's info", self._success, info)
      return bool(info[self._success])
    for name in SUCCESS:
      if name in info:
        return bool(info[name])
    return terminated and reward > 0


def _register(world: str) -> None:
  """Has an environment's package register it.

  Errors: Pi0RagError for a package that is not installed or an id that it does not register.
  """
  module, _, _ = world.replace(":", "/").partition("/")
  try:
    if ("/" in world or ":" in world) and importlib.util.find_spec(module) is not None:
      importlib.import_module(module)
    gymnasium.spec(world)
  except ModuleNotFoundError as error:
    raise Pi0RagError(f"world '{world}' needs the package '{error.name}': pip install {error.name}") from error
  except gymnasium.error.Error as error:
    raise Pi0RagError(f"gymnasium knows no environment '{world}' ({error}); its package must be installed: "
                      f"pip install {module.replace('_', '-')}") from error


def match(seen: Any, robot: str) -> dict[str, Any]:
  """Returns which entries of an environment's observation are the robot's: nested names with paths as leaves.

  Errors: Pi0RagError where that is not clear.
  """
  from pi0rag_jax.openpi.config import DataConfig
  from pi0rag_jax.robots.registry import make_robot

  entries = dict(leaves(seen))
  pictures = {path: leaf for path, leaf in entries.items() if leaf.ndim == 3 and 3 in (leaf.shape[0], leaf.shape[-1])}
  vectors = {path: leaf for path, leaf in entries.items() if leaf.ndim <= 1 and leaf.dtype.kind in "fiu"}
  made = make_robot(DataConfig(robot=robot), "pi0")
  if made.example is None:
    names = {path.rpartition(".")[2]: path for path in pictures}
    return {"image": names, "state": _state(vectors, None, robot)}
  wanted = {path: np.asarray(leaf) for path, leaf in leaves(made.example(), separator="\0")}
  found: dict[str, Any] = {}
  left = dict(pictures)
  cameras = [path for path, leaf in wanted.items() if leaf.ndim == 3]
  by_name = {path: next((source for source in left if source.rpartition(".")[2] == path.rpartition("\0")[2]), None)
             for path in cameras}
  for path, source in by_name.items():
    if source is not None:
      _put(found, path, source)
      del left[source]
  for path in cameras:
    if by_name[path] is None and left:
      source = next(iter(left))
      _put(found, path, source)
      del left[source]
  for path, leaf in wanted.items():
    if leaf.ndim == 1:
      _put(found, path, _state(vectors, len(leaf), robot))
  return found


def _state(vectors: Mapping[str, np.ndarray], size: int | None, robot: str) -> str:
  """Returns the path of the environment's state."""
  fits = [path for path, vector in vectors.items() if size is None or vector.size == size]
  named = [path for path in fits if path in _STATES]
  if len(named) == 1 or len(fits) == 1:
    return (named or fits)[0]
  there = ", ".join(f"{path}[{vector.size}]" for path, vector in vectors.items())
  raise Pi0RagError(f"the robot '{robot}' has a state of {size or 'any'} numbers, the environment's observation has "
                    f"{there or 'none'}: name it by 'observation': {{'state': ...}}")


def leaves(value: Any, path: str = "", separator: str = "."):
  """Yields (path, array) of an observation's entries."""
  if isinstance(value, Mapping):
    for name, each in value.items():
      yield from leaves(each, f"{path}{separator}{name}" if path else name, separator)
  elif not isinstance(value, str):
    yield path, np.asarray(value)


def _put(target: dict, path: str, value: Any) -> None:
  *outer, last = path.split("\0")
  for name in outer:
    target = target.setdefault(name, {})
  target[last] = value


def filled(entries: Mapping[str, Any], seen: Any) -> dict[str, Any]:
  """Returns the robot's observation: paths replaced by what they lead to."""
  return {name: filled(entry, seen) if isinstance(entry, Mapping) else _read(seen, entry)
          for name, entry in entries.items()}


def _read(seen: Any, path: str) -> np.ndarray:
  value = seen
  for name in path.split(".") if path else ():
    if not isinstance(value, Mapping) or name not in value:
      raise unknown_name("entry of the environment's observation", path, [each for each, _ in leaves(seen)])
    value = value[name]
  return np.array(value)
