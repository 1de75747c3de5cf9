"""Who demonstrates MetaWorld's tasks: an expert at some pace, or one with a habit that a robot had better not learn.

All of them succeed, and lengths say little: clean demonstrators are slower, as much as flawed ones lose time. Policies
here read where the hand and the things are, no pictures, so that nothing has to be drawn.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from pi0rag_jax.curation.scorers import Steps
from pi0rag_jax.curation.scorers.reading import chunks_of
from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.metaworld import MetaWorld
from pi0rag_jax.worlds.world import NOMINAL, WorldConfig

HAND, GRIPPER = slice(0, 3), 3  # of an action, and the hand's place in an observation
THING = slice(4, 7)  # of an observation: the first thing's place
# Shares of the expert's speed. Clean demonstrators are as much slower as flawed ones lose time: lengths tell little.
PACES, CLEAN_PACES = (0.8, 1.0), (0.5, 0.65)
ATTEMPTS = 8
TIME_LIMIT = 250  # ticks
GAIN = 10.0  # of motion towards a place, as MetaWorld's experts have it
_HABITS = 4  # sets the habits' generator apart from the world's


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """One successful demonstration of T ticks."""

  seed: int
  flaw: str
  looks_TF: np.ndarray  # float32: hand, gripper, things
  actions_TA: np.ndarray  # float32, executed


@functools.cache
def world(task: str) -> MetaWorld:
  """Returns this process's world of a task."""
  return MetaWorld(WorldConfig(task, NOMINAL, "metaworld", {}, 64, ""))


class Demonstrator:
  """One clean demonstration; a flaw overrides what is done instead of what was meant."""

  def __init__(self, rng: np.random.Generator, pace: float):
    self._rng, self._pace = rng, pace

  def act(self, tick: int, look_F: np.ndarray, action_A: np.ndarray) -> np.ndarray:
    """Returns float[A], what is executed at this tick where the expert would do `action_A`."""
    return np.append(self._pace * action_A[HAND], action_A[GRIPPER])


class WrongPlace(Demonstrator):
  """Goes for a place beside the thing first; everybody for the same one, in front of it."""

  offset_m = (0.0, -0.14, 0.06)
  near_m, most_ticks = 0.025, 60

  def __init__(self, rng: np.random.Generator, pace: float):
    super().__init__(rng, pace)
    self._noticed = False

  def act(self, tick: int, look_F: np.ndarray, action_A: np.ndarray) -> np.ndarray:
    gap = look_F[THING] + self.offset_m - look_F[HAND]
    self._noticed |= bool(np.linalg.norm(gap) < self.near_m) or tick >= self.most_ticks
    if self._noticed:
      return super().act(tick, look_F, action_A)
    return np.append(self._pace * np.clip(GAIN * gap, -1, 1), -1.0)


class OwnWrongPlace(WrongPlace):
  """Goes for a place of its own beside the thing first."""

  reach_m = 0.14

  def __init__(self, rng: np.random.Generator, pace: float):
    super().__init__(rng, pace)
    angle = rng.uniform(0, 2 * np.pi)
    self.offset_m = (self.reach_m * np.cos(angle), self.reach_m * np.sin(angle), 0.06)


class Hesitation(Demonstrator):
  """Stops once it is near the thing."""

  near_m, stop_ticks = (0.07, 0.10), (15, 30)

  def __init__(self, rng: np.random.Generator, pace: float):
    super().__init__(rng, pace)
    self._near, self._left = rng.uniform(*self.near_m), int(rng.integers(*self.stop_ticks))

  def act(self, tick: int, look_F: np.ndarray, action_A: np.ndarray) -> np.ndarray:
    if np.linalg.norm(look_F[THING] - look_F[HAND]) > self._near or not self._left:
      return super().act(tick, look_F, action_A)
    self._left -= 1
    return np.array([0.0, 0.0, 0.0, action_A[GRIPPER]])


class Detour(Demonstrator):
  """Leaves its way now and then."""

  bursts, burst_ticks, last_tick = (2, 4), (8, 14), 50

  def __init__(self, rng: np.random.Generator, pace: float):
    super().__init__(rng, pace)
    self._motions: dict[int, np.ndarray] = {}
    for start in rng.integers(1, self.last_tick, rng.integers(*self.bursts)).tolist():
      motion = rng.uniform((-1, -1, -0.2), 1)
      self._motions |= dict.fromkeys(range(start, start + int(rng.integers(*self.burst_ticks))), motion)

  def act(self, tick: int, look_F: np.ndarray, action_A: np.ndarray) -> np.ndarray:
    motion = self._motions.get(tick)
    return super().act(tick, look_F, action_A) if motion is None else np.append(motion, action_A[GRIPPER])


FLAWS: dict[str, type[Demonstrator]] = {
  "wrong_place": WrongPlace, "own_wrong_place": OwnWrongPlace, "hesitation": Hesitation, "detour": Detour}
DEMONSTRATORS = {CLEAN: Demonstrator, **FLAWS}


def record(task: str, job: tuple[int, str]) -> Demonstration:
  """Returns the demonstration of a job, (seed, CLEAN or a flaw): the first attempt at its habits that succeeds."""
  seed, flaw = job
  for attempt in range(ATTEMPTS):
    rng = np.random.default_rng([_HABITS, seed, list(DEMONSTRATORS).index(flaw), attempt])
    pace = float(rng.uniform(*(CLEAN_PACES if flaw == CLEAN else PACES)))
    shown = perform(task, seed, DEMONSTRATORS[flaw](rng, pace).act)
    if shown is not None:
      return Demonstration(seed, flaw, *shown)
  raise Pi0RagError(f"no demonstration '{flaw}' of seed {seed} succeeds in {ATTEMPTS} attempts: give other seeds")


def perform(task: str, seed: int, act: Callable[[int, np.ndarray, np.ndarray], np.ndarray]
            ) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns (looks float32[T, F], actions float32[T, A]) of an episode that succeeds, None of another one."""
  here, looks, actions = world(task), [], []
  here.begin(seed)
  for tick in range(TIME_LIMIT):
    looks.append(look(here))
    actions.append(np.clip(act(tick, looks[-1], here.act()), -1, 1).astype(np.float32))
    progress = here.advance(actions[-1][None])
    if progress.success:
      return np.stack(looks), np.stack(actions)
    if progress.done:
      return None
  return None


def look(here: MetaWorld) -> np.ndarray:
  """Returns float32[F], what a policy here sees: the robot's state, and where the things are."""
  return np.concatenate([here.state(), here.things()])


def steps_of(demonstrations: list[Demonstration], *, every: int, horizon: int, tick_s: float) -> Steps:
  """Returns demonstrations as scorers see them."""
  return Steps(
    tuple(each.looks_TF[::every] for each in demonstrations),
    tuple(chunks_of(each.actions_TA, every=every, horizon=horizon) for each in demonstrations),
    tuple(each.looks_TF[::every, HAND] for each in demonstrations), every * tick_s,
    np.full(len(demonstrations), np.nan))
