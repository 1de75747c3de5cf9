"""Files that were damaged at random end in a Pi0RagError or are read: no traceback, no hang, no growth of memory.

Every kind has a short run here and one of 2,000 mutations under `-m slow`; a seed and a number reproduce a mutation.
"""

import json
import pathlib
import shutil
import struct
import time

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pi0rag_jax.data import formats, tfrecord, throughput
from pi0rag_jax.data.dataset import DamagedEpisode
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import norm_stats

# What mutated JSON holds in the place of a value.
VALUES = (None, True, -1, 0, 1, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 50, "../../etc", "/etc/passwd",
          "{episode_index:2000000000d}", "{a.b}", "\0", [], {}, [[]], {"a": {}}, [1e30, -5], "1e9", 2**63)
HANG_S, GROWTH_MB = 20.0, 500.0


def changed_bytes(data: bytes, rng) -> bytes:
  """Returns the bytes with a few of them changed, cut, doubled or overwritten."""
  data = bytearray(data)
  for _ in range(int(rng.integers(1, 4))):
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
    kind = rng.integers(5)
    if kind == 0:
      data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      data[place : place + length] = rng.integers(0, 256, len(data[place : place + length]), dtype=np.uint8).tobytes()
    elif kind == 2:
      data[place : place + length] = b"\xff" * len(data[place : place + length])
    elif kind == 3 and place > 8:
      del data[place:]
    else:
      data[place:place] = data[place : place + length]
  return bytes(data)


def changed_json(text: str, rng) -> str:
  """Returns a JSON text with one value changed, removed or moved, or with changed bytes."""
  if rng.integers(5) == 0:
    return changed_bytes(text.encode(), rng).decode("utf8", "surrogateescape")
  top = json.loads(text)
  places = []

  def collect(node):
    for key, value in (node.items() if isinstance(node, dict) else enumerate(node)):
      places.append((node, key))
      if isinstance(value, dict | list):
        collect(value)

  collect(top)
  node, key = places[int(rng.integers(len(places)))]
  if rng.integers(4) == 0:
    del node[key]
  else:
    node[key] = VALUES[int(rng.integers(len(VALUES)))]
  return json.dumps(top)


def changed_lines(text: str, rng) -> str:
  lines = text.splitlines()
  place = int(rng.integers(len(lines)))
  lines[place] = changed_json(lines[place], rng)
  return "\n".join(lines)


def changed_rows(file: pathlib.Path, rng) -> None:
  """Changes a cell of a parquet file, or its bytes."""
  if rng.integers(2):
    file.write_bytes(changed_bytes(file.read_bytes(), rng))
    return
  rows = pq.read_table(file).to_pylist()
  names = list(rows[0])
  name, value = names[int(rng.integers(len(names)))], VALUES[int(rng.integers(len(VALUES)))]
  for row in rows[: int(rng.integers(1, len(rows) + 1))]:
    row[name] = value
  try:
    pq.write_table(pa.Table.from_pylist(rows), file)
  except (pa.ArrowException, OverflowError, TypeError, ValueError):  # a column cannot hold it
    pq.write_table(pa.Table.from_pylist([{k: v for k, v in row.items() if k != name} for row in rows]), file)


def text_of(change):
  """Returns a change of a file by a change of its text."""

  def apply(file: pathlib.Path, rng) -> None:
    file.write_text(change(file.read_text(), rng), "utf8", "surrogateescape")

  return apply


def any_bytes(file: pathlib.Path, rng) -> None:
  file.write_bytes(changed_bytes(file.read_bytes(), rng))


def record_within(file: pathlib.Path, rng) -> None:
  """Changes a record and makes its checksums fit, as damage before writing would."""
  data = file.read_bytes()
  offset, length = next(tfrecord.scan(file))
  record = changed_bytes(data[offset : offset + length], rng)
  header = struct.pack("<Q", len(record))
  file.write_bytes(header + struct.pack("<I", tfrecord._masked_crc(header)) + record
                   + struct.pack("<I", tfrecord._masked_crc(record)) + data[offset + length + 4 :])


def read_all(path: pathlib.Path, images: bool = True) -> bool:
  """Returns whether damage was found."""
  dataset = formats.open_dataset(path, skip_bad=True)
  for episode, _ in dataset.iterate(images=images):
    try:
      dataset.read_frames(episode, [0])
    except DamagedEpisode as error:
      dataset.count_damage(dataset.episode_name(episode), error)
  return bool(dataset.damaged)


def read_meta(path: pathlib.Path) -> bool:
  """Returns whether damage was found; what the meta folder says takes one frame to try."""
  return read_all(path, images=False)


def read_stats(path: pathlib.Path) -> bool:
  return not norm_stats.load_norm_stats(path, "robot")


# Name: the recorded data set, which of its files are changed, and how.
KINDS = {
  "info_json": ("lerobot_v21_images", "meta/info.json", text_of(changed_json)),
  "info_json_v30": ("lerobot_v30", "meta/info.json", text_of(changed_json)),
  "episodes_jsonl": ("lerobot_v21", "meta/episodes.jsonl", text_of(changed_lines)),
  "tasks_jsonl": ("lerobot_v21_images", "meta/tasks.jsonl", text_of(changed_lines)),
  "episodes_parquet": ("lerobot_v30", "meta/episodes/*/*.parquet", changed_rows),
  "tasks_parquet": ("lerobot_v30_images", "meta/tasks.parquet", changed_rows),
  "data_parquet": ("lerobot_v30_images", "data/*/*.parquet", any_bytes),
  "video": ("lerobot_v21", "videos/*/*/*.mp4", any_bytes),
  "robomimic": ("robomimic_hdf5", "*.hdf5", any_bytes),
  "aloha": ("aloha_hdf5_jpeg", "**/*.hdf5", any_bytes),
  "tfrecord": ("rlds_tfrecord", "**/*.tfrecord*", any_bytes),
  "tfrecord_within": ("rlds_tfrecord", "**/*.tfrecord*", record_within),
  "features_json": ("rlds_tfrecord", "**/features.json", text_of(changed_json)),
  "dataset_info_json": ("rlds_tfrecord", "**/dataset_info.json", text_of(changed_json)),
  "norm_stats": (None, "**/norm_stats.json", text_of(changed_json)),
}


def fuzz(kind: str, source: pathlib.Path, folder: pathlib.Path, count: int) -> None:
  _, pattern, change = KINDS[kind]
  read = read_stats if kind == "norm_stats" else read_meta if "json" in kind or pattern.startswith("meta") else read_all
  shutil.copytree(source, folder)
  files = sorted(folder.glob(pattern))
  originals = [file.read_bytes() for file in files]
  refused = grown = 0
  for number in range(count):
    rng = np.random.default_rng([sorted(KINDS).index(kind), number])
    place = int(rng.integers(len(files)))
    change(files[place], rng)
    if number == count // 5:
      grown = throughput.resident_mb()
    start = time.monotonic()
    try:
      refused += read(folder)
    except Pi0RagError as error:
      refused += 1
      assert len(str(error)) < 3000
    except Exception as error:
      raise AssertionError(f"mutation {number} of {kind} ends in {error!r}") from error
    assert time.monotonic() - start < HANG_S, f"mutation {number} of {kind} hangs"
    files[place].write_bytes(originals[place])
  assert not read(folder) and refused
  assert throughput.resident_mb() - grown < GROWTH_MB


@pytest.fixture
def source(request, recorded, tmp_path):
  """The folder that is damaged."""
  name = KINDS[request.getfixturevalue("kind")][0]
  if name is not None:
    path = recorded(name)[0]
    return path if path.is_dir() else path.parent
  stats = {"mean": np.zeros(3), "std": np.ones(3), "q01": np.zeros(3), "q99": np.ones(3)}
  norm_stats.save_norm_stats(tmp_path / "stats", "robot", {"state": stats, "actions": stats})
  return tmp_path / "stats"


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_mutations(kind, source, tmp_path):
  fuzz(kind, source, tmp_path / "copy", 50)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_mutations(kind, source, tmp_path):
  fuzz(kind, source, tmp_path / "copy", 2000)


def test_h5py_reports_what_is_announced(tmp_path):
  """What the guard against announced sizes stands on."""
  with h5py.File(tmp_path / "a.h5", "w") as file:
    item = file.create_dataset("a", (2**20, 2**20), np.float32, chunks=(1, 1024))
    assert (item.nbytes, item.id.get_storage_size()) == (2**42, 0)
