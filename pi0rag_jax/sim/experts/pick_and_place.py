"""The expert of pick_and_place: one cube moves, to the pad."""

from typing import TYPE_CHECKING

from pi0rag_jax.sim.experts.base import Mistake
from pi0rag_jax.sim.experts.cube import CubeExpert, MoveRule
from pi0rag_jax.sim.tasks.cubes import Move
from pi0rag_jax.sim.tasks.pick_and_place import TARGET

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv


class PickAndPlaceExpert(CubeExpert):
  """Moves the target to the pad."""

  def move_rule(self, env: "PandaEnv", mistake: Mistake) -> MoveRule:
    """Returns the rule that knows one move, to the believed pad."""
    x, y = env.layout.goal
    move = Move(TARGET, (x + mistake.x_m, y + mistake.y_m))
    return lambda scene: move

  def placed_radius(self, env: "PandaEnv") -> float:
    """Returns the task's success radius, m."""
    return env.task.config.success_radius
