"""Small memories for tests: keys of 4 numbers, chunks of 3 steps by 2 actions."""

import sqlite3
import uuid

import numpy as np
import pytest

from pi0rag_jax.memory import Header, Memory, Record, schema

# Of tests that hold for every store.
BOTH = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
HEADER = Header(key_dim=4, action_horizon=3, action_dim=2, encoder="test", policy="policy 1")


@pytest.fixture
def header():
  return HEADER


@pytest.fixture
def make_record():
  """Returns make_record(first key entry, kind, ...): the key is (x, 0, 0, 0), the base chunk x, the corrected x + 1."""

  def make(x=0.0, kind="correction", *, outcome="success", dim=4, chunk=(3, 2), **fields):
    key = np.zeros(dim)
    key[0] = x
    base = np.full(chunk, x)
    return Record(key, base, base + 1, kind, outcome, **fields)

  return make


@pytest.fixture
def store_kind(request):
  """Which store a test is about: the one that `BOTH` gives it, a file's otherwise."""
  return getattr(request, "param", "sqlite")


@pytest.fixture
def place(store_kind, request, tmp_path):
  """Returns place(name), where a memory is: a folder, or a name that no other test has on this worker's server."""
  if store_kind == "sqlite":
    return lambda name="memory": tmp_path / name
  server, test = request.getfixturevalue("postgres"), uuid.uuid4().hex[:12]
  return lambda name="memory": server.address(f"{test}-{name}")


@pytest.fixture
def open_memory(place):
  """Returns open_memory(**changes), which opens one memory and closes it at the end of the test."""
  opened = []

  def open_(where=None, **changes):
    fields = {"key_dim": 4, "action_horizon": 3, "action_dim": 2, "encoder": "test", "policy": "policy 1"}
    where = place() if where is None else where
    opened.append(Memory.open(where, **(fields | {"capacity": 100, "lock_timeout_s": 0.05} | changes)))
    return opened[-1]

  open_.opened = opened
  yield open_
  for memory in opened:
    memory.close()


@pytest.fixture
def key():
  """Returns key(x, ...): float32[B, 4] with one row (x, 0, 0, 0) per argument."""
  return lambda *xs: np.array([[x, 0, 0, 0] for x in xs], np.float32)


@pytest.fixture
def older():
  """Returns older(directory, version), which makes a memory's file as version 1 or 2 of the format wrote it."""

  def make(directory, version):
    (directory / "memory.lock").unlink()
    with sqlite3.connect(directory / schema.NAME) as connection:
      for table in ("seal", "undo", "evicted"):
        connection.execute(f"DROP TABLE {table}")
      connection.execute("ALTER TABLE batches DROP COLUMN number")
      connection.execute("DELETE FROM header WHERE name IN ('start', 'actions')")
      if version == 1:
        for name in schema.ADDED:
          connection.execute(f"ALTER TABLE records DROP COLUMN {name}")
        connection.execute("DELETE FROM header WHERE name IN ('episodes', 'successes')")
      connection.execute(f"PRAGMA user_version = {version}")
    connection.close()

  return make
