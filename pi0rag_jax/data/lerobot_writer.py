"""Writes LeRobot data sets of version 3.0: `with LerobotWriter(DIR, fps=20, robot="panda") as writer: writer.add(...)`.

A data set is whole after every `commit`, and goes on where it was with `append=True`.

Numbers and pictures go into parquet files of many episodes, pictures as PNG or into videos beside; the layout and the
statistics are those of lerobot 0.4, whose own reader and ours read it.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pi0rag_jax import files
from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.data.video_writer import Video, codec
from pi0rag_jax.errors import Pi0RagError, unknown_name

IMAGES, VIDEO = PICTURES = ("images", "video")
CAMERA = "observation.images."
STATE, ACTION, SUCCESS = "observation.state", "action", "next.success"
_FILE = "chunk-{chunk:03d}/file-{file:03d}"
_EPISODES = "meta/episodes/" + _FILE.format(chunk=0, file=0) + ".parquet"
_CHUNK_FILES = 1000
_ROWS_PER_FILE = 50_000
_QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_SAMPLED_FRAMES = 100  # of an episode, for the statistics of pictures


@dataclasses.dataclass(frozen=True)
class WrittenEpisode:
  """One episode as it is written; F frames."""

  images: Mapping[str, np.ndarray]  # camera -> uint8[F, H, W, 3], RGB
  state: np.ndarray  # float[F, P]
  actions: np.ndarray  # float[F, A]
  prompt: str | Sequence[str]  # one, or F of them: the task can change within an episode
  success: bool | None  # None: nobody knows; then there is no column of it
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # column -> float[F, N] or float[F, T, N]
  told: Mapping[str, str] = dataclasses.field(default_factory=dict)  # more columns of `meta/episodes`, such as why


class LerobotWriter:
  """A data set that appears whole once the writer is closed, or at a `commit`."""

  def __init__(self, folder, *, fps: float, robot: str, pictures: str = VIDEO, renderer: str = "",
               append: bool = False):
    """Makes the folder.

    Args:
      folder: must not hold a data set yet, unless `append`.
      fps: frames per second.
      robot: its name, `robot_type` of the data set.
      pictures: 'video' (lossy, small) or 'images' (PNG, exact).
      renderer: that drew them, in simulations that have several.
      append: adds to the data set that the folder holds.
    Raises:
      Pi0RagError: a package is missing, or the folder holds a data set, with `append` one of another robot or rate.
    """
    if pictures not in PICTURES:
      raise unknown_name("way to keep pictures", pictures, PICTURES)
    self._arrow = import_extra("pyarrow", "writing LeRobot data sets")
    self._parquet = import_extra("pyarrow.parquet", "writing LeRobot data sets")
    self.folder = pathlib.Path(folder).expanduser()
    there = (self.folder / "meta" / "info.json").exists()
    if there and not append:
      raise Pi0RagError(f"'{self.folder}' holds a data set already: remove it, or write another folder")
    self._fps, self._robot, self._pictures = fps, robot, pictures
    self._told = {"renderer": renderer} if renderer else {}
    self._tasks: dict[str, int] = {}
    self._episodes: list[dict[str, Any]] = []
    self._features: dict[str, dict[str, Any]] = {}
    self._rows = self._file_rows = self._file = 0
    self._data, self._data_path = None, None
    self._videos: dict[str, Video] = {}
    self._stats: list[dict[str, dict[str, np.ndarray]]] = []
    if there:
      self._go_on()

  def _go_on(self) -> None:
    """Takes up the data set that is there; files that none of its episodes names are left from a kill."""
    where, info = f"'{self.folder}'", json.loads((self.folder / "meta" / "info.json").read_text("utf8"))
    features = info.get("features", {})
    pictures = VIDEO if any(feature.get("dtype") == "video" for feature in features.values()) else IMAGES
    there = {"fps": info.get("fps"), "robot_type": info.get("robot_type"), "pictures": pictures}
    ours = {"fps": _whole(self._fps), "robot_type": self._robot, "pictures": self._pictures}
    for name, value in ours.items():
      if there[name] != value:
        raise Pi0RagError(f"{where} holds a data set whose {name} is {there[name]!r}, not {value!r}: write another "
                          "folder")
    if info.get("codebase_version") != "v3.0" or not (self.folder / _EPISODES).is_file():
      raise Pi0RagError(f"{where} holds a data set that was not written by this program: write another folder")
    self._features = features
    self._episodes = self._parquet.read_table(self.folder / _EPISODES).to_pylist()
    for row in self._episodes:
      for task in row["tasks"]:
        self._tasks.setdefault(task, len(self._tasks))
      stats: dict[str, dict[str, np.ndarray]] = {}
      for column, values in row.items():
        if column.startswith("stats/"):
          name, _, key = column.removeprefix("stats/").rpartition("/")
          stats.setdefault(name, {})[key] = np.asarray(values)
      self._stats.append(stats)
    self._rows = self._episodes[-1]["dataset_to_index"]
    self._file = 1 + max(_CHUNK_FILES * row["data/chunk_index"] + row["data/file_index"] for row in self._episodes)

  def __enter__(self) -> "LerobotWriter":
    return self

  def __exit__(self, failure, *_) -> None:
    if failure is None:
      self.close()
    else:
      self._end_files()

  def add(self, episode: WrittenEpisode) -> None:
    """Appends an episode. Errors: Pi0RagError for one that is empty, ragged, or unlike those before it."""
    columns = self._columns(episode)
    if self._data is not None and self._file_rows + len(episode.state) > _ROWS_PER_FILE:
      self._end_files()
    place = {"chunk": self._file // _CHUNK_FILES, "file": self._file % _CHUNK_FILES}
    entry = {"episode_index": len(self._episodes), "tasks": list(dict.fromkeys(_prompts(episode))),
             "length": len(episode.state),
             "data/chunk_index": place["chunk"], "data/file_index": place["file"],
             "dataset_from_index": self._rows, "dataset_to_index": self._rows + len(episode.state)}
    if self._pictures == VIDEO:
      for camera, images in episode.images.items():
        name = CAMERA + camera
        if name not in self._videos:
          path = self.folder / "videos" / name / (_FILE.format(**place) + ".mp4")
          self._videos[name] = Video(path, self._fps)
        begin, end = self._videos[name].append(images)
        entry |= {f"videos/{name}/chunk_index": place["chunk"], f"videos/{name}/file_index": place["file"],
                  f"videos/{name}/from_timestamp": begin, f"videos/{name}/to_timestamp": end}
    table = self._table(columns)
    if self._data is None:
      path = self.folder / "data" / (_FILE.format(**place) + ".parquet")
      path.parent.mkdir(parents=True, exist_ok=True)
      self._data, self._data_path = self._parquet.ParquetWriter(path, table.schema), path
    self._data.write_table(table)
    stats = _statistics(episode, columns)
    self._stats.append(stats)
    entry |= {f"stats/{name}/{key}": values.tolist() for name, found in stats.items() for key, values in found.items()}
    entry |= episode.told
    self._episodes.append(entry | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    self._rows += len(episode.state)
    self._file_rows += len(episode.state)

  def close(self) -> None:
    """Writes what the whole data set has in common. Errors: Pi0RagError without an episode."""
    if not self._episodes:
      raise Pi0RagError("no episode was added: nothing to write")
    self._end_files()
    meta = self.folder / "meta"
    columns = dict.fromkeys(column for row in self._episodes for column in row)
    rows = [{column: row.get(column) for column in columns} for row in self._episodes]
    tables = {self.folder / _EPISODES: self._arrow.Table.from_pylist(rows),
              meta / "tasks.parquet": self._task_table()}
    for path, table in tables.items():
      files.write(path, lambda file, table=table: self._parquet.write_table(table, file))
    files.write_json(meta / "stats.json", {name: {key: values.tolist() for key, values in found.items()}
                                           for name, found in _merged(self._stats).items()})
    video_path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    files.write_json(meta / "info.json", {
      "codebase_version": "v3.0", "robot_type": self._robot, **self._told, "total_episodes": len(self._episodes),
      "total_frames": self._rows, "total_tasks": len(self._tasks), "chunks_size": _CHUNK_FILES,
      "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": _whole(self._fps),
      "splits": {"train": f"0:{len(self._episodes)}"},
      "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
      "video_path": video_path if self._pictures == VIDEO else None, "features": self._features})

  def commit(self) -> None:
    """Has all episodes so far on disk, in a data set that is whole; the next one goes into new files."""
    written = [path for path in (self._data_path, *(video.path for video in self._videos.values())) if path is not None]
    self.close()
    for path in written:
      files.sync(path)

  def _columns(self, episode: WrittenEpisode) -> dict[str, Any]:
    """Returns the columns of an episode's rows: arrays [F] or [F, N], and lists of encoded pictures."""
    frames = len(episode.state)
    numbers = {name: np.asarray(values, np.float32)
               for name, values in {STATE: episode.state, ACTION: episode.actions, **episode.extras}.items()}
    lengths = {name: len(values) for name, values in {**numbers, **episode.images}.items()}
    if not frames or set(lengths.values()) != {frames}:
      raise Pi0RagError(f"an episode has {frames} frames of state, and {lengths}: allowed are as many of each, one or "
                        "more")
    if odd := [name for name, values in numbers.items() if values.ndim not in (2, 3)]:
      raise Pi0RagError(f"{', '.join(odd)} of an episode have other shapes than [F, N] and [F, T, N]")
    prompts = _prompts(episode)
    if len(prompts) != frames or not all(prompt.strip() for prompt in prompts):
      raise Pi0RagError("an episode has an empty prompt, or one for some frames alone; allowed: what the robot is "
                        "told")
    features: dict[str, dict[str, Any]] = {}
    for camera, images in episode.images.items():
      if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise Pi0RagError(f"camera '{camera}' is {images.dtype}{list(images.shape)}; allowed: uint8[F, H, W, 3]")
      features[CAMERA + camera] = {"dtype": "video" if self._pictures == VIDEO else "image",
                                   "shape": list(images.shape[1:]), "names": ["height", "width", "channels"]}
      if self._pictures == VIDEO:
        features[CAMERA + camera]["info"] = {
          "video.height": images.shape[1], "video.width": images.shape[2], "video.codec": codec()[1],
          "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": _whole(self._fps),
          "video.channels": 3, "has_audio": False}
    for name, values in numbers.items():
      names = [f"{name.rpartition('.')[2]}_{i}" for i in range(values.shape[1])] if values.ndim == 2 else None
      features[name] = {"dtype": "float32", "shape": list(values.shape[1:]), "names": names}
    tasks = dict(self._tasks)
    for prompt in prompts:
      tasks.setdefault(prompt, len(tasks))
    frame_F = np.arange(frames)
    ended = {} if episode.success is None else {SUCCESS: np.append(np.zeros(frames - 1, bool), episode.success)}
    scalars = {**ended, "timestamp": (frame_F / self._fps).astype(np.float32), "frame_index": frame_F,
               "episode_index": np.full(frames, len(self._episodes)), "index": self._rows + frame_F,
               "task_index": np.array([tasks[prompt] for prompt in prompts])}
    for name, values in scalars.items():
      features[name] = {"dtype": values.dtype.name, "shape": [1], "names": None}
    if self._features and features != self._features:
      different = sorted(name for name in features.keys() | self._features.keys()
                         if features.get(name) != self._features.get(name))
      raise Pi0RagError(f"an episode is unlike those before it in {', '.join(different)}: sizes and names must be the "
                        "same in all of them")
    self._features, self._tasks = features, tasks
    pictures = {} if self._pictures == VIDEO else {
      CAMERA + camera: [{"bytes": _png(image), "path": f"frame-{i:06d}.png"} for i, image in enumerate(images)]
      for camera, images in episode.images.items()}
    return {**pictures, **numbers, **scalars}

  def _table(self, columns: Mapping[str, Any]):
    """Returns rows as lerobot's parquet files have them."""
    arrow, arrays, kinds = self._arrow, {}, {}
    for name, values in columns.items():
      if isinstance(values, list):
        arrays[name] = arrow.array(values, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))
        kinds[name] = {"_type": "Image"}
      elif values.ndim == 2:
        arrays[name] = arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])
        kinds[name] = {"feature": {"dtype": "float32", "_type": "Value"}, "length": values.shape[1], "_type": "List"}
      elif values.ndim == 3:
        rows = arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[2])
        arrays[name] = arrow.FixedSizeListArray.from_arrays(rows, values.shape[1])
        inner = {"feature": {"dtype": "float32", "_type": "Value"}, "length": values.shape[2], "_type": "List"}
        kinds[name] = {"feature": inner, "length": values.shape[1], "_type": "List"}
      else:
        arrays[name] = arrow.array(values)
        kinds[name] = {"dtype": values.dtype.name, "_type": "Value"}
    told = {"huggingface": json.dumps({"info": {"features": kinds}})}
    return arrow.table(arrays).replace_schema_metadata(told)

  def _task_table(self):
    """Returns the tasks as pandas would write a frame whose index they are."""
    column = lambda name, field, kind: {"name": name, "field_name": field, "pandas_type": kind[0],  # noqa: E731
                                        "numpy_type": kind[1], "metadata": None}
    index = "__index_level_0__"
    told = {"index_columns": [index], "column_indexes": [], "attributes": {}, "pandas_version": "2.3.3",
            "creator": {"library": "pyarrow", "version": self._arrow.__version__},
            "columns": [column("task_index", "task_index", ("int64", "int64")),
                        column(None, index, ("unicode", "object"))]}
    table = self._arrow.table({"task_index": list(self._tasks.values()), index: list(self._tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(told)})

  def _end_files(self) -> None:
    if self._data is not None:
      self._data.close()
      self._data = self._data_path = None
      self._file += 1
    for video in self._videos.values():
      video.close()
    self._videos.clear()
    self._file_rows = 0


def _prompts(episode: WrittenEpisode) -> Sequence[str]:
  """Returns the prompt of every frame."""
  return [episode.prompt] * len(episode.state) if isinstance(episode.prompt, str) else episode.prompt


def _png(image: np.ndarray) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, "PNG", compress_level=4)
  return stream.getvalue()


def _statistics(episode: WrittenEpisode, columns: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
  """Returns min, max, mean, std, count and quantiles of each feature; of pictures by channel, in [0, 1]."""
  found = {}
  for camera, images in episode.images.items():
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), _SAMPLED_FRAMES)).astype(int)]
    stats = _of_rows(chosen.reshape(-1, 3) / 255.0, len(chosen))
    found[CAMERA + camera] = {key: values if key == "count" else values.reshape(3, 1, 1)
                              for key, values in stats.items()}
  for name, values in columns.items():
    if not isinstance(values, list):
      stats = _of_rows(values.reshape(len(values), -1), len(values))
      found[name] = {key: array if key == "count" or values.ndim < 3 else array.reshape(values.shape[1:])
                     for key, array in stats.items()}
  return found


def _of_rows(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
  numbers = rows.astype(np.float64)
  found = zip(_QUANTILES, np.quantile(numbers, _QUANTILES, axis=0))  # at once: five calls would sort five times
  quantiles = {f"q{round(100 * q):02d}": values for q, values in found}
  return {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": numbers.mean(axis=0), "std": numbers.std(axis=0),
          "count": np.array([count]), **quantiles}


def _merged(stats: list[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
  """Returns the statistics of all episodes together; quantiles are the means of theirs, as lerobot merges them."""
  found = {}
  for name in stats[0]:
    parts = {key: np.stack([each[name][key] for each in stats]) for key in stats[0][name]}
    share = (parts["count"] / parts["count"].sum()).reshape(-1, *[1] * (parts["mean"].ndim - 1))
    mean = (parts["mean"] * share).sum(axis=0)
    variance = ((parts["std"] ** 2 + (parts["mean"] - mean) ** 2) * share).sum(axis=0)
    found[name] = {"min": parts["min"].min(axis=0), "max": parts["max"].max(axis=0), "mean": mean,
                   "std": np.sqrt(variance), "count": parts["count"].sum(axis=0),
                   **{key: (values * share).sum(axis=0) for key, values in parts.items() if key.startswith("q")}}
  return found


def _whole(fps: float) -> float | int:
  return int(fps) if float(fps).is_integer() else fps
