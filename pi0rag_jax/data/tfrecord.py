"""TFRecord files and the tf.train.Example messages within, without TensorFlow.

A record is its length (uint64), a masked CRC-32C of the length, the bytes, a masked CRC-32C of the bytes; all
little-endian. Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto.
"""

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import import_extra

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def scan(path: Path) -> Iterator[tuple[int, int]]:
  """Yields (offset, length) of every record's bytes, without reading them.

  Raises:
    ValueError: a length is damaged, or the file ends within a record; no record after it can be found.
  """
  size, offset = path.stat().st_size, 0
  with open(path, "rb") as file:
    while offset < size:
      file.seek(offset)
      header = file.read(HEADER.size)
      if len(header) < HEADER.size:
        raise ValueError(f"the file ends within the record at byte {offset}")
      length, checksum = HEADER.unpack(header)
      if _masked_crc(header[:8]) != checksum:
        raise ValueError(f"the length of the record at byte {offset} is damaged")
      start = offset + HEADER.size
      offset = start + length + FOOTER.size
      if offset > size:
        raise ValueError(f"the file ends within the record at byte {start - HEADER.size}")
      yield start, length


def read_record(path: Path, offset: int, length: int) -> bytes:
  """Returns the bytes of one record.

  Raises:
    ValueError: they are damaged.
  """
  with open(path, "rb") as file:
    file.seek(offset)
    data, footer = file.read(length), file.read(FOOTER.size)
  if len(footer) < FOOTER.size or _masked_crc(data) != FOOTER.unpack(footer)[0]:
    raise ValueError(f"the checksum of the record at byte {offset - HEADER.size} does not fit its bytes")
  return data


def parse_example(record: bytes) -> dict[str, np.ndarray | list[bytes]]:
  """Returns the features of an Example: float32[n], int64[n] or a list of bytes each.

  Raises:
    ValueError: the bytes are no Example.
  """
  message_class, decode_error = _example_class()
  example = message_class()
  try:
    example.ParseFromString(record)
  except decode_error as error:
    raise ValueError(f"no tf.train.Example: {error}") from error
  found: dict[str, np.ndarray | list[bytes]] = {}
  for name, feature in example.features.feature.items():
    kind = feature.WhichOneof("kind")
    if kind == "bytes_list":
      found[name] = list(feature.bytes_list.value)
    elif kind == "float_list":
      found[name] = np.fromiter(feature.float_list.value, np.float32, len(feature.float_list.value))
    else:
      found[name] = np.fromiter(feature.int64_list.value, np.int64, len(feature.int64_list.value))
  return found


def _masked_crc(data: bytes) -> int:
  crc = import_extra("google_crc32c", "reading TFRecords").value(data)
  return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


@functools.cache
def _example_class() -> tuple[Any, type[Exception]]:
  """Returns the message class of tf.train.Example, and what it raises on other bytes."""
  import_extra("google.protobuf", "reading TFRecords")
  from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

  file = descriptor_pb2.FileDescriptorProto(name="pi0rag_jax/example.proto", package="pi0rag_jax", syntax="proto3")
  kinds = descriptor_pb2.FieldDescriptorProto

  def add(name: str, fields, *, oneof: str | None = None):
    """Adds a message of (name, number, type, message's name or None, repeated) fields."""
    made = file.message_type.add(name=name)
    if oneof:
      made.oneof_decl.add(name=oneof)
    for field, number, kind, target, repeated in fields:
      label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
      entry = made.field.add(name=field, number=number, type=kind, label=label)
      if target:
        entry.type_name = f".pi0rag_jax.{target}"
      if oneof:
        entry.oneof_index = 0
    return made

  add("BytesList", [("value", 1, kinds.TYPE_BYTES, None, True)])
  add("FloatList", [("value", 1, kinds.TYPE_FLOAT, None, True)])
  add("Int64List", [("value", 1, kinds.TYPE_INT64, None, True)])
  add("Feature", [(name, number, kinds.TYPE_MESSAGE, target, False) for name, number, target in (
    ("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List"))], oneof="kind")
  features = add("Features", [("feature", 1, kinds.TYPE_MESSAGE, "Features.FeatureEntry", True)])
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
  entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL,
                  type_name=".pi0rag_jax.Feature")
  add("Example", [("features", 1, kinds.TYPE_MESSAGE, "Features", False)])
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("pi0rag_jax.Example")), message.DecodeError
