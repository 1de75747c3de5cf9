"""LeRobot data sets as they are in the wild: stale indexes, clocks of their own, gaps, texts of every kind, depth."""

import io
import json
import logging
import os
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pi0rag_jax.data import formats, loader, sampling
from pi0rag_jax.data.dataset import DamagedEpisode, Fields
from pi0rag_jax.errors import Pi0RagError

CAMERA = "observation.images.top"
ONE = {"shape": [1], "names": None}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def png(picture) -> bytes:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  return file.getvalue()


def write_v21(root, lengths=(4,), *, features=None, columns=None, tasks=("pick it up",), info=None):
  """Writes a v2.1 data set with pictures in its tables.

  Args:
    features: more of them.
    columns: changes an episode's columns.
    info: changes info.json.
  """
  stated = {
    CAMERA: {"dtype": "image", "shape": [8, 12, 3], "names": ["height", "width", "channel"]},
    "observation.state": {"dtype": "float32", "shape": [2]}, "action": {"dtype": "float32", "shape": [2]},
    "timestamp": {"dtype": "float32", **ONE},
    **{name: {"dtype": "int64", **ONE} for name in ("frame_index", "episode_index", "index", "task_index")}}
  (root / "meta").mkdir(parents=True)
  (root / "data/chunk-000").mkdir(parents=True)
  vectors = lambda n: pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * n, dtype=np.float32)), 2)  # noqa: E731
  for episode, n in enumerate(lengths):
    table = {
      "observation.state": vectors(n), "action": vectors(n), "frame_index": pa.array(range(n)),
      "timestamp": pa.array(np.arange(n, dtype=np.float32) / 10), "episode_index": pa.array([episode] * n),
      "index": pa.array(range(n)), "task_index": pa.array([0] * n),
      CAMERA: pa.array([{"bytes": png(np.full((8, 12, 3), i, np.uint8)), "path": None} for i in range(n)])}
    table = columns(table) if columns else table
    pq.write_table(pa.table(table), root / f"data/chunk-000/episode_{episode:06d}.parquet")
  values = {"codebase_version": "v2.1", "fps": 10, "total_episodes": len(lengths), "chunks_size": 1000,
            "features": stated | (features or {}), "video_path": None,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
  (root / "meta/info.json").write_text(json.dumps(values | (info or {})))
  lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
  (root / "meta/tasks.jsonl").write_text(lines({"task_index": i, "task": t} for i, t in enumerate(tasks)))
  (root / "meta/episodes.jsonl").write_text(lines({"episode_index": e, "length": n} for e, n in enumerate(lengths)))
  return root


def change_table(file, change):
  pq.write_table(pa.Table.from_pylist([change(row) for row in pq.read_table(file).to_pylist()]), file)


def change_meta(root, change):
  """Changes every row of a v3.0 set's meta/episodes."""
  change_table(root / "meta/episodes/chunk-000/file-000.parquet", change)


def timed(root, write_lerobot, times_s, fps, video_times_s=None):
  """Writes one episode whose rows have times of their own, and its video other ones or the same."""
  write_lerobot(root, [len(times_s)], fps=fps)
  file = root / "data/chunk-000/file-000.parquet"
  table = pq.read_table(file)
  column = pa.array(np.asarray(times_s, np.float32))
  pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", column), file)
  video = next(root.rglob("*.mp4"))
  with av.open(str(video)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  base = Fraction(1, 90000)
  with av.open(str(video), "w") as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
    stream.time_base = stream.codec_context.time_base = base
    for picture, time_s in zip(frames, times_s if video_times_s is None else video_times_s):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      frame.pts, frame.time_base = round(time_s * 90000), base
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return formats.open_dataset(root)


def test_rows_say_which_episode_they_are_of(tmp_path, write_lerobot):
  truth = write_lerobot(tmp_path / "set", [5] * 6, data=2)
  change_meta(tmp_path / "set", lambda row: row | {"data/file_index": 0})
  dataset = formats.open_dataset(tmp_path / "set")
  for episode, (state_F, _) in enumerate(truth):
    np.testing.assert_array_equal(dataset.read_episode(episode).state[:, 0], state_F)
  change_meta(tmp_path / "set", lambda row: row | {"data/file_index": None, "data/chunk_index": 7})
  assert len(list(formats.open_dataset(tmp_path / "set").iterate())) == 6
  change_meta(tmp_path / "set", lambda row: row | {"data/file_index": 9, "data/chunk_index": 0})
  assert len(list(formats.open_dataset(tmp_path / "set").iterate())) == 6


def test_a_rate_other_than_announced(tmp_path, write_lerobot, barcode):
  times = [i * 1001 / 30000 for i in range(250)]
  times = [t + (i >= 100) * 20 for i, t in enumerate(times)]  # 20 s without a picture
  dataset = timed(tmp_path / "set", write_lerobot, times, 30)
  assert [barcode(p) for p in dataset.read_frames(0, range(250))[CAMERA]] == list(range(250))


def test_a_dropped_frame_loses_nothing(tmp_path, write_lerobot, barcode):
  dataset = timed(tmp_path / "set", write_lerobot, [i / 10 + 0.1 * (i >= 15) for i in range(30)], 10)
  assert [barcode(p) for p in dataset.read_episode(0).images[CAMERA]] == list(range(30))


def test_a_video_that_runs_at_another_rate_than_its_rows_is_told(tmp_path, write_lerobot, barcode):
  rows, video = [i / 10 for i in range(30)], [i / 9.5 for i in range(30)]
  dataset = timed(tmp_path / "set", write_lerobot, rows, 10, video)
  assert [barcode(p) for p in dataset.read_frames(0, range(8))[CAMERA]] == list(range(8))
  with pytest.raises(DamagedEpisode, match=r"row 29 and its frame are 0.153 s apart by their times, more than half"):
    dataset.read_episode(0)


@pytest.mark.parametrize("drift_s", [0.01, 0.1, 0.3])
def test_a_from_timestamp_that_drifts_gives_no_neighbours(drift_s, tmp_path, write_lerobot, barcode, caplog):
  key = f"videos/{CAMERA}/from_timestamp"
  write_lerobot(tmp_path / "set", [8, 9, 7, 8], videos=4)
  change_meta(tmp_path / "set", lambda row: row | {key: row[key] + drift_s * row["episode_index"]})
  with caplog.at_level(logging.WARNING):
    for _, data in formats.open_dataset(tmp_path / "set").iterate(images=True):
      assert [barcode(picture) for picture in data.images[CAMERA]] == list(range(len(data)))
  assert ("the lengths are followed" in caplog.text) == (3 * drift_s > 0.05)


def test_starts_that_cannot_be_checked_by_counting_must_not_overlap(tmp_path, write_lerobot):
  key = f"videos/{CAMERA}/from_timestamp"
  write_lerobot(tmp_path / "set", [8, 9, 7], videos=3)
  change_meta(tmp_path / "set", lambda row: row | {key: 0.0, "length": row["length"] - (row["episode_index"] == 2)})
  with pytest.raises(DamagedEpisode, match=r"from_timestamp 0.000 s lets episodes overlap"):
    formats.open_dataset(tmp_path / "set").read_frames(1, [0])


def lose_frame(video, lost, *, gap):
  """Writes a video again without one of its frames; without a gap the later ones move up."""
  with av.open(str(video)) as container:
    stream = container.streams.video[0]
    rate, size = stream.average_rate, (stream.height, stream.width)
    pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
  places = [i for i in range(len(pictures)) if i != lost]
  with av.open(str(video), "w") as container:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    stream.time_base = stream.codec_context.time_base = 1 / rate
    for number, place in enumerate(places):
      frame = av.VideoFrame.from_ndarray(pictures[place], format="rgb24")
      frame.pts, frame.time_base = place if gap else number, 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def read_numbers(dataset, episode, barcode):
  """Returns the number of every frame of an episode, None of those that are refused."""
  found = []
  for frame in range(dataset.episode_length(episode)):
    try:
      found.append(barcode(dataset.read_frames(episode, [frame])[CAMERA][0]))
    except DamagedEpisode:
      found.append(None)
  return found


@pytest.mark.parametrize("lost", [1, 7, 8, 12, 16, 17, 22])
def test_a_lost_frame_that_leaves_a_gap_costs_itself_alone(lost, tmp_path, write_lerobot, barcode):
  lengths = [8, 9, 7]
  write_lerobot(tmp_path / "set", lengths, videos=3)
  lose_frame(next(tmp_path.rglob("*.mp4")), lost, gap=True)
  dataset = formats.open_dataset(tmp_path / "set", skip_bad=True)
  found = [number for episode in range(3) for number in read_numbers(dataset, episode, barcode)]
  right = [number for length in lengths for number in range(length)]
  assert found == right[:lost] + [None] + right[lost + 1:]
  # A loader puts another frame in its place.
  sampler = sampling.Sampler(sampling.Mixture(dataset), batch_size=24, seed=0)
  batch, replaced = loader.Loader(sampler, horizon=2).read_batch(0)
  assert len(batch["image"][CAMERA]) == 24 and replaced <= 4


@pytest.mark.parametrize(("lost", "of"), [(3, 0), (12, 1), (20, 2)])
def test_a_lost_frame_without_a_gap_costs_no_other_episode(lost, of, tmp_path, write_lerobot, barcode):
  """LeRobot joins the videos of episodes and takes the starts from what is there; starts that do not know are none."""
  lengths, key = [8, 9, 7], f"videos/{CAMERA}/"
  write_lerobot(tmp_path / "set", lengths, videos=3)
  lose_frame(next(tmp_path.rglob("*.mp4")), lost, gap=False)
  for episode in range(3):
    found = read_numbers(formats.open_dataset(tmp_path / "set", skip_bad=True), episode, barcode)
    assert found == [None] * lengths[episode]
  change_meta(tmp_path / "set", lambda row: row | {
    f"{key}from_timestamp": row[f"{key}from_timestamp"] - 0.1 * (row["episode_index"] > of),
    f"{key}to_timestamp": row[f"{key}to_timestamp"] - 0.1 * (row["episode_index"] >= of)})
  dataset = formats.open_dataset(tmp_path / "set", skip_bad=True)
  for episode, length in enumerate(lengths):
    assert read_numbers(dataset, episode, barcode) == ([None] * length if episode == of else list(range(length)))


@pytest.mark.parametrize("lost", [0, 9, 19])
def test_a_video_with_fewer_frames_than_rows_is_told(lost, tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [20])
  lose_frame(next(tmp_path.rglob("*.mp4")), lost, gap=False)
  with pytest.raises(DamagedEpisode, match="the video has 19 frames for the 20 rows of its episodes, and no gap tells"):
    formats.open_dataset(tmp_path / "set").read_frames(0, [3])


def test_null_indexes_cost_one_camera_of_one_episode(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [5] * 3)
  names = [f"videos/{CAMERA}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
  change_meta(tmp_path / "set", lambda row: row | dict.fromkeys(names) if row["episode_index"] == 1 else row)
  dataset = formats.open_dataset(tmp_path / "set", skip_bad=True)
  assert dataset.num_episodes == len(list(dataset.iterate())) == 3
  assert [e for e, _ in dataset.iterate(images=True)] == [0, 2]
  assert "the meta folder names no video of it for episode 1" in next(iter(dataset.damaged.values()))


def test_meta_rows_that_name_no_episode_are_damage(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [5] * 3)
  change_meta(tmp_path / "set", lambda row: row | {"length": None if row["episode_index"] == 1 else 5})
  with pytest.raises(DamagedEpisode, match=r"file-000.parquet', row 1: length is missing"):
    formats.open_dataset(tmp_path / "set")
  assert formats.open_dataset(tmp_path / "set", skip_bad=True).num_episodes == 2


UNASKED = {
  "nulls": ({"dtype": "float32", **ONE}, pa.array([None, 1.0, 2.0, None], pa.float32())),
  "ragged": ({"dtype": "float32", "shape": [2]}, pa.array([[0.0] * n for n in (0, 4, 2, 2)])),
  "absent": ({"dtype": "bool", **ONE}, None),
  "texts": ({"dtype": "float32", **ONE}, pa.array(["a"] * 4)),
}


@pytest.mark.parametrize("kind", UNASKED)
def test_columns_that_nobody_asked_for(kind, tmp_path):
  feature, column = UNASKED[kind]
  more = {} if column is None else {"other": column}
  path = write_v21(tmp_path / "set", features={"other": feature},
                   columns=lambda c: {name: values for name, values in c.items() if name != "index"} | more)
  data = formats.open_dataset(path).read_episode(0)
  assert data.state.tolist() == np.arange(8.0).reshape(4, 2).tolist() and "other" not in data.extras
  with pytest.raises(DamagedEpisode, match=r"'other', of the state: (missing values, the first in row 0|lists of|"
                                           r"the file lacks|string is stored, no numbers)"):
    formats.open_dataset(path, fields=Fields(state="other")).read_episode(0)


@pytest.mark.parametrize("column, fields, expected", [
  (pa.array([0, 1, 0, 1]), {}, ["pick it up", "valid"] * 2),
  (pa.array([0, None, 0, 0]), {"default_prompt": "x"}, ["pick it up", "x", "pick it up", "pick it up"]),
  (pa.array([None] * 4, pa.string()), {"default_prompt": "x"}, ["x"] * 4),
  (pa.array([None] * 4, pa.string()), {}, "'text' has no text in row 0: give a default_prompt"),
  (pa.array([b"pick"] * 4), {}, ["pick"] * 4),
  (pa.array([b"\xff"] * 4), {}, "no text in UTF-8"),
  (pa.array([{"a": 1}] * 4), {}, "'text' holds .*neither a text nor the number of a task"),
  (pa.array([["pick"]] * 4), {}, ["pick"] * 4),
  (pa.array([["pick", "it"]] * 4), {}, "'text' holds .*neither a text nor the number of a task"),
  (pa.array([0.5] * 4), {}, "'text' holds 0.5, neither a text"),
  (pa.array([7] * 4), {}, "text 7 is none of the 2 tasks"),
  (pa.array(["", " ", "go", ""]), {"default_prompt": "x"}, ["x", "x", "go", "x"]),
], ids=["n", "null_n", "null_default", "null", "binary", "no_utf8", "table", "list", "lists", "floats", "no_task",
        "empty"])
def test_prompts_of_a_column(column, fields, expected, tmp_path):
  path = write_v21(tmp_path / "set", features={"text": {"dtype": "string", **ONE}}, tasks=("pick it up", "valid"),
                   columns=lambda c: c | {"text": column})
  dataset = formats.open_dataset(path, fields=Fields(prompt="text", **fields))
  if isinstance(expected, list):
    assert dataset.read_episode(0).prompts == expected
  else:
    with pytest.raises(DamagedEpisode, match=expected):
      dataset.read_episode(0)


@pytest.mark.parametrize(("name", "column", "expected"), [
  ("task_index", pa.array([1.0] * 4), "valid"), ("task_index", pa.array(["1"] * 4), "valid"),
  ("task_index", pa.array([0.5] * 4), "'task_index' holds 0.5, neither a text nor the number"),
  ("episode_index", pa.array(["0"] * 4), "'episode_index': string is stored, no numbers"),
  ("episode_index", pa.array([0, None, 0, 0]), "episode_index is missing in row 1"),
  ("timestamp", pa.array(["0"] * 4), "'timestamp': string is stored, no numbers"),
], ids=["floats", "digits", "half", "text_episode", "null_episode", "text_time"])
def test_bookkeeping_of_other_types_is_read_or_named(name, column, expected, tmp_path):
  path = write_v21(tmp_path / "set", tasks=("pick it up", "valid"), columns=lambda c: c | {name: column})
  if expected == "valid":
    assert set(formats.open_dataset(path).read_episode(0).prompts) == {"valid"}
  else:
    with pytest.raises(DamagedEpisode, match=expected):
      formats.open_dataset(path).read_episode(0)


def test_pictures_as_lists_of_bytes_are_read(tmp_path):
  rows = pa.array([list(png(np.full((8, 12, 3), i, np.uint8))) for i in range(4)], pa.list_(pa.uint8()))
  path = write_v21(tmp_path / "set", columns=lambda c: c | {CAMERA: rows})
  assert formats.open_dataset(path).read_episode(0).images[CAMERA][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("tasks, drop, fields, expected", [
  (("",), False, {}, ""), (("",), False, {"default_prompt": "x"}, "x"), ((), False, {"default_prompt": "x"}, "x"),
  (("go",), True, {"default_prompt": "x"}, "x"), (("go",), False, {"default_prompt": "x"}, "go")])
def test_the_datas_own_text_comes_before_the_default(tasks, drop, fields, expected, tmp_path):
  path = write_v21(tmp_path / "set", tasks=tasks,
                   columns=lambda c: {name: v for name, v in c.items() if not drop or name != "task_index"})
  assert formats.open_dataset(path, fields=Fields(**fields)).read_episode(0).prompts[0] == expected


@pytest.mark.parametrize("table", [
  pa.table({"task": ["first", "second"], "task_index": [0, 1], "notes": ["a", "b"]}),
  pa.table({"notes": ["a", "b"], "task_index": [0, 1], "__index_level_0__": ["first", "second"]}),
  pa.table({"task_index": [0, 1], "count": [3, 4], "sentence": pa.array(["first", "second"], pa.large_string())}),
  pa.table({"a": ["x", "y"], "sentence": ["first", "second"], "task_index": [0, 1]}).replace_schema_metadata(
    {"pandas": json.dumps({"index_columns": ["sentence"]})}),
])
def test_which_column_of_the_tasks_is_the_text(table, tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [6])
  pq.write_table(table, tmp_path / "set/meta/tasks.parquet")
  assert formats.open_dataset(tmp_path / "set").read_episode(0).prompts[::5] == ["first", "second"]


def test_two_columns_of_texts_without_a_hint_are_told(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [6])
  pq.write_table(pa.table({"a": ["x"], "b": ["y"], "task_index": [0]}), tmp_path / "set/meta/tasks.parquet")
  with pytest.raises(Pi0RagError, match=r"tasks.parquet' has the columns a, b, task_index: expected"):
    formats.open_dataset(tmp_path / "set")


def test_depth_is_no_camera_and_grey_is_one(tmp_path):
  deep = lambda value: {"bytes": png(np.full((8, 12), value, np.uint16)), "path": None}  # noqa: E731
  grey = lambda value: {"bytes": png(np.full((8, 12), value, np.uint8)), "path": None}  # noqa: E731
  one = {"dtype": "image", "shape": [8, 12, 1], "names": ["height", "width", "channel"]}
  path = write_v21(tmp_path / "set", features={
    "flagged": {"dtype": "image", "shape": [8, 12, 3], "info": {"video.is_depth_map": True}}, "deep": one, "grey": one,
    "stereo_depth": one},
    columns=lambda c: c | {"flagged": c[CAMERA], "deep": pa.array([deep(500 + i) for i in range(4)]),
                           "grey": pa.array([grey(i) for i in range(4)]), "stereo_depth": pa.array([grey(0)] * 4)})
  dataset = formats.open_dataset(path)
  assert dataset.cameras == (CAMERA, "grey")
  assert dataset.read_episode(0).images["grey"][:, 0, 0].tolist() == [[i] * 3 for i in range(4)]
  reasons = {"flagged": "says video.is_depth_map", "deep": "kind 'I;16'", "stereo_depth": "'depth' in its"}
  for name, why in reasons.items():
    with pytest.raises(Pi0RagError, match=rf"'{name}' is no RGB camera: .*{why}"):
      formats.open_dataset(path, fields=Fields(cameras=[name]))


def test_depth_in_a_video_is_no_camera(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [5])
  file = tmp_path / "set/meta/info.json"
  info = json.loads(file.read_text())
  info["features"][CAMERA]["shape"] = [48, 64, 1]
  file.write_text(json.dumps(info))
  with av.open(str(next((tmp_path / "set").rglob("*.mp4"))), "w", format="matroska") as container:
    stream = container.add_stream("ffv1", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
    for value in range(5):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64), value, np.uint16), format="gray16le")))
    container.mux(stream.encode())
  assert formats.open_dataset(tmp_path / "set").cameras == ()
  with pytest.raises(Pi0RagError, match=r"is no RGB camera: its pixels are gray16le"):
    formats.open_dataset(tmp_path / "set", fields=Fields(cameras=[CAMERA]))


def test_pictures_stored_as_numbers_are_read(tmp_path):
  stored = np.random.default_rng(0).integers(0, 255, (4, 8, 12, 3), dtype=np.uint8)
  nested = pa.list_(pa.list_(pa.list_(pa.uint8())))
  path = write_v21(tmp_path / "set", features={"plain": {"dtype": "uint8", "shape": [8, 12, 3]}},
                   columns=lambda c: c | {"plain": pa.array(stored.tolist(), nested)})
  np.testing.assert_array_equal(formats.open_dataset(path).read_episode(0).images["plain"], stored)


@pytest.mark.parametrize("change, message", [
  ({"data_path": "data/{episode_index:2000000000d}.parquet"}, "data_path is '.*', allowed: fields such as"),
  ({"data_path": "{episode_index.__class__}"}, "data_path is .*allowed: fields such as"),
  ({"data_path": "data/{other}.parquet"}, "data_path is .*allowed: the fields episode_index, episode_chunk"),
  ({"data_path": "../../{episode_index}.parquet"}, "data_path is .*allowed: paths within"),
  ({"data_path": "/etc/{episode_index}"}, "data_path is .*allowed: paths within"),
  ({"data_path": None}, "data_path is missing, allowed: a text"),
  ({"fps": float("nan")}, "fps is nan, allowed: finite numbers above 0"), ({"fps": "ten"}, "fps is 'ten'"),
  ({"fps": 0}, "fps is 0"), ({"chunks_size": 0}, "chunks_size is 0"), ({"total_episodes": -1}, "total_episodes is -1"),
  ({"features": [1]}, "features is .*allowed: names with values"), ({"features": {"a": 3}}, "feature 'a' is 3"),
  ({"features": {"a": {"dtype": "float32", "shape": [10**9, 10**9]}}}, "feature 'a', shape is"),
  ({"features": {"a": {"shape": [1]}}}, "feature 'a', dtype is missing"),
  ({"features": {"cam": {"dtype": "video", "shape": [8, 8, 3]}}, "video_path": None}, "video_path is missing"),
  ({"features": {"../../a": {"dtype": "video", "shape": [8, 8, 3]}}, "video_path": "{video_key}.mp4"}, "video_path is"),
])
def test_values_of_theirs_are_checked_before_any_work(change, message, tmp_path):
  with pytest.raises(Pi0RagError, match=rf"info.json': {message}"):
    formats.open_dataset(write_v21(tmp_path / "set", info=change))


def test_a_picture_outside_the_data_set_is_not_opened(tmp_path):
  (tmp_path / "secret.png").write_bytes(png(np.zeros((8, 12, 3), np.uint8)))
  cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  for number, path in enumerate(("../secret.png", str(tmp_path / "secret.png"))):
    root = write_v21(tmp_path / f"set{number}", columns=lambda c, path=path: c | {
      CAMERA: pa.array([{"bytes": None, "path": path}] * 4, cell)})
    with pytest.raises(DamagedEpisode, match=rf"picture '.*set{number}/images/.*secret.png'"):
      formats.open_dataset(root).read_episode(0)


def test_the_files_of_another_version_are_named(tmp_path, write_lerobot):
  with pytest.raises(Pi0RagError, match=r"info.json' says v3.0, but the files beside it are those of v2"):
    formats.open_dataset(write_v21(tmp_path / "two", info={"codebase_version": "v3.0"}))
  write_lerobot(tmp_path / "three", [5])
  file = tmp_path / "three/meta/info.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"codebase_version": "v2.1"}))
  with pytest.raises(Pi0RagError, match=r"says v2, but the files beside it are those of v3.0"):
    formats.open_dataset(tmp_path / "three")


@pytest.mark.parametrize(
  "pattern", ["meta/info.json", "meta/tasks.parquet", "meta/episodes/*/*", "data/*/*", "videos/*/*/*"])
def test_pointers_of_git_lfs_are_called_that(pattern, tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [5])
  file = next((tmp_path / "set").glob(pattern))
  file.write_text(POINTER)
  with pytest.raises(Pi0RagError, match=rf"{file.name}'.* is a git-lfs pointer: run git lfs pull"):
    formats.open_dataset(tmp_path / "set").read_episode(0)


def test_a_pointer_in_the_place_of_lines_is_told_with_skip_bad_too(tmp_path):
  path = write_v21(tmp_path / "set")
  (path / "meta/episodes.jsonl").write_text(POINTER)
  with pytest.raises(Pi0RagError, match=r"holds no episode that can be read: .*is a git-lfs pointer"):
    formats.open_dataset(path, skip_bad=True)


def test_pictures_of_several_sizes_name_the_frames(tmp_path):
  path = write_v21(tmp_path / "set", columns=lambda c: c | {CAMERA: pa.array(
    [{"bytes": png(np.zeros((8 + (i == 2), 12, 3), np.uint8)), "path": None} for i in range(4)])})
  with pytest.raises(DamagedEpisode, match=r"pictures differ in size: frame 0 has 8 x 12 px, frame 2 9 x 12 px"):
    formats.open_dataset(path).read_episode(0)


def test_links_into_a_hubs_cache_are_followed(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [5])
  file = next((tmp_path / "set/data").rglob("*.parquet"))
  os.replace(file, tmp_path / "blob")
  file.symlink_to(tmp_path / "blob")
  assert formats.open_dataset(tmp_path / "set").read_episode(0).state.shape == (5, 1)
