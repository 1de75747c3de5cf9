"""What a task is: its scene, its random layouts, its prompt and its success rule."""

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np

from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import SceneSpec


@dataclasses.dataclass(frozen=True)
class Layout:
  """What one episode starts from; tasks add their objects' poses and colours. Plain values, so it pickles."""

  prompt: str
  tool_pose: tuple[float, float, float, float]  # x, y, z in m, yaw in rad


class Task(abc.ABC):
  """The rules of a task. It holds no state of an episode: that is the physics and the layout."""

  name: ClassVar[str]
  scene: SceneSpec
  time_limit: int  # control ticks
  put_height_m: float = 0.0  # how much higher than where it was grasped a thing may have to be put down
  workspace: Workspace = Workspace()

  @abc.abstractmethod
  def sample(self, rng: np.random.Generator, object_region: str) -> Layout:
    """Returns a random layout with the target in `object_region` (see conditions.OBJECT_REGIONS)."""

  @abc.abstractmethod
  def apply(self, physics: Physics, layout: Layout) -> None:
    """Puts objects and goals where `layout` says and colours them."""

  @abc.abstractmethod
  def paint(self, physics: Physics, layout: Layout) -> None:
    """Colours the objects as `layout` says, leaving poses alone; what a restored snapshot needs."""

  @abc.abstractmethod
  def succeeded(self, physics: Physics, layout: Layout) -> bool:
    """Returns whether the physical state fulfils the task."""

  @abc.abstractmethod
  def privileged(self, physics: Physics, layout: Layout) -> dict[str, Any]:
    """Returns the true state that an expert or a measurement may use and a policy may not.

    Every task has `target_position` [3] (of what the tool has to reach for next) and `target_yaw`, `goal_position`
    [2] (where it belongs, on the table) and `grasped`: the auxiliary head of training reads them off the prefix.
    """
