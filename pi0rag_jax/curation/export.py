"""A chosen part of a data set of any format as a LeRobot v3 data set of its own, with flaws where that is asked."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pi0rag_jax.curation import flaws as flaws_lib
from pi0rag_jax.curation.flaws import Recording, Surroundings
from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.data.lerobot import BOOKKEEPING
from pi0rag_jax.data.lerobot_meta import FLAW
from pi0rag_jax.data.lerobot_writer import ACTION, CAMERA, STATE, SUCCESS, VIDEO, LerobotWriter, WrittenEpisode
from pi0rag_jax.errors import Pi0RagError

# What episodes of different formats say of their success; see `labels.FLAG_FIELDS`.
_SUCCESS = ("success", SUCCESS, "is_success", "next.is_success")
_SOURCE = "source"


@dataclasses.dataclass(frozen=True)
class Export:
  """How a data set is written out."""

  out: Path
  robot: str = ""  # its name, as LeRobot's robot_type; '': the one that the data set says
  pictures: str = VIDEO  # or 'images'
  flaws: Sequence[str] = ()  # of each episode, '' for none; (): of none
  integrates: Sequence[int] = ()  # see flaws.Surroundings
  seed: int = 0


def write(dataset: Dataset, export: Export, *, progress: Callable[[int], None] = lambda done: None) -> int:
  """Returns how many episodes were written, all that can be read.

  Stored numbers of a frame go along; what is not known, as whether an episode succeeded, is not made up.

  Raises:
    Pi0RagError: the folder holds a data set already, an action is a chunk, or episodes differ in what they hold.
  """
  around = surroundings(dataset, export)
  flawed = bool(export.flaws)
  written = 0
  with LerobotWriter(export.out, fps=dataset.fps, robot=export.robot or _robot(dataset), pictures=export.pictures
                     ) as writer:
    for episode, data in dataset.iterate(images=True):
      if data.actions.ndim != 2:
        raise Pi0RagError(f"{dataset.episode_name(episode)} has chunks of actions, LeRobot data sets one per frame: "
                          "name the field of single actions")
      flaw = export.flaws[episode] if flawed else ""
      kept = Recording(np.arange(len(data)), np.asarray(data.actions, float), list(data.prompts))
      if flaw:
        kept = flaws_lib.FLAWS[flaw](kept, around, np.random.default_rng([export.seed, 1, episode]))
      own = str(data.metadata.get(FLAW, ""))
      judged = flaw or own or (CLEAN if flawed else "")
      told = {_SOURCE: dataset.episode_name(episode)} | ({FLAW: judged} if judged else {})
      writer.add(as_written(data, kept, told))
      written += 1
      progress(written)
  return written


def surroundings(dataset: Dataset, export: Export) -> Surroundings:
  """Returns what flaws may know of a data set; nothing is read where none are wanted."""
  if not any(export.flaws):
    return Surroundings(dataset.fps, np.zeros(dataset.action_dim), ())
  actions, prompts = [], {}
  for _, data in dataset.iterate():
    actions.append(np.asarray(data.actions, float).reshape(-1, data.actions.shape[-1]))
    prompts |= dict.fromkeys(data.prompts)
  std_A = np.concatenate(actions).std(axis=0)
  if wrong := [entry for entry in export.integrates if not 0 <= entry < len(std_A)]:
    raise Pi0RagError(f"integrates names entry {wrong[0]} of an action; there are 0 to {len(std_A) - 1}")
  bias_A = np.random.default_rng([export.seed, 2]).standard_normal(len(std_A))
  return Surroundings(dataset.fps, std_A, tuple(prompts), tuple(export.integrates), np.sign(bias_A))


def as_written(data: EpisodeData, kept: Recording, told: dict[str, str]) -> WrittenEpisode:
  """Returns what is kept of an episode as the writer takes it."""
  frames_K = kept.frames_K
  extras = {name: np.asarray(values).reshape(len(data), -1) if np.ndim(values) < 3 else np.asarray(values)
            for name, values in data.extras.items() if _goes_along(name, values, data)}
  return WrittenEpisode(
    {camera.removeprefix(CAMERA): frames[frames_K] for camera, frames in data.images.items()},
    np.asarray(data.state)[frames_K],
    kept.actions_KA, kept.prompts, success_of(data), {name: values[frames_K] for name, values in extras.items()}, told)


def success_of(data: EpisodeData) -> bool | None:
  """Returns whether an episode succeeded, as it says itself; None where it does not."""
  for name in _SUCCESS:
    stored = data.metadata.get(name, data.extras.get(name))
    if stored is not None and np.size(stored):
      return bool(np.asarray(stored).reshape(-1)[-1] > 0.5)
  return None


def _goes_along(name: str, values, data: EpisodeData) -> bool:
  """Returns whether a stored array is written too: numbers of every frame that have no other place."""
  array = np.asarray(values)
  return (name not in (STATE, ACTION, "state", "actions", *_SUCCESS, *BOOKKEEPING) and array.dtype.kind in "fiub"
          and array.ndim in (1, 2, 3) and len(array) == len(data) and array.size > 0)


def _robot(dataset: Dataset) -> str:
  """Returns the robot that a data set says it is of, 'unknown' where it says none."""
  for _, data in dataset.iterate():
    return str(data.metadata.get("robot_type") or "unknown")
  raise Pi0RagError(f"no episode in '{dataset.path}' can be read: nothing to write")
