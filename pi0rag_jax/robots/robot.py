"""The robots that openpi's policies know: what turns their dictionaries into a model's inputs, and back.

A robot is a function (DataConfig, model family) -> TransformGroup; `configs/my_robot.py` shows one's own.
"""

from collections.abc import Callable

from pi0rag_jax import errors
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import aloha, droid, fake, libero
from pi0rag_jax.robots.transforms import TransformGroup

ROBOTS: dict[str, Callable[[DataConfig, str], TransformGroup]] = {
  "aloha": aloha.transforms, "droid": droid.transforms, "fake": fake.transforms, "libero": libero.transforms}


def robot_transforms(data: DataConfig, family: str) -> TransformGroup:
  """Returns the transforms of a configuration's robot, by name or its own function."""
  if callable(data.robot):
    return data.robot(data, family)
  if data.robot not in ROBOTS:
    raise errors.unknown_name("robot", data.robot, ROBOTS)
  return ROBOTS[data.robot](data, family)
