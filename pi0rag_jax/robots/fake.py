"""The robot of openpi's debug configurations: its observations are the model's inputs already."""

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots.transforms import TransformGroup


def transforms(data: DataConfig, family: str) -> TransformGroup:
  """Returns no transforms."""
  del data, family
  return TransformGroup()
