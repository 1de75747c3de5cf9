"""Recorded data sets, a writer of LeRobot v3.0 data sets in any codec and sharding, pictures that carry a number."""

import json
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pi0rag_jax.data.video_writer import ordinary_threads

RECORDED = Path(__file__).with_name("recorded")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
  """A function: name -> (path of the recorded data set, expected.json, expected.npz)."""
  unpacked = {}

  def unpack(name: str):
    if name not in unpacked:
      folder = tmp_path_factory.mktemp("recorded")
      with tarfile.open(RECORDED / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
      expected = json.loads((folder / name / "expected.json").read_text())
      unpacked[name] = folder / name / "dataset", expected, dict(np.load(folder / name / "expected.npz"))
    return unpacked[name]

  return unpack


@pytest.fixture
def barcode():
  """A function: uint8[H, W, 3] -> the number that the picture carries."""

  def read(picture) -> int:
    block = picture.shape[1] // 8
    return sum(int(picture[:block, k * block : (k + 1) * block].mean() > 127) << k for k in range(8))

  return read


def numbered_picture(number: int, height: int, width: int) -> np.ndarray:
  """Returns uint8[H, W, 3] with the number as a barcode."""
  y_HW, x_HW = np.mgrid[:height, :width]
  picture = np.stack([x_HW * 2 + number * 3, y_HW * 2, np.full_like(x_HW, number * 7)], -1).astype(np.uint8)
  block = width // 8
  for k in range(8):
    picture[:block, k * block : (k + 1) * block] = 255 if number >> k & 1 else 0
  return picture


@pytest.fixture
def write_lerobot():
  """See `_write_lerobot`."""
  return _write_lerobot


def _write_lerobot(
  root: Path, lengths, *, fps=10, size=(48, 64), codec="libx264", options=(), videos=2, data=3, first=0
):
  """Writes a LeRobot v3.0 data set as its library does, and returns [(state_F, action_FA)] of every episode.

  Args:
    root: to be made.
    lengths: frames of every episode.
    fps, size, codec, options: of the videos; size is (height, width), px.
    videos, data: episodes per video file, per parquet file.
    first: index of the first episode.
  """
  rng = np.random.default_rng(0)
  camera, place = "observation.images.top", "chunk-{chunk_index:03d}/file-{file_index:03d}"
  scalar = {"shape": [1], "names": None}
  features = {
    camera: {"dtype": "video", "shape": [*size, 3], "names": None},
    "observation.state": {"dtype": "float32", **scalar},
    "action": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
    "timestamp": {"dtype": "float32", **scalar},
  } | {name: {"dtype": "int64", **scalar} for name in ("frame_index", "episode_index", "index", "task_index")}
  info = {"codebase_version": "v3.0", "robot_type": None, "fps": fps, "features": features, "chunks_size": 1000,
          "total_episodes": len(lengths), "data_path": f"data/{place}.parquet",
          "video_path": f"videos/{{video_key}}/{place}.mp4"}
  for folder in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{camera}/chunk-000"):
    (root / folder).mkdir(parents=True)
  (root / "meta/info.json").write_text(json.dumps(info))
  texts = pa.array(["first", "second"], pa.large_string())
  pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": texts}), root / "meta/tasks.parquet")
  truth = [(rng.normal(size=n).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)) for n in lengths]
  starts, rows = np.cumsum(lengths) - lengths, []
  for episode, length in enumerate(lengths):
    time_s = sum(lengths[episode // videos * videos : episode]) / fps
    rows.append({
      "episode_index": first + episode, "length": length, "data/chunk_index": 0, "data/file_index": episode // data,
      f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": episode // videos,
      f"videos/{camera}/from_timestamp": time_s, f"videos/{camera}/to_timestamp": time_s + length / fps,
    })
  pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
  for file in range(0, len(lengths), data):
    block = range(file, min(file + data, len(lengths)))
    frames = np.concatenate([np.arange(lengths[e]) for e in block])
    columns = {
      "observation.state": np.concatenate([truth[e][0] for e in block]),
      "action": pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([truth[e][1].ravel() for e in block])), 3),
      "timestamp": (frames / fps).astype(np.float32), "frame_index": frames, "task_index": frames // 5 % 2,
      "episode_index": np.concatenate([np.full(lengths[e], first + e) for e in block]),
      "index": np.concatenate([np.arange(lengths[e]) + starts[e] for e in block]),
    }
    pq.write_table(pa.table(columns), root / f"data/chunk-000/file-{file // data:03d}.parquet", row_group_size=17)
  for file in range(0, len(lengths), videos):
    pictures = [[numbered_picture(i, *size) for i in range(n)] for n in lengths[file : file + videos]]
    out = root / f"videos/{camera}/chunk-000/file-{file // videos:03d}.mp4"
    if codec == "libsvtav1":  # cannot be joined by PyAV
      _encode(out, [picture for part in pictures for picture in part], fps, codec, dict(options))
      continue
    parts = [root / f"part_{i}.mp4" for i in range(len(pictures))]
    for part, frames in zip(parts, pictures):
      _encode(part, frames, fps, codec, dict(options))
    _join(out, parts)
  return truth


def _encode(path: Path, pictures, fps, codec: str, options: dict) -> None:
  with av.open(str(path), "w") as container, ordinary_threads():
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
    for picture in pictures:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())


def _join(path: Path, parts) -> None:
  """Puts videos one after the other without encoding them again, and removes them."""
  listing = path.with_suffix(".ffconcat")
  listing.write_text("ffconcat version 1.0\n" + "".join(f"file '{part}'\n" for part in parts))
  with av.open(str(listing), format="concat", options={"safe": "0"}) as source, av.open(str(path), "w") as out:
    stream = out.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(source.streams.video[0]):
      if packet.dts is not None:
        packet.stream = stream
        out.mux(packet)
  for file in (listing, *parts):
    file.unlink()
