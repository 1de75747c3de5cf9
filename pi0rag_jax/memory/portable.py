"""A memory as one portable file: a .npz (no pickle) with the arrays, and `memory.json` inside it with the rest."""

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax import files, lfs
from pi0rag_jax import schema as values
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address, codec, schema
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Header, Record

FORMAT = "pi0rag memory 1"
_ARRAYS = ("keys_ME", "base_MTA", "corrected_MTA")
_FIELDS = (*codec.TEXTS, "use_count", "created")
# Exports of older versions lack these: nothing is known.
_LATER = {"helped": 0.0, "hurt": 0.0, "quarantine": ""}
_JSON = "memory.json"
_BATCH = 256


class _Export(msgspec.Struct):
  """What `memory.json` says."""

  format: str
  header: dict[str, Any]
  records: list[dict[str, Any]]


def export_memory(directory, out, *, skip_damaged: bool = False) -> tuple[int, int]:
  """Writes the memory in `directory` to the file `out` and returns (records written, damaged ones left out).

  Errors: Pi0RagError if `out` exists or cannot be written, or for a damaged record without `skip_damaged`.
  """
  out = free_place(out)
  store = address.open_store(directory, read_only=True)
  damaged: list[Pi0RagError] = []
  with store.snapshot():
    pairs = list(store.scan(on_damage=damaged.append if skip_damaged else None))
  shape = (len(pairs), *store.header.chunk_shape)
  arrays = {
    "keys_ME": _stacked([r.key for _, r in pairs], (len(pairs), store.header.key_dim), "float32"),
    "base_MTA": _stacked([r.base_chunk for _, r in pairs], shape, store.header.chunk_dtype),
    "corrected_MTA": _stacked([r.corrected_chunk for _, r in pairs], shape, store.header.chunk_dtype),
  }
  names = (*_FIELDS, *_LATER)
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
  digests = [codec.digest(record, header) for record in records]
  if len(set(digests)) > capacity:  # before a memory is made for them
    raise Pi0RagError(f"0 records and {len(set(digests))} new ones exceed the capacity {capacity}: raise it")
  with Memory.open(directory, **dataclasses.asdict(header), capacity=capacity) as memory:
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
  """Returns (header, records) of an exported file, which cannot make more of itself than it has bytes.

  Errors: Pi0RagError if it is not one.
  """
  source = Path(source).expanduser()
  try:
    with zipfile.ZipFile(source) as archive:
      _check_sizes(archive, source)
      content = values.parse(archive.read(_JSON), _Export, _JSON)
      if content.format != FORMAT:
        raise Pi0RagError(f"format is {content.format!r}, this code reads {FORMAT!r}")
      header, rows = values.convert(content.header, Header, f"{_JSON}, header"), content.records
      for number, row in enumerate(rows):
        if missing := [name for name in _FIELDS if name not in row]:
          raise Pi0RagError(f"{_JSON}, record {number} lacks {', '.join(missing)}")
      shapes = ((len(rows), header.key_dim), *[(len(rows), *header.chunk_shape)] * 2)
      dtypes = ("float32", header.chunk_dtype, header.chunk_dtype)
      arrays = [_read_array(archive, *wanted) for wanted in zip(_ARRAYS, shapes, dtypes)]
    records = [
      Record(key, base, corrected, **{name: row[name] for name in _FIELDS},
             **{name: row.get(name, nothing) for name, nothing in _LATER.items()})
      for key, base, corrected, row in zip(*arrays, rows)
    ]
  except Exception as error:  # whatever the parsers of zip, JSON and arrays make of foreign bytes
    raise Pi0RagError(f"{source} is not an exported memory: {lfs.reason(source, schema.one_line(error))}") from error
  return header, records


def free_place(out) -> Path:
  """Returns the path to write to. Errors: Pi0RagError if something is there, or its folder is not."""
  out = Path(out).expanduser()
  if out.exists():
    raise Pi0RagError(f"{out} is there already: choose another name, or remove it first")
  if not out.parent.is_dir():
    raise Pi0RagError(f"{out} cannot be written: {out.parent} is no folder")
  return out


def _check_sizes(archive: zipfile.ZipFile, source: Path) -> None:
  """Raises Pi0RagError unless the archive has an export's parts, not compressed, and no more bytes than its file."""
  parts = archive.infolist()
  wanted = sorted([_JSON, *(f"{name}.npy" for name in _ARRAYS)])
  if sorted(part.filename for part in parts) != wanted:
    raise Pi0RagError(f"it has the parts {sorted(part.filename for part in parts)[:5]}, must have {wanted}")
  if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts):
    raise Pi0RagError("its parts are compressed, an export's are not: take the original file")
  declared, size = sum(part.file_size for part in parts), source.stat().st_size
  if declared > size:
    raise Pi0RagError(f"its parts are {declared} bytes, the file has {size}: it was cut")


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
  """Returns an array, read only after what it says of itself and its size agree with the header."""
  info, wanted = archive.getinfo(f"{name}.npy"), np.dtype(dtype).newbyteorder("<")
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
      raise Pi0RagError(f"{name} has array format {version}, must be (1, 0)")
    found, fortran, kind = np.lib.format.read_array_header_1_0(file)
    size = info.file_size - file.tell()
    if (found, fortran, kind, size) != (shape, False, wanted, math.prod(shape) * wanted.itemsize):
      raise Pi0RagError(f"{shape[0]} records with arrays of another size: {name} is {kind}{list(found)} in {size} "
                        f"bytes, must be {wanted}{list(shape)}")
    return np.frombuffer(file.read(), wanted).reshape(shape)


def _stacked(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
  """Returns the arrays as one, also when there are none."""
  stacked = np.zeros(shape, dtype)
  for row, array in zip(stacked, arrays):
    row[...] = array
  return stacked


def _write(out: Path, arrays: dict[str, np.ndarray], text: str) -> None:
  """Writes under another name first, so that a whole file appears or none; without dates, which may precede 1980."""

  def fill(file):
    with zipfile.ZipFile(file, "w") as archive:
      for name, array in arrays.items():
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as part:
          np.lib.format.write_array(part, array, version=(1, 0), allow_pickle=False)
      archive.writestr(zipfile.ZipInfo(_JSON), text)

  try:
    files.write(out, fill)
  except OSError as error:
    raise Pi0RagError(f"{out} cannot be written: {error}") from error
