"""The robots that a configuration may name; `configs/my_robot.py` shows your own."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import aloha, droid, fake, kitchen, libero, metaworld, mobile, panda, plain, widowx
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.transforms import TransformGroup, compose

# Of a configuration's data and its model's family; a file of your own may leave it at the transforms.
MakeRobot: TypeAlias = Callable[[DataConfig, str], Robot | TransformGroup]
ROBOTS: dict[str, MakeRobot] = {
  "aloha": aloha.robot, "droid": droid.robot, "fake": fake.robot, "kitchen": kitchen.robot,
  "libero": libero.robot, "metaworld": metaworld.robot, "mobile": mobile.robot, "panda": panda.robot,
  plain.NAME: plain.robot, "widowx": widowx.robot}
OWN = "own"  # the name of a robot that gives none


def make_robot(data: DataConfig, family: str) -> Robot:
  """Returns a configuration's robot, by name or its own function.

  Errors: Pi0RagError for an unknown name, and for a function that returns something else.
  """
  if not callable(data.robot) and data.robot not in ROBOTS:
    raise unknown_name("robot", str(data.robot), ROBOTS)
  found = (data.robot if callable(data.robot) else ROBOTS[data.robot])(data, family)
  if isinstance(found, TransformGroup):
    found = Robot(OWN, compose(found.inputs), compose(found.outputs))
  if not isinstance(found, Robot):
    raise Pi0RagError(f"robot() returns a {type(found).__name__}; allowed: a Robot, as in configs/my_robot.py")
  return dataclasses.replace(found, relative=data.delta_mask)


def space_of(fingerprint: str) -> ActionSpace | None:
  """Returns the action space with this fingerprint of a robot that declares one, None if none of ours does."""
  robot = robot_of(fingerprint)
  return None if robot is None else robot.actions


def robot_of(fingerprint: str) -> Robot | None:
  """Returns a robot whose action space has this fingerprint, None if none of ours declares it."""
  robots = [make_robot(DataConfig(robot=name), "pi0") for name in ROBOTS]
  return next((robot for robot in robots if robot.actions is not None and robot.actions.fingerprint == fingerprint),
              None)
