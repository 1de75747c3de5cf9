"""The robot of openpi's debug configurations: its observations are the model's inputs already."""

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots.robot import Robot


def robot(data: DataConfig, family: str) -> Robot:
  """Returns a robot without transforms; its example depends on the model's sizes, so that it has none."""
  del data, family
  return Robot("fake", lambda observation: observation, lambda outputs: outputs)
