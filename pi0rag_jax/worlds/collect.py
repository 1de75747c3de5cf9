"""Demonstrations from any world with an expert: `python -m pi0rag_jax.worlds.collect --world=metaworld
--tasks=push-v3,reach-v3 --episodes=100 --out=DIR` writes a LeRobot data set, a frame for every control tick.

The expert is disturbed on the way: bursts of other motion are executed. `action` is what the expert would have done at
that moment, which a policy learns from; `executed` is what the robot did; `privileged.things`, where the things of the
task were, is for `auxiliary_targets` of a training: small things are hardly learned to be seen without it. A second
call with the same arguments goes on where the first one stopped. With `--ray=auto` the actors of a Ray cluster whose
nodes all see DIR record the episodes, with `--ray=local` those of this machine's own.

Where a world asks for one thing after the other (the task `chain` of `calvin` and `kitchen`), what is done for each
prompt is an episode of its own: so a policy sees how a task begins where another has ended.

`--plan=1000` fills the plan of a family that has one, such as `mobile`: so many successes in all, of its tasks in their
shares, with the category of every episode; `python -m pi0rag_jax.data summary DIR` counts what is there.
"""

import collections
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import app, flags
from rich.progress import track

from pi0rag_jax import cli, cluster, crew, files, schema
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.data.lerobot_meta import CATEGORY
from pi0rag_jax.data.lerobot_writer import CAMERA, PICTURES, LerobotWriter, WrittenEpisode
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.robots.images import resize_with_pad
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.worlds import batch, plans, registry
from pi0rag_jax.worlds.world import DEMONSTRATION_SEEDS, NOMINAL, TELLS, Progress, WorldConfig

COMMAND = "worlds.collect"
PARTS, SETTINGS = ".parts", "collect.json"
_IMAGE, _EXTRA = "image.", "extra."  # before the names of arrays in a part
EXECUTED = "executed"  # the column of what the robot did
THINGS = "privileged.things"  # that of where the things of the task were, in worlds that tell it
# Sets the disturbances' generator apart from the world's, which has the same seed.
_DISTURBANCES = 1


@dataclasses.dataclass(frozen=True)
class Disturbance:
  """Bursts in which something else than the expert's action is executed."""

  share: float = 0.8  # of the episodes that have bursts
  per_100_ticks: float = 3.0  # bursts, on average
  seconds: tuple[float, float] = (0.1, 0.4)  # how long one lasts
  strength: float = 0.7  # of the greatest change per tick, for entries that integrate
  # Most path cost by which one leads each entry astray, where nothing integrates. An expert goes on from the last
  # command: so it is the whole way of a burst, not a step.
  astray: float = 0.2

  def bursts(self, rng: np.random.Generator, space: ActionSpace, ticks: int, tick_s: float) -> dict[int, np.ndarray]:
    """Returns the bursts of an episode: float[A] by tick, a motion that replaces the expert's."""
    found: dict[int, np.ndarray] = {}
    if rng.random() >= self.share:
      return found
    for _ in range(rng.poisson(self.per_100_ticks * ticks / 100)):
      start, seconds = int(rng.integers(ticks)), rng.uniform(*self.seconds)
      duration = max(round(seconds / tick_s), 1)
      found |= dict.fromkeys(range(start, start + duration), self._motion(rng, space, duration))
    return found

  def _motion(self, rng: np.random.Generator, space: ActionSpace, ticks: int) -> np.ndarray:
    if any(space.integrates):
      return self.strength * rng.uniform(space.low, space.high)
    return rng.uniform(-1, 1, space.dim) * self.astray / np.maximum(space.cost, 1e-6) / ticks

  @staticmethod
  def apply(action_A: np.ndarray, motion_A: np.ndarray, space: ActionSpace, before_A: np.ndarray) -> np.ndarray:
    """Returns the action to execute; an entry that says a place beside others that integrate is left alone.

    Args:
      before_A: what was executed at the tick before, from which places are led astray.
    """
    changed_A = np.where(space.integrates, motion_A, action_A) if any(space.integrates) else before_A + motion_A
    return np.clip(changed_A, space.low, space.high).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Collection:
  """What one worker needs to know of the whole."""

  world: str
  options: Mapping[str, Any]
  condition: str
  image_size: int
  renderer: str
  space: ActionSpace
  tick_s: float
  folder: str
  time_limits: Mapping[str, float]
  disturbance: Disturbance | None
  tells: bool = False  # whether it is kept where things are


def record_episode(world, seed: int, collection: Collection, time_limit: float) -> WrittenEpisode:
  """Returns one disturbed demonstration, a success or not. Errors: Pi0RagError where the simulation fails."""
  world.begin(seed)
  rng, disturbance = np.random.default_rng([_DISTURBANCES, seed]), collection.disturbance
  bursts = disturbance.bursts(rng, collection.space, int(time_limit), collection.tick_s) if disturbance else {}
  frames, progress = collections.defaultdict(list), Progress(0, success=False, done=False)
  while not progress.done:
    label_A = np.asarray(world.plan(1)[0], np.float32)
    action_A = label_A
    if disturbance and progress.ticks in bursts:
      before_A = frames[EXECUTED][-1] if progress.ticks else label_A
      action_A = disturbance.apply(label_A, bursts[progress.ticks], collection.space, before_A)
    seen = world.observe()
    frames["observation"].append(seen)
    frames["action"].append(label_A)
    frames[EXECUTED].append(action_A)
    if collection.tells:
      frames[THINGS].append(world.things())
    progress = world.advance(action_A[None])
  if progress.error:
    raise Pi0RagError(f"seed {seed}: the simulation failed: {progress.error}")
  images, state_FP = split(frames["observation"])
  size = collection.image_size
  images = {name: resize_with_pad(seen, size, size) if max(seen.shape[1:3]) > size else seen
            for name, seen in images.items()}
  extras = {name: np.stack(frames[name]) for name in (EXECUTED, THINGS) if name in frames}
  return WrittenEpisode(images, state_FP, np.stack(frames["action"]),
                        [str(seen["prompt"]) for seen in frames["observation"]], progress.success, extras)


def by_prompt(episode: WrittenEpisode) -> Iterator[WrittenEpisode]:
  """Yields the parts of an episode that have one prompt each; all but the last are successes."""
  prompts = [episode.prompt] * len(episode.state) if isinstance(episode.prompt, str) else list(episode.prompt)
  starts = [0, *(frame for frame in range(1, len(prompts)) if prompts[frame] != prompts[frame - 1])]
  for start, end in zip(starts, [*starts[1:], len(prompts)]):
    cut = slice(start, end)
    yield dataclasses.replace(
      episode, images={name: seen[cut] for name, seen in episode.images.items()}, state=episode.state[cut],
      actions=episode.actions[cut], prompt=prompts[start], success=episode.success if end == len(prompts) else True,
      extras={name: values[cut] for name, values in episode.extras.items()})


def split(observations: list[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns (pictures by camera uint8[F, H, W, 3], states float32[F, P]) of a robot's observations.

  A camera is called as the last part of its entry's name; vectors follow one another in the state.
  """
  images: dict[str, list] = collections.defaultdict(list)
  states = []
  for observation in observations:
    vectors = []
    for name, leaf in _leaves(observation):
      if leaf.ndim == 3:
        images[name].append(leaf if leaf.shape[-1] == 3 else leaf.transpose(1, 2, 0))
      elif leaf.dtype.kind in "fiu":
        vectors.append(np.atleast_1d(leaf))
    states.append(np.concatenate(vectors))
  return {name: np.stack(pictures) for name, pictures in images.items()}, np.stack(states).astype(np.float32)


def _leaves(observation: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  for name, entry in observation.items():
    if isinstance(entry, Mapping):
      yield from _leaves(entry)
    elif not isinstance(entry, str):
      yield name.rpartition("/")[2], np.asarray(entry)


_OPEN: dict[tuple[str, str], Any] = {}  # this process's world, by folder and task: one at a time, since they are large


def _world(collection: Collection, task: str):
  """Returns this process's world of a task."""
  key = collection.folder, task
  if key not in _OPEN:
    while _OPEN:
      _OPEN.popitem()[1].close()
    _OPEN[key] = registry.make_world(WorldConfig(task, collection.condition, collection.world, collection.options,
                                                 collection.image_size, collection.renderer))
  return _OPEN[key]


def _record(collection: Collection, job: tuple[str, int]) -> tuple[str, int, int, bool]:
  """Returns (task, seed, frames, success) after writing an episode's part."""
  task, seed = job
  episode = record_episode(_world(collection, task), seed, collection, collection.time_limits[task])
  values: dict[str, Any] = {_IMAGE + name: pictures for name, pictures in episode.images.items()}
  values |= {_EXTRA + name: column for name, column in episode.extras.items()}
  path = _part(pathlib.Path(collection.folder), task, seed)
  files.write(path, lambda file: np.savez_compressed(
    file, state=episode.state, actions=episode.actions, prompt=np.array(episode.prompt),
    success=np.array(episode.success), **values))
  return task, seed, len(episode.state), bool(episode.success)


def _succeeded(path: pathlib.Path) -> bool:
  with np.load(path) as part:
    return bool(part["success"])


def _part(folder: pathlib.Path, task: str, seed: int) -> pathlib.Path:
  return folder / PARTS / f"{task.replace('/', '_')}-{seed:06d}.npz"


def _read_part(path: pathlib.Path) -> WrittenEpisode:
  with np.load(path) as part:
    images, extras = ({name.removeprefix(prefix): part[name] for name in part.files if name.startswith(prefix)}
                      for prefix in (_IMAGE, _EXTRA))
    prompts = part["prompt"].tolist()
    return WrittenEpisode(images, part["state"], part["actions"], prompts, bool(part["success"]), extras)


def collect(collection: Collection, jobs: list[tuple[str, int]], *, processes: int, machines: Machines = HERE
            ) -> Iterator[tuple[str, int, int, bool]]:
  """Yields (task, seed, frames, success) of each episode as its part is written; parts that are there are left out.

  Args:
    processes: how many work at once, each with one thread; 0 works in this process.
    machines: a cluster's actors work instead of these.
  """
  folder, work = pathlib.Path(collection.folder), functools.partial(_record, collection)
  missing = [job for job in jobs if not _part(folder, *job).exists()]
  if machines.address is None:
    yield from batch.spread(work, missing, processes=processes)
  else:
    named = [(f"{task}, seed {seed}", (task, seed)) for task, seed in missing]
    yield from crew.spread(work, named, machines, shared=folder / PARTS)


def write(collection: Collection, jobs: list[tuple[str, int]], *, robot: str, pictures: str, failures: bool,
          categories: Mapping[str, str] | None = None) -> tuple[int, int]:
  """Returns (episodes, frames) of the data set that is made of the parts, in the order of the jobs; they are removed.

  Args:
    robot: the data set's robot type.
    failures: whether episodes that failed are kept.
    categories: of a plan, by task.
  """
  folder = pathlib.Path(collection.folder)
  episodes = frames = 0
  with LerobotWriter(folder, fps=round(1 / collection.tick_s, 6), robot=robot, pictures=pictures,
                     renderer=collection.renderer) as writer:
    for job in track(jobs, description="writing"):
      told = {CATEGORY: categories[job[0]]} if categories else {}
      for episode in by_prompt(_read_part(_part(folder, *job))):
        if episode.success or failures:
          writer.add(dataclasses.replace(episode, told=told))
          episodes, frames = episodes + 1, frames + len(episode.state)
  shutil.rmtree(folder / PARTS)
  return episodes, frames


def main(_) -> None:
  """Collects what the flags say and prints a summary; a user's mistake ends in one line and status 2."""
  with cli.user_errors(COMMAND):
    run(flags.FLAGS, cluster.machines())


def run(values, machines: Machines = HERE) -> None:
  """See `main`; `values` are the flags."""
  from pi0rag_jax.openpi.config import DataConfig
  from pi0rag_jax.robots.registry import make_robot

  options = schema.parse(values.options.encode(), dict[str, Any], "--options") if values.options else {}
  family = registry.family(values.world, options)
  counts = plans.planned_tasks(family, values.plan) if values.plan else {}
  tasks = list(counts) or values.tasks or list(family.tasks[:1] if len(family.tasks) == 1 else ())
  if not tasks:
    raise Pi0RagError(f"--tasks says none of {', '.join(family.tasks)}")
  for task in tasks:
    config = WorldConfig(task, values.condition, values.world, options)
    registry.check(family, task, values.condition)
    registry.require_expert(config)
    registry.require(config)
  renderers = family.renderers() or ("",)
  renderer = values.renderer or renderers[0]
  if renderer not in renderers:
    raise unknown_name(f"renderer of the world '{values.world}'", renderer, renderers)
  seeds = range(values.seed, values.seed + values.episodes)
  if values.episodes < 1 or seeds[0] not in DEMONSTRATION_SEEDS or seeds[-1] not in DEMONSTRATION_SEEDS:
    raise Pi0RagError(f"demonstrations have seeds 0..{DEMONSTRATION_SEEDS[-1]}; --seed={values.seed} "
                      f"--episodes={values.episodes} leaves them")
  robot = make_robot(DataConfig(robot=family.robot), "pi0")
  if robot.actions is None:
    raise Pi0RagError(f"the robot '{robot.name}' does not say what its actions mean, which disturbances need")
  folder = pathlib.Path(values.out).expanduser()
  if (folder / "meta" / "info.json").exists():
    shutil.rmtree(folder / PARTS, ignore_errors=True)  # of one that was killed at its end
    print(f"{folder} is finished: nothing to do")
    return
  collection = Collection(values.world, options, values.condition, values.image_size, renderer, robot.actions,
                          robot.tick_s, str(folder), {task: family.time_limit(task) for task in tasks},
                          Disturbance() if values.disturbed else None,
                          tells=TELLS in family.abilities)
  _claim(folder, {"world": values.world, "options": options, "condition": values.condition, "tasks": tasks,
                  "image_size": values.image_size, "renderer": renderer, "disturbed": values.disturbed,
                  **({"plan": values.plan} if values.plan else {})})
  results: list[tuple[str, int, int, bool]] = []

  def record(jobs: list[tuple[str, int]]) -> None:
    missing = sum(not _part(folder, *job).exists() for job in jobs)
    recorded = collect(collection, jobs, processes=values.processes, machines=machines)
    results.extend(track(recorded, description=values.world, total=missing))

  if counts:
    jobs = plans.fill(counts, values.seed, record, lambda job: _succeeded(_part(folder, *job)))
    first = _read_part(_part(folder, *jobs[0]))
    cameras = {CAMERA + name: pictures.shape[1:3] for name, pictures in first.images.items()}
    plans.schema(family, values.plan, cameras=cameras, state_dim=first.state.shape[1],
                 action_dim=first.actions.shape[1], fps=round(1 / robot.tick_s, 6)).save(folder)
  else:
    jobs = [(task, seed) for task in tasks for seed in seeds]
    record(jobs)
  episodes, frames = write(collection, jobs, robot=robot.name, pictures=values.pictures,
                           failures=values.failures and not counts, categories=family.categories if counts else None)
  succeeded = collections.Counter(task for task, _, _, success in results if success)
  for task, count in collections.Counter(task for task, *_ in results).items():
    print(f"{task}: {succeeded[task]} of {count} succeeded")
  print(f"{episodes} episodes, {frames} frames in {folder}")


def _claim(folder: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Writes down what a folder's parts are of, or raises where they are of something else."""
  path = folder / PARTS / SETTINGS
  if path.exists():
    found = schema.read(path, dict[str, Any])
    different = [f"{name} {found.get(name)}, wanted {value}" for name, value in wanted.items()
                 if found.get(name) != value]
    if different:
      raise Pi0RagError(f"'{folder}' holds parts of another collection: {'; '.join(different)}. Remove it, or use "
                        "another --out")
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, wanted)


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  flags.DEFINE_string("world", "panda", "A family of worlds, or the id of a gymnasium environment.")
  flags.DEFINE_string("options", "", "Options of the world, JSON.")
  flags.DEFINE_list("tasks", [], "Names of its tasks.")
  flags.DEFINE_integer("plan", 0, "Successes in all, of all tasks as the family's plan shares them out; 0: --tasks.",
                       lower_bound=0)
  flags.DEFINE_string("condition", NOMINAL, "Name of its condition.")
  flags.DEFINE_integer("episodes", 100, "Of each task; they have the seeds from --seed on.")
  flags.DEFINE_integer("seed", 0, "The first episode's seed.")
  flags.DEFINE_string("out", None, "Folder of the data set.")
  flags.DEFINE_integer("image_size", 64, "Pixels of a picture's side; larger ones are made smaller, as policies do it.")
  flags.DEFINE_string("renderer", "", "That draws them, where the world has several; '' is its first.")
  flags.DEFINE_enum("pictures", "video", PICTURES, "How pictures are kept: video is smaller, images are exact.")
  flags.DEFINE_bool("disturbed", True, "Disturb the expert on its way.")
  flags.DEFINE_bool("failures", False, "Keep episodes in which the expert failed.")
  flags.DEFINE_integer("processes", 2, "Worker processes; 0: none.", lower_bound=0)
  cluster.define_flags()
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
