"""What the `meta` folder of a LeRobot data set says: v2.0 and v2.1 in JSON lines, v3.0 in parquet."""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.data import checks, pictures
from pi0rag_jax.data.dataset import import_extra, reason
from pi0rag_jax.data.formats import is_hidden
from pi0rag_jax.data.video import Stretch
from pi0rag_jax.errors import Pi0RagError

IMAGE_DTYPES = ("image", "video")
DEPTH_FLAGS = ("is_depth_map", "video.is_depth_map", "image.is_depth_map")
# Names of the column with the task's text in tasks.parquet: LeRobot's of today, and pandas' for an index without one.
TEXT_COLUMNS = ("task", "__index_level_0__")
CATEGORY, FLAW = "category", "flaw"  # columns of v3's meta/episodes that our own writer adds


@dataclasses.dataclass(frozen=True)
class EpisodeMeta:
  """Where one episode lies."""

  index: int  # its number in the data set, as its rows carry it
  length: int
  data_file: Path | None  # None where the meta names none
  videos: Mapping[str, Stretch]  # stored camera name -> where; without those that the meta does not name
  category: str = ""  # of a data set's plan, '' where nothing says it
  flaw: str = ""  # of a demonstration that was judged, see data.episodes.Episode


@dataclasses.dataclass(frozen=True)
class LerobotMeta:
  """The whole `meta` folder, apart from statistics."""

  version: str
  fps: float
  robot_type: str | None
  renderer: str  # that drew the pictures of a simulation, '' where nothing says it
  features: Mapping[str, Mapping[str, Any]]
  tasks: Mapping[int, str]
  episodes: tuple[EpisodeMeta, ...]
  announced: int  # how many episodes info.json says there are
  damaged: Mapping[str, str]  # entries that name no episode -> why

  def cameras(self) -> dict[str, str]:
    """Returns stored name -> why the pictures are no RGB, '' where they are, as far as the features say."""
    return {name: _why_not_rgb(name, f) for name, f in self.features.items() if is_camera(f)}


def read_meta(root: Path) -> LerobotMeta:
  """Returns what the `meta` folder says.

  Raises:
    Pi0RagError: a file is missing or broken, a value is not allowed, or the version is none that we read.
  """
  file = root / "meta" / "info.json"
  info = checks.mapping(checks.read_json(file), f"'{file}'")
  version = str(info.get("codebase_version", "none"))
  readers = {"v2.0": _json_lines, "v2.1": _json_lines, "v3.0": _parquet}
  if version not in readers:
    raise Pi0RagError(f"'{root}' is a LeRobot data set of version {version[:20]}; read are "
                      f"{', '.join(sorted(readers))}")
  where = f"'{file}': "
  fps = checks.number(info.get("fps"), f"{where}fps", low=0, high=checks.MAX_FPS)
  features = checks.mapping(info.get("features"), f"{where}features")
  features = {name: _feature(feature, f"{where}feature '{name}'") for name, feature in features.items()}
  robot_type = info.get("robot_type")
  damaged: dict[str, str] = {}
  tasks, episodes = readers[version](root, {**info, "features": features}, damaged)
  announced = checks.integer(info.get("total_episodes", len(episodes)), f"{where}total_episodes")
  episodes = sorted(episodes, key=lambda episode: episode.index)
  counts = collections.Counter(episode.index for episode in episodes)
  if twice := [index for index, count in counts.items() if count > 1]:
    raise Pi0RagError(f"the meta of '{root}' lists episode {twice[0]} twice")
  return LerobotMeta(version, fps, None if robot_type is None else str(robot_type), str(info.get("renderer") or ""),
                     features, tasks, tuple(_with_neighbours(episodes, whole=not damaged)), announced, damaged)


def is_camera(feature: Mapping[str, Any]) -> bool:
  """Returns whether a feature holds pictures: encoded, or as plain uint8 numbers."""
  dtype, shape = feature["dtype"], feature["shape"]
  return dtype in IMAGE_DTYPES or (dtype == "uint8" and len(shape) == 3 and {shape[0], shape[-1]} & {1, 3, 4} != set())


def _feature(feature: Any, where: str) -> dict[str, Any]:
  """Returns a feature with its dtype and shape checked."""
  feature = checks.mapping(feature, where)
  dtype = checks.text(feature.get("dtype"), f"{where}, dtype")
  stated = [1] if feature.get("shape") is None and dtype not in IMAGE_DTYPES else feature.get("shape")
  return {**feature, "dtype": dtype, "shape": checks.shape(stated, f"{where}, shape")}


def _why_not_rgb(name: str, feature: Mapping[str, Any]) -> str:
  said = {key: value for part in ("info", "video_info") if isinstance(feature.get(part), Mapping)
          for key, value in feature[part].items()} | dict(feature)
  if flag := next((flag for flag in DEPTH_FLAGS if said.get(flag) is True), None):
    return f"its feature says {flag}"
  shape = feature["shape"]
  if len(shape) not in (2, 3):
    return f"its pictures have shape {list(shape)}"
  return pictures.why_not_rgb(name.rsplit(".", 1)[-1], (1, *shape), np.uint8)


def _json_lines(root: Path, info: Mapping, damaged: dict[str, str]) -> tuple[dict[int, str], list[EpisodeMeta]]:
  """Returns tasks and episodes of v2: one file per episode, and one per camera."""
  if (root / "meta" / "tasks.parquet").is_file() and not (root / "meta" / "tasks.jsonl").is_file():
    raise _other_version(root, "v2", "v3.0")
  file, tasks = root / "meta" / "tasks.jsonl", {}
  for number, row in _lines(file, None):
    where = f"'{file}', line {number}: "
    text = row.get("task")
    tasks[checks.integer(row.get("task_index"), f"{where}task_index")] = (
      "" if text is None else checks.text(text, f"{where}task"))
  where = f"'{root / 'meta' / 'info.json'}': "
  chunk = checks.integer(info.get("chunks_size"), f"{where}chunks_size", low=1)
  cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
  file, episodes = root / "meta" / "episodes.jsonl", []
  for number, row in _lines(file, damaged):
    try:
      index = checks.integer(row.get("episode_index"), f"'{file}', line {number}: episode_index")
      length = checks.integer(row.get("length"), f"'{file}', line {number}: length", low=1, high=checks.MAX_FRAMES)
    except Pi0RagError as error:
      damaged[f"line {number} of '{file}'"] = str(error)
      continue
    place = {"episode_index": index, "episode_chunk": index // chunk}
    videos = {key: Stretch(checks.expand(root, info.get("video_path"), f"{where}video_path", video_key=key, **place), 0)
              for key in cameras}
    data_file = checks.expand(root, info.get("data_path"), f"{where}data_path", **place)
    episodes.append(EpisodeMeta(index, length, data_file, videos))
  return tasks, episodes


def _lines(file: Path, damaged: dict[str, str] | None) -> Iterable[tuple[int, Mapping[str, Any]]]:
  """Yields (number, object) of a file's lines; those that hold none are noted in `damaged`, or raise without it."""
  text = _read(file, lambda file: file.read_text("utf8"))
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if not isinstance(row, dict):
        raise ValueError("no object")
    except (ValueError, RecursionError) as error:
      problem = f"'{file}', line {number} cannot be read: {lfs.reason(file, error)}"
      if damaged is None:
        raise Pi0RagError(problem) from error
      damaged[f"line {number} of '{file}'"] = problem
      continue
    yield number, row


def _parquet(root: Path, info: Mapping, damaged: dict[str, str]) -> tuple[dict[int, str], list[EpisodeMeta]]:
  """Returns tasks and episodes of v3.0: files of many episodes, the borders of data and videos differ."""
  if not (root / "meta" / "tasks.parquet").is_file() and (root / "meta" / "tasks.jsonl").is_file():
    raise _other_version(root, "v3.0", "v2")
  pq = import_extra("pyarrow.parquet", "reading LeRobot data sets")
  file = root / "meta" / "tasks.parquet"
  tasks = _tasks(_read(file, lambda file: pq.ParquetFile(file).read()), file)
  files = sorted(f for f in (root / "meta" / "episodes").rglob("*.parquet") if not is_hidden(f, root))
  if not files:
    raise Pi0RagError(f"the LeRobot data set '{root}' has no meta/episodes/*/*.parquet")
  cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
  columns = ["episode_index", "length", "data/chunk_index", "data/file_index", CATEGORY, FLAW]
  columns += [f"videos/{key}/{part}" for key in cameras
              for part in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
  episodes = []
  for file in files:
    table = _read(file, lambda file: pq.ParquetFile(file).read(columns=columns).to_pydict())
    if missing := [column for column in columns[:2] if column not in table]:
      raise Pi0RagError(f"'{file}' lacks the columns {', '.join(missing)}")
    for number in range(len(table["episode_index"])):
      row = {name: values[number] for name, values in table.items()}
      try:
        episodes.append(_episode(root, info, row, cameras, f"'{file}', row {number}: "))
      except Pi0RagError as error:
        damaged[f"row {number} of '{file}'"] = str(error)
  return tasks, episodes


def _episode(root: Path, info: Mapping, row: Mapping, cameras: list[str], where: str) -> EpisodeMeta:
  """Returns what a row of meta/episodes says; places that it leaves open are left open."""
  index = checks.integer(row["episode_index"], f"{where}episode_index")
  length = checks.integer(row["length"], f"{where}length", low=1, high=checks.MAX_FRAMES)

  def place(kind: str, template: str, **values: Any) -> Path | None:
    numbers = {part: row.get(f"{kind}/{part}") for part in ("chunk_index", "file_index")}
    if any(number is None or number != number for number in numbers.values()):
      return None
    numbers = {part: checks.integer(number, f"{where}{kind}/{part}") for part, number in numbers.items()}
    return checks.expand(root, info.get(template), f"'{root / 'meta' / 'info.json'}': {template}", **numbers, **values)

  videos = {}
  for key in cameras:
    file, start_s = place(f"videos/{key}", "video_path", video_key=key), row.get(f"videos/{key}/from_timestamp")
    if file is not None and start_s is not None:
      end_s = row.get(f"videos/{key}/to_timestamp")
      videos[key] = Stretch(
        file, checks.number(start_s, f"{where}videos/{key}/from_timestamp", low=-1.0, high=1e7),
        end_s=float(end_s) if isinstance(end_s, int | float) else math.inf)
  category, flaw = (value if isinstance(value, str) else "" for value in (row.get(CATEGORY), row.get(FLAW)))
  return EpisodeMeta(index, length, place("data", "data_path"), videos, category, flaw)


def _with_neighbours(episodes: list[EpisodeMeta], *, whole: bool) -> list[EpisodeMeta]:
  """Returns the episodes with what their videos' other episodes tell about where they lie.

  Args:
    episodes: by index.
    whole: whether these are all there are; else nothing can be counted.
  """
  files = collections.defaultdict(list)
  for episode in episodes:
    for key, stretch in episode.videos.items():
      files[key, stretch.file].append((stretch.start_s, episode))
  found = {episode.index: dict(episode.videos) for episode in episodes}
  for (key, _), members in files.items():
    members.sort(key=lambda member: (member[0], member[1].index))
    total = sum(episode.length for _, episode in members) if whole else -1
    before, (last_s, last) = 0, members[-1]
    ends = last_s, last.length, last.videos[key].end_s
    for place, (_, episode) in enumerate(members):
      later = members[place + 1][0] if place + 1 < len(members) else math.inf
      earlier = (members[place - 1][0], members[place - 1][1].length) if place else (-math.inf, 0)
      found[episode.index][key] = dataclasses.replace(
        found[episode.index][key], before=before, total=total, earlier=earlier, later_s=later, last=ends)
      before += episode.length
  return [dataclasses.replace(episode, videos=found[episode.index]) for episode in episodes]


def _tasks(table: Any, file: Path) -> dict[int, str]:
  """Returns the text of every task in tasks.parquet; which column that is depends on how it was written."""
  texts = [name for name, kind in zip(table.schema.names, table.schema.types) if "string" in str(kind)]
  pandas = (table.schema.metadata or {}).get(b"pandas", b"{}")
  try:
    index = json.loads(pandas).get("index_columns", [])
  except (ValueError, AttributeError):
    index = []
  wanted = (TEXT_COLUMNS[0], *(name for name in index if isinstance(name, str)), TEXT_COLUMNS[1])
  name = next((name for name in wanted if name in texts), texts[0] if len(texts) == 1 else None)
  if name is None or "task_index" not in table.schema.names:
    raise Pi0RagError(f"'{file}' has the columns {', '.join(table.schema.names)}: expected task_index, and the text in "
                      f"'{TEXT_COLUMNS[0]}'")
  numbers = [checks.integer(n, f"'{file}': task_index") for n in table["task_index"].to_pylist()]
  return {number: text or "" for number, text in zip(numbers, table[name].to_pylist())}


def _other_version(root: Path, said: str, seen: str) -> Pi0RagError:
  return Pi0RagError(f"'{root / 'meta' / 'info.json'}' says {said}, but the files beside it are those of {seen}: "
                     "correct codebase_version, or copy the meta folder again")


def _read(file: Path, read) -> Any:
  """Returns what `read` makes of a file; whatever it raises names the file."""
  try:
    return read(file)
  except FileNotFoundError as error:
    raise Pi0RagError(f"the LeRobot data set lacks '{file}'") from error
  except Exception as error:  # of pyarrow: what a broken file raises has no common base
    raise Pi0RagError(f"'{file}' cannot be read: {lfs.reason(file, reason(error))}") from error


def feature_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the shape of one frame's value; LeRobot stores those of shape (1,) as plain numbers."""
  return () if feature["shape"] == (1,) else feature["shape"]


def column_array(column: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a parquet column as [F, *shape].

  Args:
    column: pyarrow.ChunkedArray of numbers, or of lists of them in any depth.
    shape: of one frame's value.
  Raises:
    ValueError: missing values, another number of them, or no numbers.
  """
  array, frames = column.combine_chunks(), len(column)
  while True:
    if array.null_count:
      first = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0] * frames // len(array)
      raise ValueError(f"missing values, the first in row {first}")
    array = getattr(array, "storage", array)  # extension types of the library `datasets`
    if not hasattr(array, "flatten") or not hasattr(array.type, "value_type"):
      break
    if hasattr(array, "offsets") and len(array) and np.ptp(np.diff(array.offsets.to_numpy())):
      raise ValueError("lists of different lengths")
    array = array.flatten()
  values = array.to_numpy(zero_copy_only=False)
  if values.dtype.kind not in "fiub":
    raise ValueError(f"{array.type} is stored, no numbers")
  if -1 not in shape and values.size != frames * math.prod(shape):
    raise ValueError(f"{values.size} numbers are stored, {frames} frames of {list(shape)} are announced")
  return values.reshape(frames, *shape)
