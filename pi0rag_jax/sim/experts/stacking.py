"""The expert of stacking: builds the tower from below and puts aside what is in the way."""

from typing import TYPE_CHECKING

from pi0rag_jax.sim.experts.base import Mistake
from pi0rag_jax.sim.experts.cube import CubeExpert, MoveRule, Scene
from pi0rag_jax.sim.tasks.cubes import Move

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv


class StackingExpert(CubeExpert):
  """Moves each cube to the believed place of the one below it."""

  finger_room_m = 0.046  # cubes come to lie closer together than they start

  def move_rule(self, env: "PandaEnv", mistake: Mistake) -> MoveRule:
    """Returns the task's rule, save that the hand first leaves a cube that it has let go of."""
    task = env.task
    return lambda scene: _left(scene, task.next_move(scene.cubes, scene.held))

  def placed_radius(self, env: "PandaEnv") -> float:
    """Returns the offset between stacked cubes that the task allows, m."""
    return env.task.config.success_offset


def _left(scene: Scene, move: Move) -> Move:
  """Returns `move`, or a cube's stay where it is, if that is still between fingers that are not open."""
  if scene.held is None and scene.robot.width < scene.grasp.open_width:
    for name, (x, y, z) in scene.cubes.items():
      if name != move.cube and scene.around(name):
        return Move(name, (x, y), z - scene.half_size)
  return move
