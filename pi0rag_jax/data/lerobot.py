"""LeRobot data sets, v2.0 to v3.0: numbers in parquet, pictures in videos or in the parquet files themselves."""

import collections
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.data import checks, lerobot_meta, pictures, video
from pi0rag_jax.data.dataset import (
  DEFAULT_FIELDS,
  Arrays,
  DamagedEpisode,
  Dataset,
  EpisodeData,
  Fields,
  choose_cameras,
  import_extra,
  prompt_or_default,
  reason,
)
from pi0rag_jax.data.formats import is_hidden
from pi0rag_jax.errors import Pi0RagError, unknown_name

STATE, ACTIONS = "observation.state", "action"
# Columns that say where a row belongs; the interface has its own words for them.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
FILE_INDEXES = 64
TIMES = 4096  # episodes whose rows' times are kept

Piece = tuple[Path, int, int]  # rows [first, stop) of a file


class LerobotDataset(Dataset):
  """See the module."""

  format = "lerobot"

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False):
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._pq = import_extra("pyarrow.parquet", "reading LeRobot data sets")
    self.meta = lerobot_meta.read_meta(self.path)
    for what, why in self.meta.damaged.items():
      self.count_damage(what, DamagedEpisode(why))
    if self.meta.announced != len(self.meta.episodes) + len(self.meta.damaged):
      text = f"meta of '{self.path}' lists {len(self.meta.episodes)} episodes, info.json says {self.meta.announced}"
      self.count_damage("meta", DamagedEpisode(text))
    self.fps = fields.fps or self.meta.fps
    self.lengths = np.asarray([episode.length for episode in self.meta.episodes], np.int64)
    if fields.prompt is not None and fields.prompt not in self.meta.features:
      raise unknown_name("field for the prompt", fields.prompt, self.meta.features)
    self._videos = video.VideoReader()
    self._indexes: collections.OrderedDict[Path, dict] = collections.OrderedDict()
    self._times: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
    self._scanned: dict[int, list[Piece]] | None = None
    self._lock, self._scan_lock = threading.Lock(), threading.Lock()
    cameras = self.meta.cameras()
    grey = [key for key, why_not in cameras.items() if not why_not and self._channels(key) == 1]
    self.camera_keys = choose_cameras(cameras | {key: self._why_not_grey(key) for key in grey}, fields.cameras)

  def _channels(self, key: str) -> int:
    shape = self.meta.features[key]["shape"]
    return 1 if len(shape) == 2 or 1 in (shape[0], shape[-1]) else 3

  def _why_not_grey(self, key: str) -> str:
    """Returns why pictures of one channel are no RGB, '' where they are; only a stored one tells depth from grey."""
    for episode in range(min(self.num_episodes, 3)):
      try:
        self._read_camera(episode, key, np.zeros(1, np.int64))
        return ""
      except pictures.NotRgbError as error:
        return str(error)
      except Exception:  # damage is told when the episode is read
        continue
    return ""

  def episode_name(self, episode: int) -> str:
    meta = self.meta.episodes[episode]
    return f"episode {meta.index} in '{meta.data_file or self.path}'"

  def files(self) -> list[Path]:
    found = set()
    for episode in self.meta.episodes:
      found |= {episode.data_file, *(stretch.file for stretch in episode.videos.values())}
    return sorted(found - {None})

  def _read_arrays(self, episode: int) -> EpisodeData:
    meta = self.meta.episodes[episode]
    features = {name: feature for name, feature in self.meta.features.items()
                if not lerobot_meta.is_camera(feature) and feature["dtype"] != "string" and name not in BOOKKEEPING}
    state, actions, prompt = self.fields.state or STATE, self.fields.actions or ACTIONS, self.fields.prompt
    needed = [*_listed(state), *_listed(actions), *BOOKKEEPING, *_listed(prompt or ())]
    try:
      table = self._rows(episode, [*features, *needed])
    except Pi0RagError:
      raise
    except Exception:  # perhaps of a column that nobody asked for
      table = self._rows(episode, needed)
    arrays = Arrays()
    for name, feature in features.items():
      if name in table.column_names:
        arrays.add(name, lambda name=name, feature=feature: lerobot_meta.column_array(
          table[name], lerobot_meta.feature_shape(feature)))
      else:
        arrays.unread[name] = "the file lacks the column, or it is damaged"
    if "frame_index" in table.column_names and (
        np.diff(_scalars(table["frame_index"], "frame_index")) <= 0).any():
      raise ValueError("frame_index does not rise: the rows are not in order")
    return EpisodeData(
      state=arrays.joined(state, what="state"),
      actions=arrays.joined(actions, what="actions"),
      prompts=self._prompts(table, prompt),
      timestamps=self._remembered(episode, table),
      extras=dict(arrays),
      metadata={"episode_index": meta.index, "robot_type": self.meta.robot_type,
                **({lerobot_meta.CATEGORY: meta.category} if meta.category else {}),
                **({lerobot_meta.FLAW: meta.flaw} if meta.flaw else {})},
    )

  def _prompts(self, table: Any, column: str | None) -> list[str]:
    """Returns the text of every row: of a chosen column, or of its task, which can change within an episode."""
    default, name = self.fields.default_prompt, column or "task_index"
    values = _values(table, name)
    texts = {value: self._text(value, name) for value in set(values)}
    if None in texts and default is None:
      raise ValueError(f"'{name}' has no text in row {values.index(None)}: give a default_prompt")
    return [prompt_or_default(texts[value], default) for value in values]

  def _text(self, value: Any, column: str) -> str | None:
    """Returns the text that a cell stands for: a number is a task's, of whatever type tables made of it."""
    if isinstance(value, tuple) and len(value) == 1:
      return self._text(value[0], column)
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if isinstance(value, str) and column == "task_index" and value.isdecimal():
      value = int(value)
    if value is None or isinstance(value, str):
      return value
    if isinstance(value, bytes):
      return checks.as_text(value, column)
    if isinstance(value, int) and not isinstance(value, bool):
      if value in self.meta.tasks:
        return self.meta.tasks[value]
      if not self.meta.tasks and column == "task_index":
        return None
      raise ValueError(f"{column} {value} is none of the {len(self.meta.tasks)} tasks in meta")
    raise ValueError(f"'{column}' holds {checks.shown(value)}, neither a text nor the number of a task")

  def _remembered(self, episode: int, table: Any) -> np.ndarray:
    """Returns float64[F], the rows' own times, and keeps them for the videos."""
    try:
      times_s = _scalars(table["timestamp"], "timestamp")
    except KeyError:
      times_s = np.arange(len(table)) / self.meta.fps
    with self._lock:
      self._times[episode] = times_s
      while len(self._times) > TIMES:
        self._times.popitem(last=False)
    return times_s

  def _row_times(self, episode: int) -> np.ndarray:
    with self._lock:
      known = self._times.get(episode)
    times_s = self._remembered(episode, self._rows(episode, ["timestamp"])) if known is None else known
    if not np.isfinite(times_s).all():
      raise ValueError(f"the timestamp of row {np.flatnonzero(~np.isfinite(times_s))[0]} is missing")
    return times_s

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    meta, feature = self.meta.episodes[episode], self.meta.features[key]
    if feature["dtype"] == "video":
      if key not in meta.videos:
        raise ValueError(f"the meta folder names no video of it for episode {meta.index}")
      stretch, times_s_F = meta.videos[key], self._row_times(episode)
      try:
        return self._videos.read(
          stretch.file, lambda file: file.rows_of(stretch, times_s_F, indices, self.meta.fps))
      except pictures.NotRgbError:
        raise
      except Exception as error:
        raise ValueError(f"video '{stretch.file}': {reason(error)}") from error
    table = self._rows(episode, [key])
    if key not in table.column_names:
      raise ValueError(f"the file lacks the column '{key}'")
    column = table[key].take(indices)
    if feature["dtype"] == "uint8":
      return pictures.as_rgb(lerobot_meta.column_array(column, feature["shape"]).astype(np.uint8, copy=False))
    return pictures.stack([self._picture(meta.index, key, row) for row in column.to_pylist()], indices.tolist())

  def _picture(self, index: int, key: str, row: Any) -> np.ndarray:
    """Returns uint8[H, W, 3] of an image cell: bytes, alone or within a table, or the path of a file."""
    stored, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, row)
    if isinstance(stored, list) and all(isinstance(number, int) and 0 <= number < 256 for number in stored):
      stored = bytes(stored)
    if isinstance(stored, bytes):
      return pictures.decode(stored)
    if not isinstance(path, str):
      raise ValueError(f"a picture is missing: the cell holds {checks.shown(row)}")
    name = Path(path).name
    places = [self.path / "images" / key / f"episode_{index:06d}" / name]
    with contextlib.suppress(Pi0RagError):  # a path of the machine that recorded
      places.insert(0, checks.inside(self.path, path, "path"))
    source = next((place for place in places if place.is_file()), places[0])
    try:
      return pictures.decode(source)
    except pictures.NotRgbError:
      raise
    except Exception as error:
      raise ValueError(f"picture '{source}': {lfs.reason(source, reason(error))}") from error

  def _rows(self, episode: int, columns: Sequence[str]) -> Any:
    """Returns the columns that are stored of an episode as a table, read from no more row groups than hold them."""
    path, first, stop = self._piece(episode)
    index = self._file_index(path)
    groups = np.flatnonzero((index["starts"][:-1] < stop) & (index["starts"][1:] > first))
    with self._open(path) as file:
      present = [column for column in dict.fromkeys(columns) if column in index["columns"]]
      table = file.read_row_groups(groups.tolist(), columns=present)
    return table.slice(first - int(index["starts"][groups[0]]), stop - first)

  def _piece(self, episode: int) -> Piece:
    """Returns where the episode's rows are: each row says itself, whatever the meta folder says about files."""
    meta, error = self.meta.episodes[episode], None
    seen: list[Piece] = []
    if meta.data_file is not None:
      try:
        rows = self._file_index(meta.data_file)["rows"].get(meta.index, [])
        seen = [(meta.data_file, *piece) for piece in rows]
      except Exception as raised:
        error = raised
    fitting = [piece for piece in seen if piece[2] - piece[1] == meta.length]
    if not fitting and self.meta.version == "v3.0":
      seen = self._all_pieces().get(meta.index, [])
      fitting = [piece for piece in seen if piece[2] - piece[1] == meta.length]
    if len(fitting) == 1:
      return fitting[0]
    if error is not None and not seen:
      raise error
    if not seen:
      raise ValueError(f"the file holds no row of episode {meta.index}")
    files = ", ".join(str(piece[0]) for piece in seen[:3])
    sizes = " and ".join(str(piece[2] - piece[1]) for piece in seen[:3])
    raise ValueError(f"{meta.length} frames are announced, the file holds {sizes} ({files})")

  def _all_pieces(self) -> dict[int, list[Piece]]:
    """Returns where every episode's rows are, in all files that can be read."""
    with self._scan_lock:
      if self._scanned is None:
        found = collections.defaultdict(list)
        for path in sorted((self.path / "data").rglob("*.parquet")):
          if is_hidden(path, self.path):
            continue
          with contextlib.suppress(Exception):  # an episode that is in no readable file is told by name
            for episode, pieces in self._file_index(path)["rows"].items():
              found[episode] += [(path, *piece) for piece in pieces]
        self._scanned = dict(found)
      return self._scanned

  @contextlib.contextmanager
  def _open(self, path: Path) -> Iterator[Any]:
    try:
      file = self._pq.ParquetFile(path, page_checksum_verification=True)
    except Exception as error:
      raise ValueError(f"'{path}': {lfs.reason(path, reason(error))}") from error
    with file:
      yield file

  def _file_index(self, path: Path) -> dict:
    """Returns where every episode's rows lie in a file, and where its row groups start."""
    with self._lock:
      if path in self._indexes:
        self._indexes.move_to_end(path)
        return self._indexes[path]
    with self._open(path) as file:
      sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
      episodes = _scalars(file.read(columns=["episode_index"])["episode_index"], "episode_index")
      if not np.isfinite(episodes).all():
        raise ValueError(f"'{path}': episode_index is missing in row {np.flatnonzero(~np.isfinite(episodes))[0]}")
      columns = set(file.schema_arrow.names)
    starts = np.flatnonzero(np.diff(episodes, prepend=np.nan)).tolist()
    rows = collections.defaultdict(list)
    for first, stop in zip(starts, [*starts[1:], len(episodes)]):
      rows[int(episodes[first])].append((first, stop))
    found = {"rows": dict(rows), "starts": np.concatenate([[0], np.cumsum(sizes)]).astype(int), "columns": columns}
    with self._lock:
      self._indexes[path] = found
      while len(self._indexes) > FILE_INDEXES:
        self._indexes.popitem(last=False)
    return found


def _listed(names: str | Sequence[str]) -> list[str]:
  return [names] if isinstance(names, str) else list(names)


def _scalars(column: Any, name: str) -> np.ndarray:
  """Returns float64[F] of a column of numbers, or of lists of one each; NaN where one is missing."""
  values = column.to_numpy()
  try:
    return (lerobot_meta.column_array(column, ()) if values.dtype == object else values).astype(np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f"'{name}': {error}") from error


def _values(table: Any, column: str) -> list[Any]:
  """Returns a column's cells, None where there is none; lists become tuples."""
  if column not in table.column_names:
    return [None] * len(table)
  cells = table[column].to_pylist()
  cells = [tuple(cell) if isinstance(cell, list) else cell for cell in cells]
  if any(isinstance(cell, dict) for cell in cells):
    raise ValueError(f"'{column}' holds {checks.shown(cells[0])}, neither a text nor the number of a task")
  return cells
