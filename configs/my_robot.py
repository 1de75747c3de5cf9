"""A robot of one's own, as a worked example: a UR5e with a gripper and two cameras, fine-tuned from pi0.5.

    python -m train.launch --config=configs/pi0_libero_lora.py --config.openpi=configs/my_robot.py --workdir=DIR \
      --config.data="({'path': 'my_data'},)"
    python -m pi0rag_jax.serving.server --policy=DIR/policy

    from pi0rag_jax import Agent, load

    agent = Agent(load("DIR/policy"))
    chunk_TA = agent.infer(my_robot.example_observation())["actions"]  # float[50, 7]: joint positions (rad), gripper

To make it yours, copy this file and change, in this order:
1. `example_observation`: what your robot measures, under names of your own.
2. `inputs`: which of it is the state, and which pictures the model's three cameras are. Those that you lack are black
   and masked. `state` and `actions` list the same quantities in the same order, in units that stay the same.
3. `outputs`: how many of the model's 32 numbers are actions of your robot; `robot`: what they mean, which a memory
   needs to know. Without it, one spread of the demonstrations' actions is the unit.
4. `get_config`: the model, which actions are relative to the state, the data set's columns, the weights to start from.

`my_robot.inputs(my_robot.example_observation())` tries the first two without a model. The checkpoint is a directory
with `params/` and `assets/my_robot/norm_stats.json`. That file has mean, std, q01 and q99 of the state (7 numbers here)
and of the actions (7), these as they are predicted: relative where `delta_mask` says so. `save_norm_stats` of
pi0rag_jax.openpi.norm_stats writes it.
"""

import math

import numpy as np

from pi0rag_jax.openpi.config import DataConfig, ModelConfig, TrainConfig
from pi0rag_jax.robots.fields import passed_on, read_chunk, read_image, read_vector
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.transforms import make_bool_mask

JOINTS = 6
HEIGHT, WIDTH = 480, 640  # px; any size will do


def example_observation() -> dict:
  """Returns an observation of zeros."""
  black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  return {
    "joints": np.zeros(JOINTS),  # rad
    "gripper": 0.0,  # 0 open, 1 closed
    "front": black,
    "wrist": black,
    "prompt": "put the screws into the box",
  }


def inputs(data: dict) -> dict:
  """Returns the model's entries of an observation, or of a sample of a data set, which has `actions` too."""
  front, wrist = read_image(data, "front"), read_image(data, "wrist")
  state = np.concatenate([read_vector(data, "joints", JOINTS), read_vector(data, "gripper", 1)])
  actions = {"actions": read_chunk(data, "actions", JOINTS + 1)} if "actions" in data else {}
  return {
    "state": state,
    "image": {"base_0_rgb": front, "left_wrist_0_rgb": wrist, "right_wrist_0_rgb": np.zeros_like(front)},
    "image_mask": {"base_0_rgb": np.True_, "left_wrist_0_rgb": np.True_, "right_wrist_0_rgb": np.False_},
    **actions, **passed_on(data)}


def outputs(data: dict) -> dict:
  """Returns the robot's actions float[T, 7] of the model's."""
  return {"actions": data["actions"][:, : JOINTS + 1]}


# Angles (rad) are places, not changes: nothing integrates. Half a stroke of the gripper counts as much as 0.33 rad.
ACTIONS = ActionSpace(
  integrates=(False,) * (JOINTS + 1), cost=(*[3.0] * JOINTS, 2.0),
  low=(*[-2 * math.pi] * JOINTS, 0.0), high=(*[2 * math.pi] * JOINTS, 1.0))


def robot(data: DataConfig, family: str) -> Robot:
  """Returns what turns the robot's dictionaries into the model's, and back."""
  del data, family
  return Robot("my_robot", inputs, outputs, ACTIONS, example_observation, tick_s=0.05)


def get_config() -> TrainConfig:
  """Returns the configuration, in the form of openpi's named ones (pi0rag_jax/openpi/named_configs.py).

  `train.launch` takes from it what its own configuration leaves open, such as the number of steps.
  """
  return TrainConfig(
    name="my_robot",
    model=ModelConfig(family="pi05"),
    data=DataConfig(
      robot=robot,
      repo_id="me/my_data",  # LeRobot
      asset_id="my_robot",
      # The data set's columns by the names that `inputs` reads.
      repack={"joints": "observation.joints", "gripper": "observation.gripper", "front": "observation.images.front",
              "wrist": "observation.images.wrist", "actions": "action", "prompt": "task"},
      action_sequence_keys=("action",),
      # Joints are predicted relative to where they are, the gripper is not.
      delta_mask=make_bool_mask(JOINTS, -1),
    ),
    weights="gs://openpi-assets/checkpoints/pi05_base/params",
    num_train_steps=20_000,
  )
