"""Collects perturbed expert demonstrations: `python -m pi0rag_jax.sim.collect --episodes=1000 --out=DIR`.

The expert is disturbed on the way, and every recorded frame carries what it would do from there, undisturbed: so a
policy sees clean labels in states that it will reach by its own errors. One file per episode; a second call with
the same arguments continues where the first one stopped.

With `--flaw=all`, or some of the flaws' names, demonstrations are such as people give: labelled with what was executed,
and every other one flawed (see `sim.demonstrations`).
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from absl import app, flags
from rich.progress import track

from pi0rag_jax import cli
from pi0rag_jax.data.episodes import Episode, episode_path, write_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.demonstrations import record_demonstration
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import NO_MISTAKE, Mistake, get_expert
from pi0rag_jax.sim.flaws import checked_flaws
from pi0rag_jax.sim.recording import HORIZON, as_episode
from pi0rag_jax.worlds import batch
from pi0rag_jax.worlds.world import DEMONSTRATION_SEEDS

CONDITION = "nominal"
# Sets the disturbances' generator apart from the layout's, which has the same seed.
_DISTURBANCE_STREAM = 1
_USUAL_TIME_LIMIT = 180
COMMAND = "sim.collect"


@dataclasses.dataclass(frozen=True)
class Disturbance:
  """How the expert is disturbed. Ticks are 50 ms; the amounts are those of the image prototype.

  They are made for tasks whose time limit is 180 ticks; see `Disturbance.over`.
  """

  burst_probability: float = 0.8  # of an episode that has bursts of one random motion
  max_bursts: int = 3
  burst_ticks: tuple[int, int] = (2, 4)
  first_tick: int = 1
  last_tick: int = 80
  # Long excursions: without them the tool is low only where it should be, and a policy learns to descend where it
  # is instead of looking where the object is.
  wander_probability: float = 0.8
  max_wanders: int = 3
  wander_ticks: tuple[int, int] = (6, 20)
  wander_last_tick: int = 70
  wander_sink: float = 0.25  # of the greatest speed downwards: the table and the objects are in the way
  wander_turn: float = 0.5  # of the greatest turn: a cube turned by over 45 degrees is one turned the other way
  # Times in which the expert misjudges where things are, as a policy does: it then goes down, grasps or places beside
  # them. The labels show the way out of there, which is what a policy that stands beside a cube has to know.
  mistake_probability: float = 0.7
  max_mistakes: int = 2
  mistake_ticks: tuple[int, int] = (12, 40)
  mistake_last_tick: int = 80
  mistake_m: float = 0.04  # greatest, in a random direction
  mistake_rad: float = 0.4
  miss_probability: float = 1 / 12  # the fingers close too early, so that the grasp fails
  miss_start: tuple[int, int] = (6, 20)
  drop_probability: float = 1 / 12  # the fingers open while they hold the object
  drop_delay: tuple[int, int] = (1, 15)  # ticks after the grasp
  drop_last_tick: int = 0  # of those from which on the next grasp is dropped; 0: it is always the first
  forced_ticks: tuple[int, int] = (3, 6)  # how long a miss or drop is commanded

  def over(self, time_limit: int) -> "Disturbance":
    """Returns these disturbances, as dense as they are, for a task of `time_limit` ticks."""
    factor = time_limit / _USUAL_TIME_LIMIT
    scale = lambda value: max(round(value * factor), 1)  # noqa: E731
    return dataclasses.replace(
      self,
      max_bursts=scale(self.max_bursts),
      last_tick=scale(self.last_tick),
      max_wanders=scale(self.max_wanders),
      wander_last_tick=scale(self.wander_last_tick),
      max_mistakes=scale(self.max_mistakes),
      mistake_last_tick=scale(self.mistake_last_tick),
      drop_last_tick=max(time_limit - _USUAL_TIME_LIMIT, 0),
    )


@dataclasses.dataclass(frozen=True)
class Job:
  """What one worker needs to know of the whole collection."""

  task: str
  region: str
  renderer: str
  image_size: int
  record_every: int
  folder: str
  flaws: tuple[str, ...] = ()  # of half of the demonstrations, see `sim.demonstrations`; none: disturbed experts


class Disturber:
  """Turns the expert's action into the executed one."""

  def __init__(self, rng: np.random.Generator, low_A, high_A, settings: Disturbance = Disturbance()):
    """Draws the episode's disturbances. `low_A`, `high_A`: the action's bounds."""
    s = settings
    self._motions: dict[int, np.ndarray] = {}
    if rng.random() < s.burst_probability:
      for _ in range(rng.integers(1, s.max_bursts + 1)):
        start = rng.integers(s.first_tick, s.last_tick + 1)
        length = rng.integers(s.burst_ticks[0], s.burst_ticks[1] + 1)
        motion = rng.uniform(low_A[:-1], high_A[:-1])
        self._motions |= {int(tick): motion for tick in range(start, start + length)}
    if rng.random() < s.wander_probability:
      for _ in range(rng.integers(1, s.max_wanders + 1)):
        start, length = rng.integers(0, s.wander_last_tick + 1), rng.integers(s.wander_ticks[0], s.wander_ticks[1] + 1)
        motion = rng.uniform(
          low_A[:-1] * [1.0, 1.0, s.wander_sink, s.wander_turn], high_A[:-1] * [1.0, 1.0, 1.0, s.wander_turn])
        self._motions |= {int(tick): motion for tick in range(start, start + length)}
    self._mistakes: dict[int, Mistake] = {}
    if rng.random() < s.mistake_probability:
      for _ in range(rng.integers(1, s.max_mistakes + 1)):
        start = rng.integers(0, s.mistake_last_tick + 1)
        length = rng.integers(s.mistake_ticks[0], s.mistake_ticks[1] + 1)
        mistake = _draw_mistake(rng, s)
        self._mistakes |= {int(tick): mistake for tick in range(start, start + length)}
    length = int(rng.integers(s.forced_ticks[0], s.forced_ticks[1] + 1))
    start = int(rng.integers(*s.miss_start))
    kind = rng.random()
    self._closed = range(start, start + length) if kind < s.miss_probability else range(0)
    drops = s.miss_probability <= kind < s.miss_probability + s.drop_probability
    self._drop_delay = int(rng.integers(*s.drop_delay)) if drops else None
    self._drop_length = length
    self._drop_from = int(rng.integers(s.drop_last_tick + 1))
    self._opened = range(0)

  def mistake(self, tick: int) -> Mistake:
    """Returns how the expert misjudges the scene at a tick."""
    return self._mistakes.get(tick, NO_MISTAKE)

  def apply(self, action_A, *, tick: int, grasped: bool) -> np.ndarray:
    """Returns the action to execute instead of the expert's, float32[A]."""
    action_A = np.array(action_A, np.float32)
    if tick in self._motions:
      action_A[:-1] = self._motions[tick]
    if grasped and self._drop_delay is not None and tick >= self._drop_from:
      self._opened = range(tick + self._drop_delay, tick + self._drop_delay + self._drop_length)
      self._drop_delay = None
    if tick in self._closed:
      action_A[-1] = 0.0
    if tick in self._opened:
      action_A[-1] = 1.0
    return action_A


def _draw_mistake(rng: np.random.Generator, settings: Disturbance) -> Mistake:
  """Returns a displacement of random length and direction, with a turn."""
  distance, direction = rng.uniform(0.0, settings.mistake_m), rng.uniform(-np.pi, np.pi)
  turn = rng.uniform(-settings.mistake_rad, settings.mistake_rad)
  return Mistake(float(distance * np.cos(direction)), float(distance * np.sin(direction)), float(turn))


def record_episode(env: PandaEnv, seed: int, *, region: str, record_every: int) -> Episode:
  """Returns one disturbed demonstration, a success or not.

  Args:
    env: with pictures.
    seed: of the layout and of the disturbances.
    region: where the target starts, see `conditions.OBJECT_REGIONS`.
    record_every: ticks between recorded frames; odd seeds start one tick later than even ones.
  """
  expert = get_expert(env.task.name)
  env.reset(seed=seed, options={"object_region": region})
  rng = np.random.default_rng([_DISTURBANCE_STREAM, seed])
  settings = Disturbance().over(env.task.time_limit)
  disturber = Disturber(rng, env.action_space.low, env.action_space.high, settings)
  frames, done, info = [], False, env.info()
  while not done:
    chunk_TA = np.asarray(expert.plan(env, HORIZON), np.float32)
    mistake = disturber.mistake(env.ticks)
    wanted_A = chunk_TA[0] if mistake is NO_MISTAKE else expert.plan(env, 1, mistake)[0]
    action_A = disturber.apply(wanted_A, tick=env.ticks, grasped=bool(info["privileged"]["grasped"]))
    if (env.ticks + seed) % record_every == 0:
      frames.append((env.observe(), action_A, chunk_TA, info["privileged"]))
    _, terminated, truncated, info = env.advance(action_A[None])
    done = terminated or truncated
  if info["sim_error"]:
    raise Pi0RagError(f"seed {seed}: the simulation failed: {info['sim_error']}")
  return as_episode(env, seed, frames, success=bool(info["success"]), record_every=record_every)


@functools.cache
def _worker_env(job: Job) -> PandaEnv:
  """Returns this process's environment, made once."""
  return PandaEnv(job.task, CONDITION, renderer=job.renderer, image_size=job.image_size)


def _collect_one(job: Job, seed: int) -> tuple[int, int, bool]:
  """Returns (seed, frames, success) after writing the episode of `seed`."""
  record = functools.partial(record_demonstration, flaws=job.flaws) if job.flaws else record_episode
  episode = record(_worker_env(job), seed, region=job.region, record_every=job.record_every)
  write_episodes(episode_path(job.folder, seed), [episode])
  return seed, len(episode), episode.success


def collect(job: Job, seeds, *, processes: int) -> Iterator[tuple[int, int, bool]]:
  """Yields (seed, frames, success) of each episode as it is written; seeds whose file exists are left out.

  Args:
    job: what to collect.
    seeds: of the episodes.
    processes: how many work at once, each with one thread; 0 works in this process.
  """
  missing = [seed for seed in seeds if not episode_path(job.folder, seed).exists()]
  yield from batch.spread(functools.partial(_collect_one, job), missing, processes=processes)


def checked_seeds(first: int, episodes: int) -> range:
  """Returns the seeds of a collection, or raises if some are reserved for streams or evaluations."""
  seeds = range(first, first + episodes)
  if episodes < 1 or seeds[0] not in DEMONSTRATION_SEEDS or seeds[-1] not in DEMONSTRATION_SEEDS:
    last = DEMONSTRATION_SEEDS[-1]
    raise Pi0RagError(f"demonstrations have seeds 0..{last}; --seed={first} --episodes={episodes} leaves them")
  return seeds


def main(_) -> None:
  """Collects what the flags say and prints a summary."""
  values = flags.FLAGS
  if values.out is None:
    raise Pi0RagError("say where the episodes go: --out=DIR")
  seeds = checked_seeds(values.seed, values.episodes)
  region = "seen" if values.exclude_region else "full"
  job = Job(values.task, region, values.renderer, values.image_size, values.record_every, values.out,
            checked_flaws(values.flaw))
  missing = sum(not episode_path(job.folder, seed).exists() for seed in seeds)
  results = list(track(collect(job, seeds, processes=values.processes), description=job.task, total=missing))
  frames, successes = sum(r[1] for r in results), sum(r[2] for r in results)
  there = len(seeds) - missing
  print(f"{len(results)} episodes ({successes} succeeded), {frames} frames in {job.folder}; {there} were there")


def run(argv) -> None:
  """Runs `main`; a mistake of the user ends in one line and status 2."""
  with cli.user_errors(COMMAND):
    main(argv)


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  flags.DEFINE_string("task", "pick_and_place", "Name of the task.")
  flags.DEFINE_integer("episodes", 1000, "How many; they have the seeds from --seed on.")
  flags.DEFINE_integer("seed", 0, "The first episode's seed.")
  flags.DEFINE_string("out", None, "Folder of the episode files.")
  flags.DEFINE_integer("processes", 2, "Worker processes; 0: none.")
  flags.DEFINE_bool("exclude_region", True, "No target starts in the held-out region of the table.")
  flags.DEFINE_list("flaw", [], "Flaws of half of the demonstrations, or all; none: the disturbed expert.")
  flags.DEFINE_integer("record_every", 2, "Ticks between recorded frames.")
  flags.DEFINE_string("renderer", "raycast", "raycast, opengl or auto.")
  flags.DEFINE_integer("image_size", 64, "Pixels of a picture's side.")
  app.run(run, flags_parser=cli.flags_parser(COMMAND))
