"""A robot without conventions of its own: any cameras, state and actions, as its data set names and measures them.

An observation is `image` {camera: uint8[H, W, 3]}, `state` float[P] and `prompt`; cameras may be marked as absent by
`image_mask` {camera: bool}. Actions are float[T, A].
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import fields
from pi0rag_jax.robots.robot import Robot

NAME = "plain"


def inputs(data: Mapping, state_dim: int | None = None) -> dict:
  """Returns the model's entries of an observation, or of a sample of a data set, which has `actions` too."""
  cameras = fields.read_group(data, "image")
  masks = {"image_mask": fields.read_group(data, "image_mask")} if "image_mask" in data else {}
  actions = {"actions": np.asarray(data["actions"])} if "actions" in data else {}
  return {"image": {name: fields.read_image(cameras, name) for name in cameras}, **masks,
          "state": fields.read_vector(data, "state", state_dim), **actions, **fields.passed_on(data)}


def outputs(data: Mapping, dim: int | None = None) -> dict:
  """Returns the robot's actions float[T, A], the first of the model's; with no `dim` all of them."""
  return {"actions": data["actions"][:, :dim]}


def example(cameras: Sequence[str], state_dim: int, size: tuple[int, int]) -> dict:
  """Returns an observation of zeros, its pictures of a size (height, width)."""
  return {"image": dict.fromkeys(cameras, np.zeros((*size, 3), np.uint8)), "state": np.zeros(state_dim, np.float32),
          "prompt": fields.EXAMPLE_PROMPT}


def robot(data: DataConfig, family: str) -> Robot:
  """Returns the plain robot; what its example holds depends on the policy."""
  del data, family
  return Robot(NAME, inputs, outputs)


def with_example(made: Robot, cameras: Sequence[str], state_dim: int, size: tuple[int, int]) -> Robot:
  """Returns the robot with an example that its policy can take, where it has none of its own."""
  return made if made.example is not None else dataclasses.replace(
    made, example=functools.partial(example, cameras, state_dim, size))
