"""LeRobot data sets, v2.0 to v3.0: numbers in parquet, pictures in videos or in the parquet files themselves."""

import collections
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pi0rag_jax.data import lerobot_meta, video
from pi0rag_jax.data.dataset import (
  DEFAULT_FIELDS,
  DamagedEpisode,
  Dataset,
  EpisodeData,
  Fields,
  choose_cameras,
  import_extra,
  side_by_side,
)
from pi0rag_jax.errors import unknown_name

STATE, ACTIONS = "observation.state", "action"
# Columns that say where a row belongs; the interface has its own words for them.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
FILE_INDEXES = 64


class LerobotDataset(Dataset):
  """See the module."""

  format = "lerobot"

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False):
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._pq = import_extra("pyarrow.parquet", "reading LeRobot data sets")
    self.library_errors = (import_extra("pyarrow", "reading LeRobot data sets").ArrowException,)
    self.meta = lerobot_meta.read_meta(self.path)
    if self.meta.announced != len(self.meta.episodes):
      text = f"meta of '{self.path}' lists {len(self.meta.episodes)} episodes, info.json says {self.meta.announced}"
      self.count_damage("meta", DamagedEpisode(text))
    self.fps = fields.fps or self.meta.fps
    self.lengths = np.asarray([episode.length for episode in self.meta.episodes], np.int64)
    self.camera_keys = choose_cameras(self.meta.keys(*lerobot_meta.IMAGE_DTYPES), fields.cameras)
    if any(self.meta.features[key]["dtype"] == "video" for key in self.camera_keys.values()):
      self.library_errors += (import_extra("av", "reading videos").FFmpegError,)
    if fields.prompt is not None and fields.prompt not in self.meta.features:
      raise unknown_name("field for the prompt", fields.prompt, self.meta.features)
    self._videos = video.VideoReader()
    self._indexes: collections.OrderedDict[Path, dict] = collections.OrderedDict()
    self._lock = threading.Lock()

  def episode_name(self, episode: int) -> str:
    meta = self.meta.episodes[episode]
    return f"episode {meta.index} in '{meta.data_file}'"

  def files(self) -> list[Path]:
    found = set()
    for episode in self.meta.episodes:
      found |= {episode.data_file, *(file for file, _ in episode.videos.values())}
    return sorted(found)

  def _read_arrays(self, episode: int) -> EpisodeData:
    meta = self.meta.episodes[episode]
    names = [name for name, feature in self.meta.features.items()
             if feature["dtype"] not in (*lerobot_meta.IMAGE_DTYPES, "string") and name not in BOOKKEEPING]
    prompt = self.fields.prompt
    table = self._rows(episode, [*names, *BOOKKEEPING, *([prompt] if prompt else [])])
    arrays = {}
    for name in names:
      arrays[name] = lerobot_meta.column_array(table[name], lerobot_meta.feature_shape(self.meta.features[name]))
    frame_index = table["frame_index"].to_numpy()
    if not np.array_equal(frame_index, np.arange(meta.length)):
      raise ValueError(f"frame_index does not count from 0 to {meta.length - 1}")
    return EpisodeData(
      state=side_by_side(arrays, self.fields.state or STATE, what="state"),
      actions=side_by_side(arrays, self.fields.actions or ACTIONS, what="actions"),
      prompts=[str(text) for text in table[prompt].to_pylist()] if prompt else self._prompts(table),
      timestamps=table["timestamp"].to_numpy().astype(np.float64),
      extras=arrays,
      metadata={"episode_index": meta.index, "robot_type": self.meta.robot_type},
    )

  def _prompts(self, table: Any) -> list[str]:
    """Returns the text of every row's task; it can change within an episode."""
    tasks = table["task_index"].to_pylist()
    if self.fields.default_prompt is not None and not self.meta.tasks:
      return [self.fields.default_prompt] * len(tasks)
    if unknown := set(tasks) - set(self.meta.tasks):
      raise ValueError(f"task_index {sorted(unknown)} is none of the {len(self.meta.tasks)} tasks in meta")
    return [self.meta.tasks[task] for task in tasks]

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    meta = self.meta.episodes[episode]
    if self.meta.features[key]["dtype"] == "video":
      file, start_s = meta.videos[key]
      try:
        return self._videos.read(file, start_s + indices / self.meta.fps, self.meta.fps)
      except self.library_errors + (OSError, ValueError) as error:
        raise ValueError(f"video '{file}': {error}") from error
    rows = self._rows(episode, [key])[key].take(indices).to_pylist()
    return np.stack([self._picture(meta.index, key, row) for row in rows])

  def _picture(self, index: int, key: str, row: Any) -> np.ndarray:
    """Returns uint8[H, W, 3] of an image cell: bytes within the table, or the path of a file."""
    if row.get("bytes") is not None:
      source = io.BytesIO(row["bytes"])
    else:
      stored = Path(row["path"])
      places = (self.path / stored, self.path / "images" / key / f"episode_{index:06d}" / stored.name)
      source = next((place for place in places if place.is_file()), places[0])
    with Image.open(source) as image:
      return np.asarray(image.convert("RGB"))

  def _rows(self, episode: int, columns: list[str]) -> Any:
    """Returns the episode's rows as a table, read from no more row groups than hold them."""
    meta = self.meta.episodes[episode]
    index = self._file_index(meta.data_file)
    if meta.index not in index["rows"]:
      raise ValueError(f"the file holds no row of episode {meta.index}")
    first, stop = index["rows"][meta.index]
    groups = np.flatnonzero((index["starts"][:-1] < stop) & (index["starts"][1:] > first))
    with self._open(meta.data_file) as file:
      present = [column for column in columns if column in index["columns"]]
      if missing := set(columns) - set(present):
        raise ValueError(f"the file lacks the columns {', '.join(sorted(missing))}")
      table = file.read_row_groups(groups.tolist(), columns=present)
    table = table.slice(first - int(index["starts"][groups[0]]), stop - first)
    if len(table) != meta.length:
      raise ValueError(f"{meta.length} frames are announced, the file holds {len(table)}")
    return table

  def _open(self, path: Path) -> Any:
    return self._pq.ParquetFile(path, page_checksum_verification=True)

  def _file_index(self, path: Path) -> dict:
    """Returns where every episode's rows lie in a file, and where its row groups start."""
    with self._lock:
      if path in self._indexes:
        self._indexes.move_to_end(path)
        return self._indexes[path]
    with self._open(path) as file:
      sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
      episodes = file.read(columns=["episode_index"])["episode_index"].to_numpy()
      columns = set(file.schema_arrow.names)
    starts = np.flatnonzero(np.diff(episodes, prepend=np.nan)).tolist()
    rows = {int(episodes[a]): (a, b) for a, b in zip(starts, [*starts[1:], len(episodes)])}
    found = {"rows": rows, "starts": np.concatenate([[0], np.cumsum(sizes)]).astype(int), "columns": columns}
    with self._lock:
      self._indexes[path] = found
      while len(self._indexes) > FILE_INDEXES:
        self._indexes.popitem(last=False)
    return found
