import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Record, codec
from pi0rag_jax.memory.record import DamagedError


def row(record, header, identity=7):
  columns, blobs = codec.encode(record, header)
  return (identity, *columns, *blobs)


@pytest.fixture
def record():
  return Record(
    key=[0.1, -2.0, 3e4, 1e-8], base_chunk=[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
    corrected_chunk=[[1.1, 0.2], [0.3, 0.4], [0.5, -0.6]], kind="correction", outcome="failure",
    failure_kind="missed grasp", task="pick", prompt="pick it up ü", use_count=3, created=12.5,
    provenance={"source": "human", "episode": 4},
  )  # fmt: skip


def test_round_trip_keeps_all_but_the_chunks_precision(record, header):
  identity, decoded = codec.decode(row(record, header), header)
  assert identity == 7
  np.testing.assert_array_equal(decoded.key, record.key)
  np.testing.assert_array_equal(decoded.base_chunk, record.base_chunk.astype(np.float16))
  for field in ("kind", "outcome", "failure_kind", "task", "prompt", "provenance", "use_count", "created"):
    assert getattr(decoded, field) == getattr(record, field)


def test_float32_chunks_are_exact(record, header):
  header = dataclasses.replace(header, chunk_dtype="float32")
  np.testing.assert_array_equal(codec.decode(row(record, header), header)[1].base_chunk, record.base_chunk)


def test_blobs_are_little_endian(header, make_record):
  blobs = codec.encode(make_record(1.0), header)[1]
  assert blobs[0][:4] == b"\x00\x00\x80\x3f"
  assert blobs[1][:2] == b"\x00\x3c"
  assert len(blobs[1]) == 3 * 2 * 2


def test_chunks_that_float16_cannot_hold_are_refused(header, make_record):
  with pytest.raises(Pi0RagError, match=r"base_chunk has a value of magnitude 7e\+04, float16 holds 65504"):
    codec.encode(dataclasses.replace(make_record(), base_chunk=np.full((3, 2), 7e4)), header)


def test_digest_covers_content_only(record, header):
  same = dataclasses.replace(record, use_count=9, created=1.0)
  assert codec.digest(same, header) == codec.digest(record, header)
  for change in ({"task": "place"}, {"prompt": ""}, {"provenance": {"source": "human"}}, {"kind": "anchor"}):
    assert codec.digest(dataclasses.replace(record, **change), header) != codec.digest(record, header)
  # The border between two texts counts too.
  a = dataclasses.replace(record, task="ab", prompt="c")
  assert codec.digest(a, header) != codec.digest(dataclasses.replace(a, task="a", prompt="bc"), header)


@pytest.mark.parametrize("column", [1, 4, 13, 14, 16])
def test_any_changed_part_is_damage(record, header, column):
  changed = list(row(record, header))
  changed[column] = changed[column] + "x" if isinstance(changed[column], str) else b"\x00" + changed[column][1:-1]
  with pytest.raises(DamagedError, match="record 7 is damaged"):
    codec.decode(tuple(changed), header)


def test_a_blob_that_is_a_number_is_damage(record, header):
  changed = (*row(record, header)[:-1], 10**15)
  with pytest.raises(DamagedError, match="record 7 is damaged"):
    codec.decode(changed, header)


def test_records_of_another_size_are_named(record, header):
  with pytest.raises(DamagedError, match="record 7 cannot be decoded"):
    codec.decode(row(record, header), dataclasses.replace(header, action_horizon=4))
  with pytest.raises(DamagedError, match="record 7 has a key of 4 dims, the header says 5"):
    codec.decode(row(record, header), dataclasses.replace(header, key_dim=5))
