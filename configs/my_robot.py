"""A robot of one's own, as a worked example: a UR5e with a gripper and two cameras, fine-tuned from pi0.5.

    from configs import my_robot
    from pi0rag_jax.policy.openpi_policy import create_policy

    policy = create_policy(my_robot.get_config(), "checkpoints/my_robot/20000")
    chunk_TA = policy.infer({
      "joints": joints,       # float[6], rad
      "gripper": gripper,     # float, 0 open, 1 closed
      "front": front_image,   # uint8[H, W, 3], any size
      "wrist": wrist_image,
      "prompt": "put the screws into the box",
    })["actions"]             # float[50, 7]: joint positions (rad) and gripper

The checkpoint directory has `params/` and `assets/my_robot/norm_stats.json`. To make it yours, change three things:
1. `inputs`: which of your entries are the state and the cameras. A model has three cameras; those that you lack are
   black and masked. `state` and `actions` list the same quantities in the same order.
2. `outputs`: how many numbers of the model's 32 are actions of your robot.
3. `get_config`: the model, the masks of relative actions (joints) and absolute ones (grippers), and the weights.
"""

import numpy as np

from pi0rag_jax.openpi.config import DataConfig, ModelConfig, TrainConfig
from pi0rag_jax.policy.robots.fields import passed_on, read_image, read_vector
from pi0rag_jax.policy.transforms import TransformGroup, make_bool_mask

JOINTS = 6


def inputs(data: dict) -> dict:
  """Returns the model's entries of an observation, or of a sample of a data set, which has `actions` too."""
  front, wrist = read_image(data, "front"), read_image(data, "wrist")
  state = np.concatenate([read_vector(data, "joints", JOINTS), read_vector(data, "gripper", 1)])
  actions = {"actions": read_vector(data, "actions", JOINTS + 1)} if "actions" in data else {}
  return {
    "state": state,
    "image": {"base_0_rgb": front, "left_wrist_0_rgb": wrist, "right_wrist_0_rgb": np.zeros_like(front)},
    "image_mask": {"base_0_rgb": np.True_, "left_wrist_0_rgb": np.True_, "right_wrist_0_rgb": np.False_},
    **actions, **passed_on(data)}


def outputs(data: dict) -> dict:
  """Returns the robot's actions float[T, 7] of the model's."""
  return {"actions": data["actions"][:, : JOINTS + 1]}


def robot(data: DataConfig, family: str) -> TransformGroup:
  """Returns what turns the robot's dictionaries into the model's, and back."""
  del data, family
  return TransformGroup((inputs,), (outputs,))


def get_config() -> TrainConfig:
  """Returns the configuration, in the form of openpi's named ones (pi0rag_jax/openpi/named_configs.py)."""
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
