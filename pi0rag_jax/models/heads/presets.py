"""Heads of published designs by name."""

from typing import Any

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.models.heads.base import HeadConfig
from pi0rag_jax.models.heads.registry import head_config

# RoboVLMs (arXiv 2412.14058): seven actions, the last the gripper. Its tanh is left out: set `squash` where labels are
# scaled to [-1, 1].
_ROBOVLMS = {
  "head": "lstm", "feature_dim": 1024, "hidden": 1024, "layers": 4, "window": 16, "chunk": 10, "action_dim": 7,
  "gripper_dims": (-1,), "readout_dims": (1024, 512, 256), "regression": "huber", "gripper_weight": 0.01}
# Mobile-VLA: a base that moves in x and y, and a gripper.
_MOBILE_VLA = {
  "head": "lstm", "feature_dim": 1024, "hidden": 512, "layers": 2, "window": 8, "chunk": 5, "action_dim": 3,
  "gripper_dims": (2,), "dropout": 0.1, "regression": "mse", "gripper_weight": 0.1}
PRESETS: dict[str, dict[str, Any]] = {"robovlms": _ROBOVLMS, "mobile_vla": _MOBILE_VLA}


def preset(name: str, **changes) -> HeadConfig:
  """Returns a published head's configuration, with changes such as `feature_dim`, the backbone's width."""
  if name not in PRESETS:
    raise unknown_name("head preset", name, PRESETS)
  fields = {**PRESETS[name], **changes}
  return head_config(fields.pop("head"), **fields)
