import json
import zipfile

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, codec, portable


@pytest.fixture
def exported(open_memory, make_record, tmp_path):
  """An export of three records, the first one used four times."""
  memory = open_memory()
  provenance = {"source": "human", "episode": 3, "condition": {"shift": [1, 2]}}
  memory.add([make_record(1.0, provenance=provenance, task="pick", created=5.0), make_record(2.0, ANCHOR)])
  memory.add([make_record(3.0, outcome="failure", failure_kind="slip", prompt="lift")])
  memory.record_use([1] * 4)
  memory.close()
  out = tmp_path / "out.npz"
  assert portable.export_memory(tmp_path / "memory", out) == (3, 0)
  return out


def content(memory):
  """Returns all of every record but its id."""
  return [(codec.digest(r, memory.header), r.use_count, r.created, r.provenance) for _, r in memory.records()]


def test_a_round_trip_keeps_everything(exported, open_memory, tmp_path):
  assert portable.import_memory(tmp_path / "copy", exported) == (3, 0)
  copy, original = open_memory(tmp_path / "copy"), open_memory()
  assert content(copy) == content(original)
  assert [r.use_count for _, r in copy.records()] == [4, 0, 0]
  assert copy.index_problems() == []


def test_a_repeated_import_adds_nothing(exported, open_memory, make_record, tmp_path):
  assert portable.import_memory(tmp_path / "memory", exported) == (0, 3)
  memory = open_memory(tmp_path / "other")
  memory.add([make_record(3.0, outcome="failure", failure_kind="slip", prompt="lift"), make_record(9.0)])
  memory.close()
  assert portable.import_memory(tmp_path / "other", exported) == (2, 1)
  assert portable.import_memory(tmp_path / "other", exported) == (0, 3)
  assert len(open_memory(tmp_path / "other")) == 4


def test_the_same_content_twice_in_a_file_comes_once(open_memory, make_record, tmp_path):
  memory = open_memory()
  memory.add([make_record(1.0), make_record(1.0)])
  memory.close()
  portable.export_memory(tmp_path / "memory", tmp_path / "out.npz")
  assert portable.import_memory(tmp_path / "copy", tmp_path / "out.npz") == (1, 1)


def test_the_file_needs_no_pickle_and_can_be_read_by_others(exported):
  with np.load(exported, allow_pickle=False) as file:
    assert file["keys_ME"].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]]
    assert file["base_MTA"].dtype == np.float16
  with zipfile.ZipFile(exported) as archive:
    text = json.loads(archive.read("memory.json"))
  assert text["header"]["policy"] == "policy 1"
  assert [row["id"] for row in text["records"]] == [1, 2, 3]
  assert text["records"][0]["provenance"]["condition"] == {"shift": [1, 2]}


def test_an_empty_memory_makes_a_round_trip(open_memory, tmp_path):
  open_memory().close()
  assert portable.export_memory(tmp_path / "memory", tmp_path / "out.npz") == (0, 0)
  assert portable.import_memory(tmp_path / "copy", tmp_path / "out.npz") == (0, 0)
  assert open_memory(tmp_path / "copy").header.key_dim == 4


def test_exports_do_not_overwrite(exported, tmp_path):
  with pytest.raises(Pi0RagError, match="is there already"):
    portable.export_memory(tmp_path / "memory", exported)
  with pytest.raises(Pi0RagError, match="cannot be written"):
    portable.export_memory(tmp_path / "memory", tmp_path / "missing" / "out.npz")


def test_damaged_records_can_be_left_out(exported, open_memory, tmp_path):
  memory = open_memory()
  memory._store._writer.execute("UPDATE records SET prompt = 'other' WHERE id = 2")
  memory.close()
  with pytest.raises(Pi0RagError, match="record 2 is damaged"):
    portable.export_memory(tmp_path / "memory", tmp_path / "rescue.npz")
  assert portable.export_memory(tmp_path / "memory", tmp_path / "rescue.npz", skip_damaged=True) == (2, 1)
  assert portable.import_memory(tmp_path / "rescued", tmp_path / "rescue.npz") == (2, 0)


def test_imports_into_another_header_or_a_full_memory_are_refused(exported, open_memory, tmp_path):
  open_memory(tmp_path / "other", policy="policy 2").close()
  with pytest.raises(Pi0RagError, match="policy is 'policy 1', the memory has 'policy 2'"):
    portable.import_memory(tmp_path / "other", exported)
  with pytest.raises(Pi0RagError, match="0 records and 3 new ones exceed the capacity 2"):
    portable.import_memory(tmp_path / "small", exported, capacity=2)


def broken(path, changes):
  """Writes a copy of an export in which the JSON's entries are changed."""
  with zipfile.ZipFile(path) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  parts["memory.json"] = json.dumps(json.loads(parts["memory.json"]) | changes).encode()
  out = path.with_name("broken.npz")
  with zipfile.ZipFile(out, "w") as archive:
    for name, data in parts.items():
      archive.writestr(name, data)
  return out


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"format": "other 3"}, "format is 'other 3'"),
    ({"header": {"key_dim": 4}}, "is not an exported memory"),
    ({"records": []}, "0 records with arrays of"),
    ({"header": {"key_dim": 4, "more": 1}}, "header: unknown field 'more', allowed: key_dim"),
    ({"records": [{}, {}, {}]}, "is not an exported memory: memory.json, record 0 lacks kind"),
    ({"records": 3}, "is not an exported memory: memory.json: expected `array`, got `int`"),
  ],
)
def test_files_of_another_form_are_refused(exported, changes, message, tmp_path):
  with pytest.raises(Pi0RagError, match=message):
    portable.import_memory(tmp_path / "copy", broken(exported, changes))
  assert not (tmp_path / "copy").exists()


def test_files_that_are_no_export_are_refused(tmp_path):
  np.save(tmp_path / "array.npy", np.zeros(3))
  np.savez(tmp_path / "arrays.npz", keys_ME=np.zeros(3))
  (tmp_path / "text").write_text("hello")
  (tmp_path / "pickle").write_bytes(b"\x80\x04N.")
  (tmp_path / "empty").touch()
  (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
  with pytest.raises(Pi0RagError, match="is a git-lfs pointer"):
    portable.read_export(tmp_path / "pointer")
  for name in ("array.npy", "arrays.npz", "text", "pickle", "empty", "missing"):
    with pytest.raises(Pi0RagError, match=rf"{name} is not an exported memory"):
      portable.read_export(tmp_path / name)


def parts_of(path):
  with zipfile.ZipFile(path) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


def test_an_import_makes_no_more_of_a_file_than_it_has_bytes(exported, tmp_path, monkeypatch):
  parts, out = parts_of(exported), tmp_path / "bomb.npz"
  read = []
  monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: read.append(1))
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in parts.items():
      archive.writestr(name, bytes(10_000_000) if name == "keys_ME.npy" else data)
  with pytest.raises(Pi0RagError, match="compressed, an export's are not"):
    portable.read_export(out)
  data = bytearray(exported.read_bytes())
  at = data.rfind(b"PK\x01\x02")  # the last part's entry declares sizes far beyond the file
  data[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
  out.write_bytes(data)
  with pytest.raises(Pi0RagError, match=r"the file has \d+: it was cut"):
    portable.read_export(out)
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("memory.json", "{}")
  with pytest.raises(Pi0RagError, match=r"it has the parts \['memory.json'\], must have"):
    portable.read_export(out)
  assert read == []


@pytest.mark.parametrize("shape", [(10**12, 4), (3, 5), (-1, 4), (4, 3)])
def test_an_arrays_header_must_agree_with_its_size(exported, tmp_path, shape):
  parts, out = parts_of(exported), tmp_path / "lie.npz"
  header = np.lib.format
  with open(tmp_path / "part", "w+b") as file:
    header.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file.write(bytes(48))
    file.seek(0)
    parts["keys_ME.npy"] = file.read()
  with zipfile.ZipFile(out, "w") as archive:
    for name, data in parts.items():
      archive.writestr(name, data)
  with pytest.raises(Pi0RagError, match=r"another size: keys_ME is|is not an exported memory"):
    portable.read_export(out)


def test_a_clock_before_1980_does_not_matter(exported, monkeypatch, tmp_path):
  monkeypatch.setattr("time.time", lambda: 1.0)
  portable.export_memory(tmp_path / "memory", tmp_path / "old.npz")
  assert parts_of(tmp_path / "old.npz") == parts_of(exported)
  assert (tmp_path / "old.npz").read_bytes() == exported.read_bytes()
  assert portable.import_memory(tmp_path / "copy", tmp_path / "old.npz") == (3, 0)


def test_archives_as_numpy_writes_them_and_without_later_fields(exported, tmp_path):
  """As versions before wrote them."""
  parts = parts_of(exported)
  text = json.loads(parts.pop("memory.json"))
  del text["header"]["start"], text["header"]["actions"]
  with np.load(exported) as file:
    np.savez(tmp_path / "old.npz", **{name: file[name] for name in ("keys_ME", "base_MTA", "corrected_MTA")})
  with zipfile.ZipFile(tmp_path / "old.npz", "a") as archive:
    archive.writestr("memory.json", json.dumps(text))
  header, records = portable.read_export(tmp_path / "old.npz")
  assert (header.start, header.actions, len(records)) == ("zero", "", 3)
