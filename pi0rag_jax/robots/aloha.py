"""ALOHA: two ViperX arms of six joints and a gripper, with cameras above and on the wrists.

An observation is `state` float[14] ([six joints, gripper] of the left arm, then of the right), `images`
{`cam_high`: [3, H, W], and `cam_left_wrist`, `cam_right_wrist` where there are any} and `prompt`; actions are
float[T, 14]. The base models know other units than ALOHA's; `adapt_to_pi` converts.
"""

import dataclasses
import math

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import fields
from pi0rag_jax.robots.robot import ActionSpace, Robot

DIM = 14
GRIPPERS = [6, 13]
CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
# cam_low goes to no model.
WRISTS = {"left_wrist_0_rgb": "cam_left_wrist", "right_wrist_0_rgb": "cam_right_wrist"}
# Joint angles (rad), of which no joint has more than a turn to either side, and openings of the grippers (0 to 1).
_IS_GRIPPER = (*[False] * 6, True) * 2
ACTIONS = ActionSpace(
  integrates=(False,) * DIM, cost=tuple(2.0 if gripper else 3.0 for gripper in _IS_GRIPPER),
  low=tuple(-1.0 if gripper else -2 * math.pi for gripper in _IS_GRIPPER),
  high=tuple(2.0 if gripper else 2 * math.pi for gripper in _IS_GRIPPER))
# Joints that turn the other way in the base models' data.
JOINT_FLIP = np.array([1, -1, -1, 1, 1, 1, 1] * 2)
# Interbotix's gripper: opening of the fingers (m) at 0 and 1, and the lengths (m) of arm and horn that move them.
FINGERS_M = (0.01844, 0.05800)
ARM_M, HORN_M = 0.036, 0.022
# The base models' gripper joint (rad) at 0 and 1: encoder counts 2405 and 3110 of 4096, from 2048.
PI_GRIPPER_RAD = (0.5476, 1.6296)
# ALOHA's gripper joint (rad), closed and open.
ALOHA_GRIPPER_RAD = (-0.6213, 1.4910)


@dataclasses.dataclass(frozen=True)
class AlohaInputs:
  """The model's inputs of an observation; cameras that are missing become black and masked."""

  adapt_to_pi: bool = True

  def __call__(self, data: dict) -> dict:
    cameras = fields.read_group(data, "images")
    unknown = sorted(set(cameras) - set(CAMERAS))
    if unknown:
      raise errors.unknown_name("camera of ALOHA", unknown[0], CAMERAS)
    base = _read_channels_first(cameras, "cam_high")
    image = {"base_0_rgb": base}
    mask: dict[str, np.bool_] = {"base_0_rgb": np.True_}
    for name, camera in WRISTS.items():
      mask[name] = np.True_ if camera in cameras else np.False_
      image[name] = _read_channels_first(cameras, camera) if camera in cameras else np.zeros_like(base)
    state = fields.read_vector(data, "state", DIM)
    inputs = {"image": image, "image_mask": mask, "state": state_to_pi(state) if self.adapt_to_pi else state}
    if "actions" in data:
      actions = fields.read_chunk(data, "actions", DIM)
      inputs["actions"] = actions_to_pi(actions) if self.adapt_to_pi else actions
    return {**inputs, **fields.passed_on(data)}


@dataclasses.dataclass(frozen=True)
class AlohaOutputs:
  """The robot's actions float[T, 14] of a model's."""

  adapt_to_pi: bool = True

  def __call__(self, data: dict) -> dict:
    actions = np.asarray(data["actions"][:, :DIM])
    return {"actions": actions_from_pi(actions) if self.adapt_to_pi else actions}


def example() -> dict:
  """Returns an observation of zeros."""
  picture = np.zeros((3, fields.EXAMPLE_PX, fields.EXAMPLE_PX), np.uint8)
  return {"state": np.zeros(DIM), "images": dict.fromkeys(CAMERAS, picture), "prompt": fields.EXAMPLE_PROMPT}


def robot(data: DataConfig, family: str) -> Robot:
  """Returns ALOHA, the same for every model family."""
  del family
  return Robot("aloha", AlohaInputs(data.adapt_to_pi), AlohaOutputs(data.adapt_to_pi), ACTIONS, example, tick_s=0.02)


def state_to_pi(state_P) -> np.ndarray:
  """Returns a state in the base models' units: joints flipped, openings of the grippers as angles."""
  return _with_grippers(state_P * JOINT_FLIP, _opening_to_pi)


def actions_to_pi(actions_TA) -> np.ndarray:
  """Returns actions in the base models' units; the inverse of `actions_from_pi`."""
  return _with_grippers(actions_TA * JOINT_FLIP, lambda x: _stretch(x, ALOHA_GRIPPER_RAD) - PI_GRIPPER_RAD[0])


def actions_from_pi(actions_TA) -> np.ndarray:
  """Returns the base models' actions in ALOHA's units."""
  return _with_grippers(actions_TA * JOINT_FLIP, lambda x: _unit(x + PI_GRIPPER_RAD[0], ALOHA_GRIPPER_RAD))


def _opening_to_pi(opening):
  """Returns the base models' gripper number of an opening in [0, 1], by the law of cosines in the linkage."""
  fingers_m = _stretch(opening, FINGERS_M)
  sine = (HORN_M**2 + fingers_m**2 - ARM_M**2) / (2 * HORN_M * fingers_m)
  return _unit(np.arcsin(np.clip(sine, -1.0, 1.0)), PI_GRIPPER_RAD)


def _with_grippers(values, convert) -> np.ndarray:
  values = np.array(values)
  values[..., GRIPPERS] = convert(values[..., GRIPPERS])
  return values


def _unit(x, span):
  """Returns x with the span mapped to [0, 1]."""
  return (x - span[0]) / (span[1] - span[0])


def _stretch(x, span):
  """Returns x with [0, 1] mapped to the span."""
  return x * (span[1] - span[0]) + span[0]


def _read_channels_first(cameras, name: str) -> np.ndarray:
  shape = np.shape(cameras.get(name, np.zeros(3)))
  if len(shape) > 1 and shape[0] != 3:
    raise errors.Pi0RagError(f"{name} has shape {shape}; ALOHA's cameras give [3, H, W]")
  return fields.read_image(cameras, name)
