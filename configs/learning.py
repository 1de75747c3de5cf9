"""Learning from failure on four tasks: every task under several conditions, every way of steering on one of each.

    python -m eval.sweep --config=configs/learning.py --out=DIR
    python -m eval.sweep --config=configs/learning.py:rewind --out=DIR

A supervisor takes over while an episode runs. With `:rewind` a failure is taken back in time to where it began, with
what only a simulator knows: how much could be learned at best.

About 40,000 episodes: four hours of two CPU cores. It goes on where it was interrupted.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from pi0rag_jax.errors import unknown_name

# What leaves the policy something to fail at: an unseen region, or a wrong calibration in one, it hardly notices.
CONDITIONS = {
  "pick_and_place": ("camera_shift_double", "wrist_camera_turn_3deg", "tool_offset_13mm", "actuator_delay"),
  "insertion": ("camera_shift_double", "wrist_camera_turn_2deg", "tool_offset_8mm", "actuator_delay"),
  "stacking": ("camera_shift", "wrist_camera_turn", "tool_offset", "actuator_delay"),
  "pouring": ("camera_shift_double", "wrist_camera_turn", "tool_offset", "actuator_delay_200ms"),
}
FOCUS = {
  "pick_and_place": "camera_shift_double",
  "insertion": "camera_shift_double",
  "stacking": "wrist_camera_turn",
  "pouring": "camera_shift_double",
}


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=50`."""
  if variant not in ("", "rewind"):
    raise unknown_name("variant of the configuration", variant, ("rewind",))
  config: Any = quickstart.get_config().unlock()
  config.stream.learning.taught_by = variant or "takeover"
  config.policy = "panda_tasks"
  config.conditions = tuple(f"{task}/{condition}" for task, names in CONDITIONS.items() for condition in names)
  config.stream.episodes = 500
  config.stream.corrected_max = 50
  config.stream.checkpoints = (50, 100)
  config.stream.learning.corrections.failed_chunks = 2  # for 'repulsion' and 'best_of_n'
  config.evaluation.episodes = 200
  config.evaluation.policies = (
      {"name": "base", "start": "new"},
      {"name": "base_z0", "start": "zero"},
      {"name": "memory", "steering": "residual"},
  )
  config.focus.conditions = tuple(f"{task}/{condition}" for task, condition in FOCUS.items())
  config.focus.streams = 3
  config.focus.episodes = 1000
  config.focus.policies = tuple({"name": name, "steering": name} for name in (
      "textbook", "absolute", "no_anchors", "raw", "aligned", "mean", "injection", "guidance", "warm_start",
      "repulsion", "best_of_n", "placebo", "placebo_keys"))
  config.focus.evaluation_episodes = 100
  config.focus.return_episodes = 200
  return config.lock()
