"""Demonstrations as people give them, half of them flawed, for what learns to tell them apart.

All of them succeed, their labels are what was executed, and their lengths say nothing: a clean demonstration goes at
the pace at which it takes as long as a flawed one of its layout would have.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from pi0rag_jax.data.episodes import CLEAN, Episode
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.flaws import DEMONSTRATORS, Demonstrator
from pi0rag_jax.sim.recording import HORIZON, as_episode

# Of flawed demonstrators. The clean ones take as long without losing time, and so are slower on the whole.
PACES = (0.6, 0.9)
_SLOWEST = 0.3
# Sets the habits' and the labels' generators apart from the layout's, which has the same seed.
_HABIT_STREAM, _LABEL_STREAM = 2, 3
_MAX_ATTEMPTS = 12
_PACE_STEPS = 6
_SAME_LENGTH_TICKS = 1  # nearer is not searched
_MOST_APART = 0.15  # of the flawed one's length: where clean ones are further off, lengths would tell


@dataclasses.dataclass(frozen=True)
class Performance:
  """One demonstration of K ticks."""

  seen: Sequence[tuple[int, dict, dict]]  # (tick, observation, privileged state) of the frames that were looked at
  actions_KA: np.ndarray  # float32, executed
  success: bool

  def label(self, tick: int) -> np.ndarray:
    """Returns float32[HORIZON, A]: what was executed from a tick on, then no motion with the fingers as they are."""
    label_TA = self.actions_KA[tick : tick + HORIZON]
    rest_A = np.zeros_like(label_TA[-1])
    rest_A[-1] = label_TA[-1, -1]
    return np.concatenate([label_TA, np.tile(rest_A, (HORIZON - len(label_TA), 1))])


def roles(seed: int, flaws: Sequence[str]) -> tuple[str, str]:
  """Returns (CLEAN or a flaw, the flaw whose length it has).

  In every block of seeds each flaw comes once, and once a clean demonstration that is as long as with the flaw.
  """
  block = 2 * len(flaws)
  pairs = [*((CLEAN, flaw) for flaw in flaws), *((flaw, flaw) for flaw in flaws)]
  return pairs[np.random.default_rng([_LABEL_STREAM, seed // block]).permutation(block)[seed % block]]


def record_demonstration(env: PandaEnv, seed: int, *, flaws: Sequence[str], region: str, record_every: int) -> Episode:
  """Returns one successful demonstration, its `flaw` named.

  Args:
    env: with pictures.
    seed: of the layout, and with its block's others of what the flaw is and of the habits.
    flaws: names of them.
    region: where the target starts, see `conditions.OBJECT_REGIONS`.
    record_every: ticks between recorded frames; odd seeds start one tick later than even ones.
  """
  play = functools.partial(_perform, env, seed, region)
  make = _successful(play, env, seed, flaws)
  shown = play(make(), looks=lambda tick: (tick + seed) % record_every == 0)
  frames = [(observation, shown.actions_KA[tick], shown.label(tick), truth) for tick, observation, truth in shown.seen]
  return as_episode(env, seed, frames, success=shown.success, record_every=record_every, flaw=roles(seed, flaws)[0])


def _flawed(env: PandaEnv, block: int, flaw: str, attempt: int) -> Demonstrator:
  """Returns the demonstrator of an attempt, anew with each call.

  In a block the flawed demonstration and the clean one of its length are drawn the same habits and pace, so that the
  lengths of both classes differ by their layouts alone.
  """
  rng = np.random.default_rng([_HABIT_STREAM, block, list(DEMONSTRATORS).index(flaw), attempt])
  return DEMONSTRATORS[flaw](env, rng, pace=rng.uniform(*PACES))


def _clean(env: PandaEnv, pace: float) -> Demonstrator:
  return Demonstrator(env, np.random.default_rng(0), pace=pace)  # it draws nothing


def _successful(play, env: PandaEnv, seed: int, flaws: Sequence[str]) -> Callable[[], Demonstrator]:
  """Returns what makes the demonstrator of a seed.

  It is the first attempt at its flaw that succeeds; a clean one goes at the pace at which it takes as long as that, and
  where there is no such pace the next attempt counts.
  """
  flaw, flawed = roles(seed, flaws)
  for attempt in range(_MAX_ATTEMPTS):
    make = functools.partial(_flawed, env, seed // (2 * len(flaws)), flawed, attempt)
    shown = play(make())
    if not shown.success:
      continue
    found = _as_long(play, functools.partial(_clean, env), len(shown.actions_KA)) if flaw == CLEAN else make
    if found is not None:
      return found
  raise Pi0RagError(f"no demonstration '{flaw}' of seed {seed}, with the length of '{flawed}', succeeds in "
                    f"{_MAX_ATTEMPTS} attempts: give other seeds")


def _as_long(play, make: Callable[[float], Demonstrator], ticks: int) -> Callable[[], Demonstrator] | None:
  """Returns what makes the successful demonstrator whose length is nearest to `ticks`; None where it is not near."""
  pace, found = float(np.mean(PACES)), {}
  for _ in range(_PACE_STEPS):
    shown = play(make(pace))
    length = len(shown.actions_KA)
    if shown.success:
      found[pace] = abs(length - ticks)
      if found[pace] <= _SAME_LENGTH_TICKS:
        break
    # The time that motion takes is inverse to its pace.
    pace = float(np.clip(pace * length / ticks, _SLOWEST, 1.0))
  nearest = min(found, key=lambda each: found[each], default=None)
  if nearest is None or found[nearest] > _MOST_APART * ticks:
    return None
  return functools.partial(make, nearest)


def _perform(env: PandaEnv, seed: int, region: str, demonstrator: Demonstrator, *,
             looks: Callable[[int], bool] = lambda tick: False) -> Performance:
  """Returns what the demonstrator does with the layout of `seed`; `looks` says in which ticks pictures are taken."""
  env.reset(seed=seed, options={"object_region": region})
  seen, actions, done, info = [], [], False, env.info()
  while not done:
    action_A = demonstrator.act(env)
    if looks(env.ticks):
      seen.append((env.ticks, env.observe(), info["privileged"]))
    _, terminated, truncated, info = env.advance(action_A[None])
    actions.append(action_A)
    done = terminated or truncated
  return Performance(seen, np.asarray(actions, np.float32), bool(info["success"]))
