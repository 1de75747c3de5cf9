"""A memory as one portable file: a .npz (no pickle) with the arrays, and `memory.json` inside it with the rest."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Header, Record
from pi0rag_jax.memory.store import SqliteStore

FORMAT = "pi0rag memory 1"
_ARRAYS = ("keys_ME", "base_MTA", "corrected_MTA")
_FIELDS = (*codec.TEXTS, "use_count", "created")
# Exports of older versions lack these: nothing is known.
_UTILITY = ("helped", "hurt")
_BATCH = 256


def export_memory(directory, out, *, skip_damaged: bool = False) -> tuple[int, int]:
  """Writes the memory in `directory` to the file `out` and returns (records written, damaged ones left out).

  Errors: Pi0RagError if `out` exists or cannot be written, or for a damaged record without `skip_damaged`.
  """
  out = Path(out)
  if out.exists():
    raise Pi0RagError(f"{out} is there already: choose another name, or remove it first")
  store = SqliteStore(directory, read_only=True)
  damaged: list[Pi0RagError] = []
  pairs = list(store.scan(on_damage=damaged.append if skip_damaged else None))
  shape = (len(pairs), *store.header.chunk_shape)
  arrays = {
    "keys_ME": _stacked([r.key for _, r in pairs], (len(pairs), store.header.key_dim), "float32"),
    "base_MTA": _stacked([r.base_chunk for _, r in pairs], shape, store.header.chunk_dtype),
    "corrected_MTA": _stacked([r.corrected_chunk for _, r in pairs], shape, store.header.chunk_dtype),
  }
  names = _FIELDS + _UTILITY
  rows = [{"id": identity} | {name: getattr(record, name) for name in names} for identity, record in pairs]
  text = json.dumps({"format": FORMAT, "header": dataclasses.asdict(store.header), "records": rows}, indent=1)
  _write(out, arrays, text)
  return len(pairs), len(damaged)


def import_memory(directory, source, *, capacity: int = 10_000) -> tuple[int, int]:
  """Adds the records of an exported file to a new or matching memory and returns (added, already there).

  Records whose content the memory has are left out, so a repeated import adds nothing. Provenance, use counts
  and times are kept; ids are new.
  Errors: Pi0RagError for a file that is not an export, another header, or more records than `capacity`.
  """
  header, records = read_export(source)
  with Memory.open(directory, **dataclasses.asdict(header), capacity=capacity) as memory:
    digests = [codec.digest(record, header) for record in records]
    seen = memory.known(digests)
    new = []
    for digest, record in zip(digests, records):
      if digest not in seen:
        seen.add(digest)
        new.append(record)
    if len(memory) + len(new) > capacity:
      raise Pi0RagError(f"{len(memory)} records and {len(new)} new ones exceed the capacity {capacity}: raise it")
    for first in range(0, len(new), _BATCH):
      memory.add(new[first : first + _BATCH])
  return len(new), len(records) - len(new)


def read_export(source) -> tuple[Header, list[Record]]:
  """Returns (header, records) of an exported file. Errors: Pi0RagError if it is not one."""
  try:
    with np.load(source, allow_pickle=False) as file:
      content = json.loads(file["memory.json"])
      arrays = [file[name] for name in _ARRAYS]
    if content["format"] != FORMAT:
      raise Pi0RagError(f"format is {content['format']!r}, this code reads {FORMAT!r}")
    header, rows = Header(**content["header"]), content["records"]
    if any(len(array) != len(rows) for array in arrays):
      raise Pi0RagError(f"{len(rows)} records with arrays of {[len(array) for array in arrays]} rows")
    records = [
      Record(key, base, corrected, **{name: row[name] for name in _FIELDS},
             **{name: row.get(name, 0.0) for name in _UTILITY})
      for key, base, corrected, row in zip(*arrays, rows)
    ]
  except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, Pi0RagError) as error:
    raise Pi0RagError(f"{source} is not an exported memory: {error}") from error
  return header, records


def _stacked(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
  """Returns the arrays as one, also when there are none."""
  stacked = np.zeros(shape, dtype)
  for row, array in zip(stacked, arrays):
    row[...] = array
  return stacked


def _write(out: Path, arrays: dict[str, np.ndarray], text: str) -> None:
  """Writes under another name first, so that a whole file appears or none."""
  part = out.with_name(out.name + ".part")
  try:
    with open(part, "wb") as file:
      np.savez(file, **arrays)  # type: ignore[arg-type]
    with zipfile.ZipFile(part, "a") as archive:
      archive.writestr("memory.json", text)
    os.replace(part, out)
  except OSError as error:
    part.unlink(missing_ok=True)
    raise Pi0RagError(f"{out} cannot be written: {error}") from error
