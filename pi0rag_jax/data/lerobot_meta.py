"""What the `meta` folder of a LeRobot data set says: v2.0 and v2.1 in JSON lines, v3.0 in parquet."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError

IMAGE_DTYPES = ("image", "video")


@dataclasses.dataclass(frozen=True)
class EpisodeMeta:
  """Where one episode lies."""

  index: int  # its number in the data set, as its rows carry it
  length: int
  data_file: Path
  videos: Mapping[str, tuple[Path, float]]  # stored camera name -> (file, s from its start)


@dataclasses.dataclass(frozen=True)
class LerobotMeta:
  """The whole `meta` folder, apart from statistics."""

  version: str
  fps: float
  robot_type: str | None
  features: Mapping[str, Mapping[str, Any]]
  tasks: Mapping[int, str]
  episodes: tuple[EpisodeMeta, ...]
  announced: int  # how many episodes info.json says there are

  def keys(self, *dtypes: str) -> list[str]:
    """Returns the names of the features of these dtypes."""
    return [name for name, feature in self.features.items() if feature["dtype"] in dtypes]


def read_meta(root: Path) -> LerobotMeta:
  """Returns what the `meta` folder says.

  Raises:
    Pi0RagError: a file is missing or broken, or the version is none that we read.
  """
  info = _read(root / "meta" / "info.json", lambda file: json.loads(file.read_text()))
  version = str(info.get("codebase_version", "none"))
  readers = {"v2.0": _json_lines, "v2.1": _json_lines, "v3.0": _parquet}
  if version not in readers:
    raise Pi0RagError(f"'{root}' is a LeRobot data set of version {version}; read are {', '.join(sorted(readers))}")
  try:
    tasks, episodes = readers[version](root, info)
    return LerobotMeta(version, float(info["fps"]), info.get("robot_type"), info["features"], tasks,
                       tuple(sorted(episodes, key=lambda episode: episode.index)),
                       int(info.get("total_episodes", len(episodes))))
  except (KeyError, TypeError, ValueError) as error:
    raise Pi0RagError(f"the LeRobot data set '{root}' has an incomplete meta folder: {error!r}") from error


def _json_lines(root: Path, info: Mapping) -> tuple[dict[int, str], list[EpisodeMeta]]:
  """Returns tasks and episodes of v2: one file per episode, and one per camera."""
  lines = lambda file: [json.loads(line) for line in file.read_text().splitlines() if line.strip()]  # noqa: E731
  tasks = {int(row["task_index"]): str(row["task"]) for row in _read(root / "meta" / "tasks.jsonl", lines)}
  cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
  episodes = []
  for row in _read(root / "meta" / "episodes.jsonl", lines):
    index = int(row["episode_index"])
    place = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
    videos = {key: (root / info["video_path"].format(video_key=key, **place), 0.0) for key in cameras}
    episodes.append(EpisodeMeta(index, int(row["length"]), root / info["data_path"].format(**place), videos))
  return tasks, episodes


def _parquet(root: Path, info: Mapping) -> tuple[dict[int, str], list[EpisodeMeta]]:
  """Returns tasks and episodes of v3.0: files of many episodes, the borders of data and videos differ."""
  pq = import_extra("pyarrow.parquet", "reading LeRobot data sets")
  table = _read(root / "meta" / "tasks.parquet", lambda file: pq.ParquetFile(file).read().to_pydict())
  # pandas' index column; its name depends on how the table was made.
  texts = next(column for name, column in table.items() if name != "task_index")
  tasks = {int(index): str(text) for index, text in zip(table["task_index"], texts, strict=True)}
  files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
  if not files:
    raise Pi0RagError(f"the LeRobot data set '{root}' has no meta/episodes/*/*.parquet")
  cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
  parts = ("chunk_index", "file_index", "from_timestamp")
  columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
  columns += [f"videos/{key}/{part}" for key in cameras for part in parts]
  episodes = []
  for file in files:
    rows = _read(file, lambda file: pq.ParquetFile(file).read(columns=columns).to_pydict())
    if missing := [column for column in columns if column not in rows]:
      raise Pi0RagError(f"'{file}' lacks the columns {', '.join(missing)}")
    for i in range(len(rows["episode_index"])):
      pick = lambda name, i=i, rows=rows: rows[name][i]  # noqa: E731
      place = {"chunk_index": pick("data/chunk_index"), "file_index": pick("data/file_index")}
      videos = {}
      for key in cameras:
        chunk, number, start_s = (pick(f"videos/{key}/{part}") for part in parts)
        path = info["video_path"].format(video_key=key, chunk_index=chunk, file_index=number)
        videos[key] = (root / path, float(start_s))
      data_file = root / info["data_path"].format(**place)
      episodes.append(EpisodeMeta(int(pick("episode_index")), int(pick("length")), data_file, videos))
  return tasks, episodes


def _read(file: Path, read) -> Any:
  """Returns what `read` makes of a file; whatever it raises names the file."""
  try:
    return read(file)
  except FileNotFoundError as error:
    raise Pi0RagError(f"the LeRobot data set lacks '{file}'") from error
  except (OSError, ValueError, KeyError) as error:
    raise Pi0RagError(f"'{file}' cannot be read: {error}") from error


def feature_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the shape of one frame's value; LeRobot stores those of shape (1,) as plain numbers."""
  shape = tuple(int(n) for n in feature["shape"])
  return () if shape == (1,) else shape


def column_array(column: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a parquet column as [F, *shape].

  Args:
    column: pyarrow.ChunkedArray of numbers, or of lists of them in any depth.
    shape: of one frame's value.
  Raises:
    ValueError: missing values, or another number of them.
  """
  array, frames = column.combine_chunks(), len(column)
  while True:
    if array.null_count:
      raise ValueError("missing values")
    array = getattr(array, "storage", array)  # extension types of the library `datasets`
    if not hasattr(array, "flatten") or not hasattr(array.type, "value_type"):
      break
    array = array.flatten()
  return array.to_numpy(zero_copy_only=False).reshape(frames, *shape)
