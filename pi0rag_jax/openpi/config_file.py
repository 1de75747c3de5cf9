"""Configurations of openpi's kind by name or from a Python file, such as configs/my_robot.py."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.openpi.named_configs import get_config


def read_config(name: str) -> TrainConfig:
  """Returns the configuration of a name, or what `get_config()` of a Python file returns.

  Errors: Pi0RagError for an unknown name, a file that is missing or returns something else.
  """
  if not name.endswith(".py"):
    return get_config(name)
  return config_of(load_module(pathlib.Path(name).expanduser()))


def load_module(path: pathlib.Path) -> ModuleType:
  """Returns the module of a configuration file; what fails while it runs keeps its traceback."""
  if not path.is_file():
    raise Pi0RagError(f"no configuration file {path}; configs/my_robot.py is an example")
  spec = importlib.util.spec_from_file_location(f"configuration_{path.stem}", path)
  assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses in the file look themselves up
  try:
    spec.loader.exec_module(module)
  except (ImportError, SyntaxError) as error:
    raise Pi0RagError(f"cannot read {path}: {' '.join(str(error).split())}") from error
  return module


def robot_of(path: pathlib.Path) -> Callable:
  """Returns the function `robot` of a configuration file. Errors: Pi0RagError for a file without one."""
  found = getattr(load_module(path), "robot", None)
  if not callable(found):
    raise Pi0RagError(f"{path} has no function robot(data, family); configs/my_robot.py is an example")
  return found


def config_of(module: ModuleType) -> TrainConfig:
  """Returns what a file's `get_config()` does, if that is a policy's configuration."""
  if not hasattr(module, "get_config"):
    raise Pi0RagError(f"{module.__file__} has no get_config(); configs/my_robot.py is an example")
  config = module.get_config()
  if not isinstance(config, TrainConfig):
    raise Pi0RagError(f"get_config() of {module.__file__} returns a {type(config).__name__}, expected a TrainConfig as "
                      "in configs/my_robot.py. A policy that train.launch made is loaded by its directory")
  return config
