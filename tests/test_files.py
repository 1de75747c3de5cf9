"""Files are whole or absent, whatever stops their writing."""

import concurrent.futures
import json

import pytest

from pi0rag_jax import files


def test_a_file_is_replaced_as_a_whole(tmp_path):
  path = tmp_path / "new folder" / "a.json"
  files.write_json(path, {"a": [1.5, None]})
  assert json.loads(path.read_text()) == {"a": [1.5, None]}

  def broken(file):
    file.write(b"half")
    raise RuntimeError("full disk")

  with pytest.raises(RuntimeError, match="full disk"):
    files.write(path, broken)
  with pytest.raises(ValueError, match="not JSON compliant"):
    files.write_json(path, float("nan"))
  assert json.loads(path.read_text()) == {"a": [1.5, None]}
  files.write_text(path, "\u00e4")
  assert path.read_text("utf8") == "\u00e4" and [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_a_rename_is_durable_and_threads_write_apart(tmp_path, monkeypatch):
  synced = []
  monkeypatch.setattr(files, "sync", synced.append)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda n: files.write_text(tmp_path / "a", f"{n}" * 1000), range(64)))
  assert synced == [tmp_path] * 64
  assert len(set((tmp_path / "a").read_text()[::2])) <= 2 and [each.name for each in tmp_path.iterdir()] == ["a"]
