"""What an episode has to be: a schema of pictures and numbers, and everything that is wrong with an episode."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.data import checks
from pi0rag_jax.data.dataset import DamagedEpisode, Dataset, EpisodeData, expanded
from pi0rag_jax.errors import Pi0RagError

SCHEMA_FILE = "schema.json"
# Frames whose pictures are looked at together, which bounds memory.
BLOCK_FRAMES = 64
FPS_TOLERANCE = 0.01
LABEL, BY = "label", "by"
# Who acted: the policy, a person who took over, a demonstrator or planner, the policy's second try.
POLICY, HUMAN, EXPERT, RETRY = ACTORS = ("policy", "human", "expert", "retry")
TEACHERS = (HUMAN, EXPERT)


@dataclasses.dataclass(frozen=True)
class Schema:
  """What every episode of a data set has in common."""

  cameras: Mapping[str, tuple[int, int]]  # name -> (height, width), px
  state_dim: int
  action_dim: int
  fps: float
  name: str = "episodes"
  categories: Mapping[str, float] = dataclasses.field(default_factory=dict)  # category -> share of the episodes
  planned_episodes: int = 0  # 0: no plan

  def planned(self) -> dict[str, int]:
    """Returns how many episodes of each category are to be recorded; the shares are rounded to the total."""
    exact = {name: share * self.planned_episodes for name, share in self.categories.items()}
    counts = {name: int(number + 1e-9) for name, number in exact.items()}
    largest_first = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in largest_first[: self.planned_episodes - sum(counts.values()) if counts else 0]:
      counts[name] += 1
    return counts

  def save(self, folder: str | Path) -> None:
    """Writes the schema into a folder of episodes.

    Raises:
      Pi0RagError: the folder has another one.
    """
    file = expanded(folder) / SCHEMA_FILE
    if file.exists() and Schema.load(folder) != self:
      raise Pi0RagError(f"'{folder}' holds episodes of another schema ({SCHEMA_FILE}): record into another folder")
    if not file.exists():
      files.write_json(file, dataclasses.asdict(self))

  @classmethod
  def load(cls, folder: str | Path) -> "Schema | None":
    """Returns the schema of a folder, None where it has none."""
    file = expanded(folder) / SCHEMA_FILE
    if not file.is_file():
      return None
    values, where = dict(checks.mapping(checks.read_json(file), f"'{file}'")), f"'{file}': "
    names = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - names):
      raise Pi0RagError(f"{where}unknown field {checks.shown(unknown[0])}, allowed: {', '.join(sorted(names))}")
    cameras = {}
    for name, size in checks.mapping(values.get("cameras"), f"{where}cameras").items():
      height, width = (*checks.shape(size, f"{where}camera '{name}'"), 0, 0)[:2]
      if height < 1 or width < 1 or len(size) != 2:
        raise checks.refused(f"{where}camera '{name}'", size, "height and width, px")
      cameras[name] = (height, width)
    categories = checks.mapping(values.get("categories", {}), f"{where}categories")
    return cls(
      cameras=cameras, fps=checks.number(values.get("fps"), f"{where}fps", low=0, high=checks.MAX_FPS),
      state_dim=checks.integer(values.get("state_dim"), f"{where}state_dim", low=1, high=checks.MAX_NUMBERS),
      action_dim=checks.integer(values.get("action_dim"), f"{where}action_dim", low=1, high=checks.MAX_NUMBERS),
      name=checks.text(values.get("name", "episodes"), f"{where}name"),
      categories={name: checks.number(share, f"{where}category '{name}'", low=-1e-9, high=1)
                  for name, share in categories.items()},
      planned_episodes=checks.integer(values.get("planned_episodes", 0), f"{where}planned_episodes"))


def infer_schema(dataset: Dataset) -> Schema:
  """Returns what the first episode of a data set that can be read looks like."""
  for episode, data in dataset.iterate():
    try:
      frames = dataset.read_frames(episode, [0])
    except DamagedEpisode as error:
      dataset.count_damage(dataset.episode_name(episode), error)
      continue
    sizes = {name: (frame.shape[1], frame.shape[2]) for name, frame in frames.items()}
    return Schema(sizes, data.state.shape[-1], data.actions.shape[-1], dataset.fps)
  raise Pi0RagError(f"no episode in '{dataset.path}' can be read: {'; '.join(list(dataset.damaged.values())[:3])}")


def dataset_problems(dataset: Dataset, episode: int, schema: Schema) -> list[str]:
  """Returns everything that is wrong with a stored episode, pictures included.

  Raises:
    DamagedEpisode: it cannot be read.
  """
  data = dataset.read_episode(episode, images=False)
  problems = number_problems(data, schema)
  if abs(dataset.episode_fps(episode) - schema.fps) > FPS_TOLERANCE * schema.fps:
    problems.append(f"it has {dataset.episode_fps(episode):g} frames per second, expected {schema.fps:g}")
  seen: set[str] = set()
  for first in range(0, len(data), BLOCK_FRAMES):
    frames = dataset.read_frames(episode, np.arange(first, min(first + BLOCK_FRAMES, len(data))))
    seen |= set(picture_problems(frames, schema))
  return problems + sorted(seen)


def number_problems(data: EpisodeData, schema: Schema) -> list[str]:
  """Returns what is wrong with an episode apart from its pictures."""
  problems = [] if len(data) else ["no frames"]
  arrays = [("state", data.state, schema.state_dim), ("actions", data.actions, schema.action_dim)]
  if LABEL in data.extras:
    arrays.append((LABEL, np.asarray(data.extras[LABEL]), schema.action_dim))
  for name, array, dim in arrays:
    if array.shape[-1] != dim:
      problems.append(f"{name} has {array.shape[-1]} dims, expected {dim}")
    if len(array) != len(data.timestamps):
      problems.append(f"{name} has {len(array)} frames, the time {len(data.timestamps)}")
    if len(bad := _non_finite_frames(array)):
      problems.append(f"{name} is not finite in {len(bad)} frames, the first is {bad[0]}")
  if BY in data.extras and (strange := sorted(set(map(str, data.extras[BY])) - {"", *ACTORS})):
    problems.append(f"who acted is {', '.join(strange[:3])}, expected one of {', '.join(ACTORS)}")
  problems += outcome_problems(data.metadata)
  empty = [frame for frame, text in enumerate(data.prompts) if not text.strip()]
  if empty or not len(data.prompts):
    problems.append(f"the language is empty in {len(empty)} frames: give a default prompt")
  if len(bad := _non_finite_frames(data.timestamps)):
    problems.append(f"the time is not finite in {len(bad)} frames, the first is {bad[0]}")
  elif len(back := np.flatnonzero(np.diff(data.timestamps) <= 0)):
    frame = int(back[0]) + 1
    problems.append(f"the time does not rise at frame {frame}: {data.timestamps[frame - 1]:g} s, then "
                    f"{data.timestamps[frame]:g} s")
  return problems + category_problems(data.metadata.get("category"), schema)


def picture_problems(frames: Mapping[str, np.ndarray], schema: Schema) -> list[str]:
  """Returns what is wrong with pictures uint8[F, H, W, 3] by camera."""
  problems = []
  if set(frames) != set(schema.cameras):
    problems.append(f"cameras are {sorted(frames)}, expected {sorted(schema.cameras)}")
  for name in sorted(set(frames) & set(schema.cameras)):
    expected = (*schema.cameras[name], 3)
    if frames[name].shape[1:] != expected or frames[name].dtype != np.uint8:
      problems.append(f"pictures of '{name}' are {frames[name].dtype}{list(frames[name].shape[1:])}, "
                      f"expected uint8{list(expected)}")
  return problems


def outcome_problems(metadata: Mapping[str, Any]) -> list[str]:
  """Returns what is wrong with how an episode is said to have ended."""
  success, failure = metadata.get("success"), metadata.get("failure")
  problems = []
  if success is not None and not isinstance(success, bool | np.bool_):
    problems.append(f"success is {checks.shown(success)}, expected true or false")
  if failure is not None and (not isinstance(failure, str) or not failure.strip()):
    problems.append(f"the kind of failure is {checks.shown(failure)}, expected a text")
  if failure is not None and success:
    problems.append(f"a success has the kind of failure {checks.shown(failure)}")
  return problems


def category_problems(category: Any, schema: Schema) -> list[str]:
  """Returns what is wrong with an episode's category."""
  if schema.categories and category not in schema.categories:
    return [f"the category is {category!r}, expected one of {', '.join(sorted(schema.categories))}"]
  return []


def _non_finite_frames(array: np.ndarray) -> np.ndarray:
  return np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1)) if len(array) else np.zeros(0, int)
