"""An observation of each robot, all zeros: what a policy is compiled with before its first client comes."""

from collections.abc import Callable

import numpy as np

from pi0rag_jax.policy.openpi_policy import OpenpiPolicy
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.robots import aloha, droid, libero

PROMPT = "do something"
SIZE = 224  # px; pictures of any size become the model's


def aloha_example() -> dict:
  """Returns an observation of ALOHA, see pi0rag_jax.robots.aloha."""
  images = {name: np.zeros((3, SIZE, SIZE), np.uint8) for name in aloha.CAMERAS}
  return {"state": np.zeros(aloha.DIM), "images": images, "prompt": PROMPT}


def droid_example() -> dict:
  """Returns an observation of DROID, see pi0rag_jax.robots.droid."""
  return {"observation/exterior_image_1_left": _picture(), "observation/wrist_image_left": _picture(),
          "observation/joint_position": np.zeros(droid.JOINTS), "observation/gripper_position": np.zeros(1),
          "prompt": PROMPT}


def libero_example() -> dict:
  """Returns an observation of LIBERO, see pi0rag_jax.robots.libero."""
  return {"observation/image": _picture(), "observation/wrist_image": _picture(),
          "observation/state": np.zeros(libero.STATE_DIM), "prompt": PROMPT}


def model_example(policy: OpenpiPolicy) -> dict:
  """Returns an observation of the debug configurations, the model's own input."""
  names, model = policy.model.image_keys, policy.model
  return {"image": {name: _picture(*model.image_size) for name in names}, "image_mask": dict.fromkeys(names, np.True_),
          "state": np.zeros(model.action_dim, np.float32), "prompt": PROMPT}


def own_example(policy: Policy) -> dict:
  """Returns an observation of a policy directory."""
  spec = policy.spec
  return {"image": {name: _picture(spec.image_size, spec.image_size) for name in spec.model.image_keys},
          "state": np.zeros(spec.state_dim, np.float32), "prompt": PROMPT}


ROBOTS: dict[str, Callable[[], dict]] = {"aloha": aloha_example, "droid": droid_example, "libero": libero_example}


def _picture(height: int = SIZE, width: int = SIZE) -> np.ndarray:
  return np.zeros((height, width, 3), np.uint8)
