import gc
import os
import subprocess
import sys

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Memory, SqliteStore, lock, schema


@pytest.fixture
def path(tmp_path):
  return tmp_path / schema.NAME


def test_second_writer_is_told_who_writes(path):
  held = lock.WriterLock(path, 0.0)
  with pytest.raises(Pi0RagError, match=f"in use for writing by process {os.getpid()}: .*read_only=True"):
    lock.WriterLock(path, 0.0)
  held.release()
  held.release()
  lock.WriterLock(path, 0.0).release()


def test_the_process_that_is_named_lives(path):
  held = lock.WriterLock(path, 0.0)
  held.note(3)
  # A process that is gone took the lock, a child of it has it.
  os.pwrite(held._file.fileno(), b"   4194303", 0)
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held._file.fileno()])
  os.close(os.dup(held._file.fileno()))
  held._owner = -1
  held.release()
  with pytest.raises(Pi0RagError, match=f"in use for writing by process {child.pid}:"):
    lock.WriterLock(path, 0.0)
  child.communicate(b"\n")
  lock.WriterLock(path, 0.0).release()
  assert lock.commits(path) == 3


def test_release_frees_a_lock_that_a_child_inherited(path):
  held = lock.WriterLock(path, 0.0)
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held._file.fileno()])
  held.release()
  lock.WriterLock(path, 0.0).release()
  child.communicate(b"\n")


def test_a_directory_that_is_missing_has_no_lock(tmp_path):
  with pytest.raises(OSError):
    lock.WriterLock(tmp_path / "missing" / schema.NAME, 0.0)


def test_a_memory_that_nobody_refers_to_is_unlocked(open_memory, tmp_path, header):
  memory = Memory(SqliteStore(tmp_path, header), 10)
  del memory
  gc.collect()
  SqliteStore(tmp_path, header, lock_timeout_s=0).close()


def full_disk(*_):
  raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_no_lock(open_memory, make_record, monkeypatch, tmp_path):
  for target in ("note", "_try"):
    with monkeypatch.context() as patch:
      patch.setattr(lock.WriterLock, target, full_disk)
      with pytest.raises(Pi0RagError, match="No space left"):
        open_memory()
  with monkeypatch.context() as patch:
    patch.setattr(schema, "make", full_disk)
    with pytest.raises(Pi0RagError, match="No space left"):
      open_memory()
  memory = open_memory()
  memory.add([make_record()])
  memory.record_use([1])
  with monkeypatch.context() as patch:
    patch.setattr(lock.WriterLock, "note", full_disk)
    memory.add([make_record()])  # durable already
  memory._store._writer.execute("PRAGMA query_only = 1")
  with pytest.raises(Pi0RagError, match="cannot be read or written"):
    memory.close()
  assert len(open_memory()) == 2


def test_an_interrupt_leaves_no_lock(open_memory, make_record, monkeypatch):
  for owner, name in ((SqliteStore, "_checked_header"), (SqliteStore, "_open_writer"), (SqliteStore, "scan")):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
      with pytest.raises(KeyboardInterrupt):
        open_memory()
  open_memory(lock_timeout_s=0).close()
