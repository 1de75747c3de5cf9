"""The log of episodes: what survives a kill, what is an error, what a crash means."""

import dataclasses
import json
import os

import numpy as np
import pytest

from eval.records import EpisodeRecord, RecordLog, key, read_records
from pi0rag_jax.errors import Pi0RagError


def episode(seed=0, **changes) -> EpisodeRecord:
  values = {
    "phase": "eval",
    "policy": "memory",
    "task": "place",
    "condition": "nominal",
    "stream": "s0",
    "seed": seed,
    "index": seed,
    "outcome": "success",
  }
  return EpisodeRecord(**(values | changes))


def test_a_record_comes_back_as_it_was(tmp_path):
  record = episode(latency_ms={"total": [1.5, 2.0]}, extra={"prompt": "grüner Würfel"}, error="line\nline")
  with RecordLog(tmp_path / "records.jsonl") as log:
    log.append(record)
  assert read_records(tmp_path / "records.jsonl") == [record]


def test_a_stream_of_an_older_sweep_says_in_its_name_where_its_memory_came_from(tmp_path):
  values = {**dataclasses.asdict(episode()), "stream": "place/nominal<camera_shift"}
  del values["came_from"]
  (tmp_path / "records.jsonl").write_text(json.dumps(values) + "\n")
  (record,) = read_records(tmp_path / "records.jsonl")
  assert record.came_from == "camera_shift"


def test_numpy_values_are_written_as_numbers(tmp_path):
  with RecordLog(tmp_path / "r.jsonl") as log:
    log.append(episode(latency_ms={"total": np.array([1.0, 2.0])}, steps=np.int64(7)))
  line = json.loads((tmp_path / "r.jsonl").read_text())
  assert line["latency_ms"] == {"total": [1.0, 2.0]} and line["steps"] == 7


def test_every_append_is_one_whole_line_on_disk(tmp_path):
  log = RecordLog(tmp_path / "r.jsonl")
  for seed in range(3):
    log.append(episode(seed))
    assert (tmp_path / "r.jsonl").read_bytes().count(b"\n") == seed + 1
  log.close()


@pytest.mark.parametrize("torn", [b'{"phase": "ev', b"\0\0\0\0", b"{}"])
def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path, caplog, torn):
  path = tmp_path / "r.jsonl"
  with RecordLog(path) as log:
    log.append(episode(0))
  with path.open("ab") as file:
    file.write(torn)
  with RecordLog(path) as log:
    assert log.done() == {key(episode(0))}
    log.append(episode(1))
  assert "torn last line" in caplog.text
  assert [record.seed for record in read_records(path)] == [0, 1]


def test_reading_leaves_a_torn_file_as_it_is(tmp_path):
  path = tmp_path / "r.jsonl"
  path.write_bytes(b'{"phase')
  assert read_records(path) == []
  assert path.read_bytes() == b'{"phase'


@pytest.mark.parametrize("bad", ["not json", '{"phase": "eval"}', '{"colour": 1}', "[]"])
def test_a_corrupt_earlier_line_is_named(tmp_path, bad):
  path = tmp_path / "r.jsonl"
  good = json.dumps(dataclasses.asdict(episode()))
  path.write_text(f"{good}\n{bad}\n{good}\n")
  with pytest.raises(Pi0RagError, match=r"r\.jsonl, line 2 is not an episode record"):
    RecordLog(path)
  assert path.read_text().count("\n") == 3, "the file is the user's to mend"


def test_the_first_of_two_records_of_an_episode_counts(tmp_path):
  path = tmp_path / "r.jsonl"
  lines = [json.dumps(dataclasses.asdict(episode(outcome=outcome))) for outcome in ("failure", "success")]
  path.write_text("\n".join(lines) + "\n")
  assert [record.outcome for record in read_records(path)] == ["failure"]
  with RecordLog(path) as log:
    log.append(episode(outcome="success"))
    assert [record.outcome for record in log.records] == ["failure"]
  assert path.read_text().count("\n") == 2


def test_two_processes_cannot_write_one_log(tmp_path):
  with RecordLog(tmp_path / "r.jsonl"), pytest.raises(Pi0RagError, match="another process"):
    RecordLog(tmp_path / "r.jsonl")
  RecordLog(tmp_path / "r.jsonl").close()


def test_a_failed_write_is_taken_back(tmp_path, monkeypatch):
  log = RecordLog(tmp_path / "r.jsonl")
  log.append(episode(0))
  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", _disk_full)
    with pytest.raises(OSError):
      log.append(episode(1))
  log.append(episode(2))
  log.close()
  assert [record.seed for record in read_records(tmp_path / "r.jsonl")] == [0, 2]


def _disk_full(_):
  raise OSError("no space left on device")


def test_a_number_that_is_not_finite_is_refused_before_it_is_written(tmp_path):
  with RecordLog(tmp_path / "r.jsonl") as log, pytest.raises(Pi0RagError, match="not finite"):
    log.append(episode(latency_ms={"total": [float("nan")]}))
  assert (tmp_path / "r.jsonl").read_bytes() == b""


def test_success_is_the_policys_own():
  assert episode().policy_succeeded
  assert not episode(corrected=True).policy_succeeded
  assert not episode(outcome="failure").policy_succeeded
  assert episode(outcome="crashed").crashed


@pytest.mark.parametrize("changes", [{"outcome": "failed"}, {"phase": "train"}])
def test_unknown_phase_or_outcome_names_the_allowed_ones(changes):
  with pytest.raises(Pi0RagError, match="allowed"):
    episode(**changes)
