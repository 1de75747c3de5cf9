"""Records to database rows and back, each with a digest of its content.

The digest finds damage that SQLite's own checks cannot see, and recognizes the same content on import.
"""

import hashlib
import json

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import DamagedError, Header, Record

KEY_DTYPE = np.dtype("<f4")
_CHUNK_DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
# Order of the columns of `encode` and, after the id, of `decode`.
TEXTS = ("kind", "outcome", "failure_kind", "task", "prompt", "provenance")
COUNTERS = ("use_count", "helped", "hurt", "episode", "created", "quarantine")
COLUMNS = (*TEXTS, *COUNTERS, "digest")
BLOBS = ("key", "base", "corrected")
_EPISODE = COLUMNS.index("episode")


def encode(record: Record, header: Header) -> tuple[tuple, tuple[bytes, bytes, bytes]]:
  """Returns the values of COLUMNS and of BLOBS for one record.

  Errors: Pi0RagError for a chunk value that float16 cannot hold.
  """
  blobs = (
    record.key.astype(KEY_DTYPE).tobytes(),
    _chunk_bytes("base_chunk", record.base_chunk, header),
    _chunk_bytes("corrected_chunk", record.corrected_chunk, header),
  )
  provenance = json.dumps(record.provenance, sort_keys=True, allow_nan=False)
  texts = (record.kind, record.outcome, record.failure_kind, record.task, record.prompt, provenance)
  counters = (record.use_count, float(record.helped), float(record.hurt), record.episode, float(record.created),
              record.quarantine)
  return (*texts, *counters, _digest(texts, blobs)), blobs


def dated(row: tuple[tuple, tuple], episode: int) -> tuple[tuple, tuple]:
  """Returns an encoded record as of a memory's count of episodes."""
  columns, blobs = row
  return (*columns[:_EPISODE], episode, *columns[_EPISODE + 1 :]), blobs


def decode(row: tuple, header: Header) -> tuple[int, Record]:
  """Returns (id, record) of one row: its id, COLUMNS, BLOBS.

  Errors: DamagedError that names the record if its content is not what was written.
  """
  identity, *columns = row
  texts, counters = columns[: len(TEXTS)], columns[len(TEXTS) : len(COLUMNS) - 1]
  written, blobs = columns[len(COLUMNS) - 1], columns[len(COLUMNS) :]
  if identity < 1 or not all(isinstance(blob, bytes) for blob in blobs) or _digest(texts, blobs) != written:
    raise DamagedError(
      f"record {identity} is damaged, its content is not what was written: restore a backup, or rescue the rest "
      "with `python -m pi0rag_jax.memory export --skip_damaged` and import it into a new memory"
    )
  dtype = _CHUNK_DTYPES[header.chunk_dtype]
  try:
    key, base, corrected = (np.frombuffer(b, t) for b, t in zip(blobs, (KEY_DTYPE, dtype, dtype)))
    base_TA, corrected_TA = base.reshape(header.chunk_shape), corrected.reshape(header.chunk_shape)
    fields = dict(zip(TEXTS, texts)) | {"provenance": json.loads(texts[-1])}
    record = Record(key, base_TA, corrected_TA, **fields, **dict(zip(COUNTERS, counters)))
  except (ValueError, TypeError, RecursionError, Pi0RagError) as error:
    raise DamagedError(f"record {identity} cannot be decoded: {error}") from error
  if key.size != header.key_dim:
    raise DamagedError(f"record {identity} has a key of {key.size} dims, the header says {header.key_dim}")
  return identity, record


def digest(record: Record, header: Header) -> bytes:
  """Returns 16 bytes that identify the record's content: all but its id, counts, time and quarantine."""
  return encode(record, header)[0][-1]


def batch_digest(digests) -> bytes:
  """Returns 16 bytes that identify a sequence of records, given their digests."""
  return hashlib.blake2b(b"".join(digests), digest_size=16).digest()


def _chunk_bytes(name: str, chunk_TA: np.ndarray, header: Header) -> bytes:
  dtype = _CHUNK_DTYPES[header.chunk_dtype]
  largest = np.abs(chunk_TA).max()
  if largest > np.finfo(dtype).max:
    raise Pi0RagError(
      f"{name} has a value of magnitude {largest:.3g}, {header.chunk_dtype} holds {np.finfo(dtype).max:g}: "
      "store normalized actions, or make the memory with chunk_dtype='float32'"
    )
  return chunk_TA.astype(dtype).tobytes()


def _digest(texts, blobs) -> bytes:
  """Returns the digest of the parts, each preceded by its length so that no two contents read the same."""
  state = hashlib.blake2b(digest_size=16)
  for part in (*(str(text).encode() for text in texts), *blobs):
    state.update(len(part).to_bytes(8, "little"))
    state.update(part)
  return state.digest()
