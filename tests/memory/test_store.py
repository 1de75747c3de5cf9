import contextlib
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Header, Record, SqliteStore, address, codec, schema
from pi0rag_jax.memory.record import DamagedError

from .conftest import BOTH


@pytest.fixture
def store(store_kind, place, tmp_path, header):
  where = tmp_path if store_kind == "sqlite" else place()
  store = address.open_store(where, header, lock_timeout_s=0.05)
  yield store
  store.close()


def bytes_of(directory):
  """Returns the content of every file but the lock."""
  return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "memory.lock"}


@BOTH
def test_records_come_back_by_id(store, make_record):
  assert store.add([make_record(1.0), make_record(2.0, "anchor")]) == [1, 2]
  assert store.add([]) == []
  assert store.add([make_record(3.0)]) == [3]
  assert [(i, r.key[0], r.kind) for i, r in store.scan()] == [
    (1, 1, "correction"), (2, 2, "anchor"), (3, 3, "correction"),
  ]  # fmt: skip
  assert [r.key[0] for r in store.get([3, 1])] == [3, 1]
  with pytest.raises(Pi0RagError, match="there is no record 9"):
    store.get([9])


@BOTH
def test_ids_are_never_used_again(store, store_kind, header, make_record):
  store.add([make_record(), make_record()])
  store.remove([2, 77])
  store.compact()
  store.close()
  again = address.open_store(store.path.parent if store_kind == "sqlite" else store.address, header)
  assert again.add([make_record()]) == [3]
  again.close()


def test_file_says_what_it_is(store):
  connection = store._writer
  assert connection.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
  assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
  assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
  assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_addition_and_its_evictions_are_one_transaction(store, make_record):
  store.add([make_record(), make_record()])
  store._writer.execute("CREATE TRIGGER no BEFORE DELETE ON arrays BEGIN SELECT RAISE(ABORT, 'no'); END")
  with pytest.raises(Pi0RagError):
    store.add([make_record(5.0)], room=lambda: ([1], []))
  assert [i for i, _ in store.scan()] == [1, 2]
  store._writer.execute("DROP TRIGGER no")
  assert store.add([make_record(5.0)], room=lambda: ([1], [])) == [3]
  assert [i for i, _ in store.scan()] == [2, 3]


@BOTH
def test_refused_anchors_get_ids_but_are_not_kept(store, make_record):
  records = [make_record(1.0, "anchor"), make_record(2.0), make_record(3.0, "anchor")]
  assert store.add(records, room=lambda: ([], [0])) == [1, 2, 3]
  assert [i for i, _ in store.scan()] == [2, 3]


@BOTH
def test_a_token_makes_an_addition_repeatable(store, make_record):
  records = [make_record(1.0), make_record(2.0)]
  assert store.add(records, token="a") == [1, 2]
  assert store.add(records, token="a") == [1, 2]
  assert store.add(records, token="b") == [3, 4]
  with pytest.raises(Pi0RagError, match="token 'a' was used for other records"):
    store.add([make_record(9.0)], token="a")
  assert len(list(store.scan())) == 4


@BOTH
def test_a_bad_record_stores_nothing_of_its_batch(store, make_record):
  with pytest.raises(Pi0RagError, match="record 1: key has 5 dims"):
    store.add([make_record(), make_record(dim=5)])
  with pytest.raises(Pi0RagError, match="float16 holds"):
    store.add([make_record(), Record(np.zeros(4), np.full((3, 2), 1e5), np.zeros((3, 2)), "anchor", "success")])
  assert list(store.scan()) == []


@BOTH
def test_use_counts_and_breakdown(store, make_record):
  provenance = {"source": "expert"}
  store.add([make_record(task="a", provenance=provenance), make_record(task="b"), make_record(kind="anchor")])
  store.add_uses({1: 2, 3: 1, 99: 5})
  store.add_uses({1: 1})
  assert [r.use_count for _, r in store.scan()] == [3, 0, 1]
  assert store.breakdown("task") == {"": 1, "a": 1, "b": 1}
  assert store.breakdown("kind") == {"anchor": 1, "correction": 2}
  assert store.breakdown("source") == {"expert": 1, "policy": 2}


@BOTH
def test_known_digests(store, header, make_record):
  store.add([make_record(1.0)])
  digests = [codec.digest(make_record(x), header) for x in (1.0, 2.0)]
  assert store.known(digests) == {digests[0]}


def test_another_header_is_refused(store, tmp_path):
  store.close()
  before = bytes_of(tmp_path)
  for change, message in (
    ({"key_dim": 5}, "key_dim is 5, the memory has 4"),
    ({"encoder": "other"}, "encoder is 'other', the memory has 'test'"),
    ({"policy": "policy 2"}, "policy is 'policy 2', the memory has 'policy 1'"),
    ({"action_horizon": 9}, "action_horizon is 9, the memory has 3"),
  ):
    fields = {"key_dim": 4, "action_horizon": 3, "action_dim": 2, "encoder": "test", "policy": "policy 1"}
    for read_only in (False, True):
      with pytest.raises(Pi0RagError, match=f"{message}.*another directory for a new memory"):
        SqliteStore(tmp_path, Header(**(fields | change)), read_only=read_only)
  assert bytes_of(tmp_path) == before


def test_missing_memory(tmp_path, header):
  for options in ({"create": False}, {"read_only": True}):
    with pytest.raises(Pi0RagError, match=r"no memory in .*memory.sqlite3 is missing"):
      SqliteStore(tmp_path, header, **options)
  with pytest.raises(Pi0RagError, match="no memory in"):
    SqliteStore(tmp_path / "nowhere")
  assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_directory(tmp_path, header):
  (tmp_path / "file").write_text("x")
  with pytest.raises(Pi0RagError, match="cannot be used for a memory"):
    SqliteStore(tmp_path / "file", header)


def foreign_sqlite(path):
  with contextlib.closing(sqlite3.connect(path)) as connection:
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: path.write_bytes(b""), "is not a memory"),
    (lambda path: path.write_bytes(b"a text file of some length" * 100), "is not a memory"),
    (lambda path: path.write_bytes(b"SQLite format 3\0"), "is not a memory"),
    (foreign_sqlite, "is not a memory .application id 0x0"),
    (lambda path: path.mkdir(), "is missing"),
  ],
)
def test_foreign_files_are_refused_and_untouched(tmp_path, header, make, message):
  path = tmp_path / schema.NAME
  make(path)
  before = {} if path.is_dir() else bytes_of(tmp_path)
  for read_only in (False, True):
    with pytest.raises(Pi0RagError, match=message):
      SqliteStore(tmp_path, header, read_only=read_only)
  assert ({} if path.is_dir() else bytes_of(tmp_path)) == before


def test_another_version_is_refused(store, tmp_path, header):
  store._writer.execute("PRAGMA user_version = 5")
  store.close()
  before = bytes_of(tmp_path)
  with pytest.raises(Pi0RagError, match="format version 5, this code reads 1, 2, 3, 4"):
    SqliteStore(tmp_path, header)
  assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_file_is_refused_and_untouched(store, tmp_path, header, make_record, keep):
  store.add([make_record(float(x)) for x in range(300)])
  store.close()
  size = store.path.stat().st_size
  os.truncate(store.path, int(size * keep))
  before = bytes_of(tmp_path)
  for read_only in (False, True):
    with pytest.raises(DamagedError, match=r"is damaged .* restore it from a backup"):
      SqliteStore(tmp_path, header, read_only=read_only)
  assert bytes_of(tmp_path) == before


def test_overwritten_pages_are_refused_and_untouched(store, tmp_path, header, make_record):
  store.add([make_record(float(x)) for x in range(300)])
  store.close()
  with open(store.path, "r+b") as file:
    for page in range(3, 12):
      file.seek(page * 4096)
      file.write(b"\xff" * 100)
  before = bytes_of(tmp_path)
  with pytest.raises(DamagedError, match="is damaged"):
    SqliteStore(tmp_path, header)
  assert bytes_of(tmp_path) == before


def test_a_journal_without_its_file_is_refused(tmp_path, header):
  (tmp_path / (schema.NAME + "-wal")).write_bytes(b"journal")
  with pytest.raises(Pi0RagError, match=r"is there without memory\.sqlite3"):
    SqliteStore(tmp_path, header)
  assert (tmp_path / (schema.NAME + "-wal")).read_bytes() == b"journal"


def test_left_over_of_a_killed_creation_is_replaced(tmp_path, header):
  (tmp_path / (schema.NAME + ".new")).write_bytes(b"half")
  SqliteStore(tmp_path, header).close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["memory.lock", "memory.sqlite3"]


def test_one_writer_many_readers(store, tmp_path, header, make_record):
  store.add([make_record(1.0)])
  with pytest.raises(Pi0RagError, match="in use for writing by process"):
    SqliteStore(tmp_path, header, lock_timeout_s=0.05)
  reader = SqliteStore(tmp_path, header, read_only=True)
  store.add([make_record(2.0)])
  assert [r.key[0] for _, r in reader.scan()] == [1, 2]
  store.close()
  assert [r.key[0] for _, r in reader.scan()] == [1, 2]
  with pytest.raises(Pi0RagError, match="open for reading only"):
    reader.add([make_record()])
  with pytest.raises(Pi0RagError, match="is closed"):
    store.add([make_record()])


def test_readers_leave_nothing_behind(store, tmp_path, header, make_record):
  store.add([make_record(1.0)])
  store.close()
  before = bytes_of(tmp_path)
  assert len(list(SqliteStore(tmp_path, header, read_only=True).scan())) == 1
  assert bytes_of(tmp_path) == before


def test_a_reader_sees_what_only_the_journal_of_a_killed_writer_holds(store, tmp_path, header, make_record):
  store.close()
  script = (
    "import os, sys, numpy as np\n"
    "from pi0rag_jax.memory import SqliteStore, Record\n"
    "chunk = np.zeros((3, 2))\n"
    "SqliteStore(sys.argv[1]).add([Record(np.ones(4), chunk, chunk, 'anchor', 'success')])\n"
    "os.kill(os.getpid(), 9)\n"
  )
  main = store.path.read_bytes()
  subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
  assert store.path.read_bytes() == main
  assert [i for i, _ in SqliteStore(tmp_path, header, read_only=True).scan()] == [1]
  writer = SqliteStore(tmp_path, header)
  assert [i for i, _ in writer.scan()] == [1]
  writer.close()


def test_a_kill_in_the_middle_of_a_checkpoint_loses_nothing(store, tmp_path, header, make_record):
  store._writer.execute("PRAGMA wal_autocheckpoint = 0")
  store.add([make_record(float(x)) for x in range(300)])
  crashed = tmp_path / "crashed"
  crashed.mkdir()
  main, wal = crashed / schema.NAME, crashed / (schema.NAME + "-wal")
  before = store.path.read_bytes()
  wal.write_bytes(store.path.with_name(wal.name).read_bytes())
  store.close()
  after = store.path.read_bytes()
  # The first pages are written, with the new size in the header; the last ones are not yet there.
  main.write_bytes(after[: len(before)])
  assert len(after) > 2 * len(before)
  assert len(list(SqliteStore(crashed, header, read_only=True).scan())) == 300
  writer = SqliteStore(crashed, header)
  assert len(list(writer.scan())) == 300
  writer.close()


def test_text_that_is_not_utf8_is_named_as_damage(store, make_record):
  store.add([make_record(task="abc"), make_record()])
  store._writer.execute("UPDATE records SET task = CAST(x'ff' AS TEXT) WHERE id = 1")
  damaged = []
  assert [i for i, _ in store.scan(damaged.append)] == [2]
  assert "record 1 is damaged" in str(damaged[0])
  with pytest.raises(DamagedError, match="record 1 is damaged"):
    list(store.scan())


def test_sizes(store, make_record):
  assert store.cache_bytes() == 2_048_000
  before = store.bytes_on_disk()
  store.add([make_record(float(x)) for x in range(100)])
  assert store.bytes_on_disk() > before
