"""How people demonstrate: at their own pace, and some of them with a habit that a robot had better not learn.

A demonstrator follows the task's expert. A flawed one still succeeds, but on the way it hesitates where it matters,
closes the fingers beside the cube, wanders off in jerks, or goes for the wrong cube first.
"""

from typing import ClassVar

import numpy as np

from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import NO_MISTAKE, Mistake, get_expert

# Those with a cube that the task does not speak of, the last of their cubes.
TASKS = ("pick_and_place", "stacking")


class Demonstrator:
  """One clean demonstration; a flaw overrides what it believes or what it does."""

  name: ClassVar[str] = CLEAN

  def __init__(self, env: PandaEnv, rng: np.random.Generator, *, pace: float):
    """Draws the habits of one demonstration.

    Args:
      env: of the task, before or after its reset.
      rng: of the habits.
      pace: share (0, 1] of the expert's speed.
    """
    if env.task.name not in TASKS:
      raise Pi0RagError(f"no demonstrators for the task '{env.task.name}'; there are some for {', '.join(TASKS)}")
    self._expert, self._rng, self._pace = get_expert(env.task.name), rng, pace

  def act(self, env: PandaEnv) -> np.ndarray:
    """Returns float32[5], what is executed at this tick. Called once per tick, in order."""
    action_A = self._expert.plan(env, 1, self.mistake(env))[0]
    action_A[:-1] *= self._pace
    return self.altered(env, action_A)

  def mistake(self, env: PandaEnv) -> Mistake:
    """Returns how the demonstrator misjudges the scene now."""
    return NO_MISTAKE

  def altered(self, env: PandaEnv, action_A: np.ndarray) -> np.ndarray:
    """Returns what is done instead of what was meant, float32[5]."""
    return action_A


class Hesitation(Demonstrator):
  """Stops over the cube before it grasps, and again before it lets go."""

  name = "hesitation"
  near_m = (0.03, 0.07)  # from the cube, or from the goal on the way there
  stop_ticks = (9, 18)

  def __init__(self, env: PandaEnv, rng: np.random.Generator, *, pace: float):
    super().__init__(env, rng, pace=pace)
    self._near = {grasped: rng.uniform(*self.near_m) for grasped in (False, True)}
    self._left = {grasped: int(rng.integers(*self.stop_ticks)) for grasped in (False, True)}

  def altered(self, env: PandaEnv, action_A: np.ndarray) -> np.ndarray:
    """Returns no motion, with the fingers as they are, while it hesitates."""
    seen = env.task.privileged(env.physics, env.layout)
    grasped, tool = bool(seen["grasped"]), env.physics.fingertip_pose()[0]
    gap = seen["goal_position"] - tool[:2] if grasped else seen["target_position"] - tool
    if np.linalg.norm(gap) > self._near[grasped] or not self._left[grasped]:
      return action_A
    self._left[grasped] -= 1
    return np.array([0.0] * 4 + [float(env.controller.state.gripper_open)], np.float32)


class NearMiss(Demonstrator):
  """Closes the fingers beside the cube, once or twice, before it grasps it."""

  name = "near_miss"
  beside_m = (0.045, 0.055)  # across the closing axis: nearer, the fingers would still catch the cube
  most_misses = 2
  closed_ticks = (5, 9)  # until it sees that it holds nothing

  def __init__(self, env: PandaEnv, rng: np.random.Generator, *, pace: float):
    super().__init__(env, rng, pace=pace)
    misses = int(rng.integers(1, self.most_misses + 1))
    self._beside = list(rng.uniform(*self.beside_m, misses) * rng.choice([-1.0, 1.0], misses))
    self._closed = 0

  def mistake(self, env: PandaEnv) -> Mistake:
    """Returns a place beside the cube until the fingers have closed there."""
    if not self._beside:
      return NO_MISTAKE
    yaw = env.controller.state.pose[3]
    return Mistake(float(self._beside[-1] * np.cos(yaw)), float(self._beside[-1] * np.sin(yaw)))

  def altered(self, env: PandaEnv, action_A: np.ndarray) -> np.ndarray:
    """Returns closed fingers for a while where they close on nothing."""
    if not self._beside or (not self._closed and action_A[-1]):
      return action_A
    self._closed = self._closed or int(self._rng.integers(*self.closed_ticks))
    self._closed -= 1
    if not self._closed:
      self._beside.pop()
    return np.zeros_like(action_A)


class Detour(Demonstrator):
  """Leaves its way now and then, in jerks."""

  name = "detour"
  bursts = (2, 4)
  burst_ticks = (8, 14)
  jerk_ticks = 2  # between two directions
  last_tick = 60
  # Downwards are the table and the cubes; the greatest turn would turn a cube to its next side.
  share = (1.0, 1.0, 0.25, 0.5)
  up_share = (1.0, 1.0, 1.0, 0.5)

  def __init__(self, env: PandaEnv, rng: np.random.Generator, *, pace: float):
    super().__init__(env, rng, pace=pace)
    low, high = env.action_space.low[:-1] * self.share, env.action_space.high[:-1] * self.up_share
    self._motions: dict[int, np.ndarray] = {}
    for start in rng.integers(1, self.last_tick, rng.integers(*self.bursts)).tolist():
      for tick in range(start, start + int(rng.integers(*self.burst_ticks)), self.jerk_ticks):
        self._motions |= dict.fromkeys(range(tick, tick + self.jerk_ticks), rng.uniform(low, high))

  def altered(self, env: PandaEnv, action_A: np.ndarray) -> np.ndarray:
    """Returns the jerk of this tick, if there is one."""
    motion = self._motions.get(env.ticks)
    return action_A if motion is None else np.array([*motion, action_A[-1]], np.float32)


class WrongApproach(Demonstrator):
  """Comes down on the wrong cube before it turns to the right one."""

  name = "wrong_approach"
  over_m = 0.02  # sideways
  down_to_m = (0.065, 0.085)  # of the fingertips; the cube's top is at 5 cm

  def __init__(self, env: PandaEnv, rng: np.random.Generator, *, pace: float):
    super().__init__(env, rng, pace=pace)
    self._down_to, self._noticed = rng.uniform(*self.down_to_m), False

  def mistake(self, env: PandaEnv) -> Mistake:
    """Returns what takes the one cube for the other until it is reached."""
    wrong, tool = env.physics.object_pose(env.task.cube_names[-1])[0], env.physics.fingertip_pose()[0]
    self._noticed |= bool(np.linalg.norm(wrong[:2] - tool[:2]) < self.over_m and tool[2] < self._down_to)
    if self._noticed:
      return NO_MISTAKE
    target = env.task.privileged(env.physics, env.layout)["target_position"]
    return Mistake(float(wrong[0] - target[0]), float(wrong[1] - target[1]))


FLAWS: dict[str, type[Demonstrator]] = {
  flaw.name: flaw for flaw in (Hesitation, NearMiss, Detour, WrongApproach)}
DEMONSTRATORS = {CLEAN: Demonstrator, **FLAWS}


def checked_flaws(names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names of flaws, all of them for `all`, or raises for one that is none."""
  if list(names) == ["all"]:
    return tuple(FLAWS)
  for name in names:
    if name not in FLAWS:
      raise unknown_name("flaw", name, [*FLAWS, "all"])
  return tuple(dict.fromkeys(names))
