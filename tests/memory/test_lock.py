import os
import subprocess
import sys

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import lock


def test_second_writer_is_told_who_writes(tmp_path):
  held = lock.DirectoryLock(tmp_path, 0.0)
  with pytest.raises(Pi0RagError, match=f"in use for writing by process {os.getpid()}: .*read_only=True"):
    lock.DirectoryLock(tmp_path, 0.0)
  held.release()
  held.release()
  lock.DirectoryLock(tmp_path, 0.0).release()


def test_readers_know_whether_a_writer_is_there(tmp_path):
  with lock.no_writer(tmp_path) as alone, lock.no_writer(tmp_path) as also_alone:
    assert alone and also_alone
  held = lock.DirectoryLock(tmp_path, 0.0)
  with lock.no_writer(tmp_path) as alone:
    assert not alone
  held.release()


def test_a_reader_keeps_writers_off_for_its_time(tmp_path):
  with lock.no_writer(tmp_path), pytest.raises(Pi0RagError):
    lock.DirectoryLock(tmp_path, 0.0)


def test_release_frees_a_lock_that_a_child_inherited(tmp_path):
  held = lock.DirectoryLock(tmp_path, 0.0)
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held._fd])
  held.release()
  lock.DirectoryLock(tmp_path, 0.0).release()
  child.communicate(b"\n")


def test_a_directory_that_is_missing_has_no_lock(tmp_path):
  with pytest.raises(OSError):
    lock.DirectoryLock(tmp_path / "missing", 0.0)
