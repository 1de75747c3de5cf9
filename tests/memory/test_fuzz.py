"""Archives and memory files damaged at random: told in one line, or harmless; in no time, and left alone."""

import os
import time
import zipfile

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Memory, codec, footprint, portable, schema, verify

SECONDS, GROWTH_BYTES = 5.0, 64e6


def mutated(data: bytes, rng) -> bytes:
  """Returns the bytes with one to four flips, cuts, or stretches that are zeroed, doubled, dropped or noise."""
  out = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    at = int(rng.integers(len(out))) if out else 0
    length = int(min(len(out) - at, 2 ** rng.integers(0, 10)))
    noise = rng.integers(0, 256, length, np.uint8).tobytes()
    kind = rng.integers(7)
    if kind <= 1 and out:
      out[at] ^= 1 << rng.integers(8)
    elif kind == 2 and rng.random() < 0.2:
      del out[at:]
    elif kind == 3:
      out[at : at + length] = bytes(length)
    elif kind == 4:
      out[at : at + length] = noise
    elif kind == 5:
      out[at:at] = out[at : at + length]
    else:
      del out[at : at + length]
  return bytes(out)


def content(memory):
  """Returns all that a memory answers with."""
  return (memory.header, memory.episodes, memory.successes, memory.tokens(), [
    (i, codec.digest(r, memory.header), r.use_count, r.helped, r.hurt, r.episode, r.created)
    for i, r in memory.records()])  # fmt: skip


@pytest.fixture
def directory(open_memory, make_record, tmp_path):
  """A memory with all that one can have: evicted records, tokens, counters."""
  memory = open_memory(capacity=12)
  for number in range(6):
    records = [make_record(float(3 * number + i), kind, task="pick", provenance={"source": "expert", "seed": number})
               for i, kind in enumerate(("correction", "anchor", "failure"))]
    memory.add(records, token=f"episode {number}", outcomes=[([1, 2, 5], [0.5, 1.0, 0.1], number % 2 == 0)])
  memory.record_use([3, 4])
  memory.close()
  return tmp_path / "memory"


def refuses(action) -> bool:
  """Returns whether it ends in the one-line error that is meant for users; any other fails the test."""
  started = time.monotonic()
  try:
    action()
  except Pi0RagError as error:
    assert "\n" not in str(error) and len(str(error)) < 1000
    return True
  finally:
    assert time.monotonic() - started < SECONDS
  return False


def fuzz(data, count, seed, check, least=1 / 3):
  """Calls `check` with each mutation; the process must not grow."""
  rng = np.random.default_rng(seed)
  for _ in range(20):
    check(mutated(data, rng))
  before = footprint.resident_bytes()
  refused = sum(check(mutated(data, rng)) for _ in range(count - 20))
  assert footprint.resident_bytes() - before < GROWTH_BYTES
  assert refused > count * least


def fuzz_files(directory, count, seed):
  path = directory / schema.NAME
  whole = path.read_bytes()
  with Memory.load(directory) as memory:
    expected = content(memory)

  def check(data):
    path.write_bytes(data)
    seen = []

    def read():
      with Memory.load(directory) as memory:
        seen.append(content(memory))
        memory.query(np.zeros((1, 4)), 4)

    def problems():
      found = verify.verify(directory)
      if found:
        raise Pi0RagError(found[0])

    refused = refuses(read), refuses(problems)
    assert path.read_bytes() == data
    assert sorted(os.listdir(directory)) == ["memory.lock", schema.NAME]
    if not any(refused):
      assert seen == [expected]
    return any(refused)

  fuzz(whole, count, seed, check)


def fuzz_archives(directory, tmp_path, count, seed):
  portable.export_memory(directory, tmp_path / "out.npz")
  data, broken = (tmp_path / "out.npz").read_bytes(), tmp_path / "broken.npz"

  def check(data):
    broken.write_bytes(data)
    refused = refuses(lambda: portable.read_export(broken))
    assert broken.read_bytes() == data
    return refused

  fuzz(data, count, seed, check)


def fuzz_parts(directory, tmp_path, count, seed):
  """As a hostile hand does it: mutated parts in an archive whose checksums are right."""
  portable.export_memory(directory, tmp_path / "whole.npz")
  with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  names, broken = sorted(parts), tmp_path / "broken.npz"
  for number, name in enumerate(names):

    def check(data, changed=name):
      with zipfile.ZipFile(broken, "w") as archive:
        for name in names:
          archive.writestr(name, data if name == changed else parts[name])
      return refuses(lambda: portable.read_export(broken))

    fuzz(parts[name], max(30, count // len(names)), (seed, number), check, least=0)


def test_damaged_files_quickly(directory):
  fuzz_files(directory, 60, 1)


def test_damaged_archives_quickly(directory, tmp_path):
  fuzz_archives(directory, tmp_path, 60, 2)
  fuzz_parts(directory, tmp_path, 60, 3)


@pytest.mark.slow
def test_damaged_files(directory):
  fuzz_files(directory, 2000, 4)


@pytest.mark.slow
def test_damaged_archives(directory, tmp_path):
  fuzz_archives(directory, tmp_path, 2000, 5)
  fuzz_parts(directory, tmp_path, 2000, 6)


@pytest.mark.slow
def test_damaged_journals(open_memory, make_record, directory, tmp_path):
  """A writer that was killed leaves a journal; damaged, it gives an older state, which is told, or an error."""
  memory = open_memory(capacity=12)
  for number in range(6):
    memory.add([make_record(float(number))], token=f"later {number}")
  files = {path.name: path.read_bytes() for path in directory.iterdir()}
  rng = np.random.default_rng(7)
  killed, journal = tmp_path / "killed", schema.NAME + "-wal"
  killed.mkdir()
  for number in range(500):
    for name, data in files.items():
      if not name.endswith("-shm"):
        (killed / name).write_bytes(mutated(data, rng) if name == journal and number else data)
    (killed / (schema.NAME + "-shm")).unlink(missing_ok=True)
    if not refuses(lambda: Memory.load(killed).close()):
      with Memory.load(killed) as left:
        assert content(left) == content(memory)
    assert (killed / schema.NAME).read_bytes() == files[schema.NAME]
