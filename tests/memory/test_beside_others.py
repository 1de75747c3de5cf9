"""A memory beside other processes: readers and writers, copies, links, damage that others do."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Memory, SqliteStore, durability, lock, schema, verify
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.memory.backup import backup
from pi0rag_jax.memory.record import DamagedError


@contextlib.contextmanager
def busy_writer(directory, *options):
  """A process that adds, evicts and compacts as fast as it can."""
  command = [sys.executable, "-m", "pi0rag_jax.memory.durability", "--child", str(directory), *options]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
    assert writer.stdout is not None
    writer.stdout.readline(), writer.stdout.readline()
    threading.Thread(target=writer.stdout.read, daemon=True).start()
    yield writer
    assert writer.poll() is None
    writer.kill()


@pytest.mark.parametrize("options", [(), ("--capacity=60",), ("--reopen",)])
def test_openings_verify_and_backups_beside_a_busy_writer(tmp_path, options):
  directory = tmp_path / "memory"
  with busy_writer(directory, *options):
    for number in range(12):
      with Memory.load(directory) as memory:
        assert len(memory) and memory.episodes >= 0
      assert verify.verify(directory) == []
      if number % 4 == 0:
        copy = backup(directory, tmp_path / str(number))
        assert sorted(path.name for path in copy.iterdir()) == [schema.NAME]
        assert main(["verify", str(copy)]) == 0


def test_what_a_reader_reads_is_of_one_moment(tmp_path, open_memory, make_record):
  writer = open_memory()
  writer.add([make_record(0.0)])
  reader = SqliteStore(tmp_path / "memory", read_only=True)
  with reader.snapshot():
    writer.add([make_record(1.0)], outcomes=[([1], [1.0], True)])
    assert (reader.breakdown("kind"), reader.clock(), len(list(reader.scan()))) == ({"correction": 1}, (0, 0), 1)
    assert reader.get([1])[0].helped == 0
  assert (reader.breakdown("kind"), reader.clock(), len(list(reader.scan()))) == ({"correction": 2}, (1, 1), 2)


def test_readers_keep_no_writer_out(open_memory, make_record, tmp_path):
  writer = open_memory()
  writer.add([make_record(float(x)) for x in range(90)])
  writer.close()
  reading = Memory.load(tmp_path / "memory").records()
  next(reading)
  writer = open_memory(lock_timeout_s=0)
  started = time.monotonic()
  writer.add([make_record(0.0)])
  writer.remove([1, 2])
  writer.compact()
  writer.close()
  assert time.monotonic() - started < 2
  assert len(list(reading)) == 89  # of its moment
  with open_memory() as again:
    assert len(again) == 89
  assert sorted(os.listdir(tmp_path / "memory")) == ["memory.lock", "memory.sqlite3"]


def test_all_names_of_a_memory_share_one_lock(open_memory, make_record, tmp_path):
  memory = open_memory(tmp_path / "real")
  memory.add([make_record(0.0)])
  (tmp_path / "folder").symlink_to(tmp_path / "real")
  (tmp_path / "files").mkdir()
  (tmp_path / "files" / schema.NAME).symlink_to(tmp_path / "real" / schema.NAME)
  for name in ("folder", "files"):
    with pytest.raises(Pi0RagError, match="in use for writing"):
      open_memory(tmp_path / name)
    assert len(open_memory(tmp_path / name, read_only=True)) == 1
    assert verify.verify(tmp_path / name) == []
  memory.close()
  with open_memory(tmp_path / "files") as memory:
    memory.add([make_record(1.0)])
  assert os.listdir(tmp_path / "files") == [schema.NAME]
  assert len(open_memory(tmp_path / "folder", read_only=True)) == 2
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  with pytest.raises(Pi0RagError, match="cannot be used for a memory"):
    open_memory(tmp_path / "loop")
  (tmp_path / "hard").mkdir()
  os.link(tmp_path / "real" / schema.NAME, tmp_path / "hard" / schema.NAME)
  with pytest.raises(Pi0RagError, match="a hard link"):
    open_memory(tmp_path / "hard")


def test_home_is_expanded(open_memory, make_record, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(tmp_path))
  open_memory("~/memory").close()
  assert len(open_memory("~/memory", read_only=True)) == 0
  for command in (["verify", "~/memory"], ["inspect", "~/memory"], ["backup", "~/memory", "~/copy"],
                  ["export", "~/memory", "--out=~/out.npz"], ["import", "~/other", "--from=~/out.npz"]):
    assert main(command) == 0
  assert sorted(os.listdir(tmp_path)) == ["copy", "memory", "other", "out.npz"]


def test_a_backup_is_whole_or_not_there(open_memory, make_record, tmp_path, capsys):
  memory = open_memory()
  memory.add([make_record(float(x)) for x in range(3)])
  arguments = ["backup", str(tmp_path / "memory"), str(tmp_path / "out")]
  assert main(arguments) == 0 and len(Memory.load(tmp_path / "out")) == 3
  assert main(arguments) == 2
  memory._store._writer.execute("UPDATE records SET use_count = 7 WHERE id = 2")
  for out, message in (("out", "is there already"), ("missing/out", "is no folder"), ("new", "is damaged, no backup")):
    assert main([*arguments[:2], str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
  assert main(["backup", str(tmp_path / "nothing"), str(tmp_path / "new")]) == 2
  assert sorted(os.listdir(tmp_path)) == ["memory", "out"]


@pytest.mark.parametrize("statement", [
  "UPDATE records SET use_count = 5 WHERE id = 1", "UPDATE records SET helped = 0.25 WHERE id = 2",
  "UPDATE records SET hurt = hurt + 1 WHERE id = 2", "UPDATE records SET episode = 9", "DELETE FROM batches",
  "UPDATE records SET created = 0 WHERE id = 3", "UPDATE header SET value = '8' WHERE name = 'episodes'",
  "UPDATE header SET value = 'x' WHERE name = 'successes'", "UPDATE header SET value = 'new' WHERE name = 'start'",
  "UPDATE sqlite_sequence SET seq = 2", "UPDATE batches SET token = token || 'b'", "UPDATE seal SET commits = 9",
  "UPDATE seal SET value = zeroblob(16)", "DELETE FROM seal", "INSERT INTO undo VALUES (9, '')",
  "UPDATE records SET id = -id; UPDATE arrays SET id = -id",
  "DELETE FROM records WHERE id = 1; DELETE FROM arrays WHERE id = 1",
  "UPDATE records SET id = 9 WHERE id = 1; UPDATE arrays SET id = 9 WHERE id = 1",
])  # fmt: skip
def test_the_seal_is_over_everything(open_memory, make_record, tmp_path, statement):
  memory = open_memory()
  memory.add([make_record(float(x)) for x in range(3)], token="a")
  memory.record_outcome([1, 2], [0.5, 1.0], success=True)
  memory.record_outcome([2], [0.5], success=False)
  memory.record_use([1, 1, 3])
  memory.flush()
  memory.add([], token="b", outcomes=[([3], [0.1], True)])
  memory.compact()
  memory.close()
  assert verify.verify(tmp_path / "memory") == []
  lock.path_of(tmp_path / "memory" / schema.NAME).unlink()
  with sqlite3.connect(tmp_path / "memory" / schema.NAME) as connection:
    connection.executescript(statement)
  connection.close()
  problems = verify.verify(tmp_path / "memory")
  assert problems and all("Error" not in problem for problem in problems)
  with contextlib.suppress(Pi0RagError), open_memory() as again:
    again.add([make_record(8.0)])
    again.record_outcome([1], [1.0], success=True)
  assert verify.verify(tmp_path / "memory")  # no later commit makes it good


def test_negative_ids_are_damage(open_memory, make_record, tmp_path):
  memory = open_memory()
  memory.add([make_record(0.0), make_record(1.0)])
  memory.close()
  with sqlite3.connect(tmp_path / "memory" / schema.NAME) as connection:
    connection.executescript("UPDATE records SET id = -1 WHERE id = 1; UPDATE arrays SET id = -1 WHERE id = 1")
  connection.close()
  with pytest.raises(DamagedError, match="record -1 is damaged"):
    Memory.load(tmp_path / "memory")
  assert any("record -1 is damaged" in problem for problem in verify.verify(tmp_path / "memory"))


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.7, 0.999, None])
def test_a_cut_journal_is_told(open_memory, make_record, tmp_path, keep):
  memory = open_memory()
  for x in range(20):
    memory.add([make_record(float(x))])
  shutil.copytree(tmp_path / "memory", tmp_path / "killed")  # nothing is written meanwhile
  path = tmp_path / "killed" / schema.NAME
  journal = path.with_name(schema.NAME + "-wal")
  assert len(Memory.load(tmp_path / "killed")) == 20 and verify.verify(tmp_path / "killed") == []
  if keep is None:
    journal.unlink()
  else:
    os.truncate(journal, int(journal.stat().st_size * keep))
  path.with_name(schema.NAME + "-shm").unlink(missing_ok=True)
  before = path.read_bytes()
  for read_only in (True, False):
    with pytest.raises(DamagedError, match=r"lacks \d+ of 20 commits: its journal was cut or taken away"):
      Memory.load(tmp_path / "killed", read_only=read_only)
  assert "its journal was cut" in verify.verify(tmp_path / "killed")[0]
  assert path.read_bytes() == before
  lock.path_of(path).unlink()
  with Memory.load(tmp_path / "killed", read_only=False) as left:
    assert 0 <= len(left) < 20 and left.add([make_record(0.0)])


@pytest.mark.parametrize("version", [1, 2])
def test_older_memories_are_read_and_brought_up_to_date(open_memory, make_record, tmp_path, older, version):
  memory = open_memory()
  memory.add([make_record(float(x)) for x in range(3)], token="a")
  memory.close()
  older(tmp_path / "memory", version)
  before = (tmp_path / "memory" / schema.NAME).read_bytes()
  with open_memory(read_only=True, actions="arm") as reader:
    assert (len(reader), reader.header.start, reader.header.actions) == (3, "zero", "")
  with pytest.raises(Pi0RagError, match="start is 'new', the memory has 'zero'"):
    open_memory(read_only=True, start="new")
  assert verify.verify(tmp_path / "memory") == []
  assert (tmp_path / "memory" / schema.NAME).read_bytes() == before
  with open_memory() as writer:
    writer.record_outcome([1], [0.5], success=True)
    writer.add([make_record(9.0)], token="b")
    writer.undo("b")
  assert verify.verify(tmp_path / "memory") == []
  with open_memory(read_only=True) as reader:
    assert (len(reader), reader.episodes, reader.get([1])[0].helped) == (3, 1, 0.5)
  with sqlite3.connect(tmp_path / "memory" / schema.NAME) as connection:
    assert {"start": "zero", "actions": ""}.items() <= dict(connection.execute("SELECT * FROM header")).items()
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
  connection.close()


def test_the_header_keeps_start_and_actions(open_memory, tmp_path, capsys):
  fields = {"start": "draw:7", "actions": "arm"}
  open_memory(**fields).close()
  assert main(["export", str(tmp_path / "memory"), f"--out={tmp_path / 'out.npz'}"]) == 0
  assert main(["import", str(tmp_path / "copy"), f"--from={tmp_path / 'out.npz'}"]) == 0
  for directory in ("memory", "copy"):
    header = open_memory(tmp_path / directory, **fields, read_only=True).header
    assert (header.start, header.actions) == ("draw:7", "arm")
    with pytest.raises(Pi0RagError, match="another action space"):
      open_memory(tmp_path / directory, start="draw:7", actions="base", read_only=True)


def test_killed_readers_and_writers_harm_nobody(tmp_path):
  report = durability.run(4, seed=5)
  assert report.problems == [] and report.readings > 0
