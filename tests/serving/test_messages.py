"""Messages: openpi's bytes exactly, and mistakes said."""

import base64
import functools
import io
import pathlib
import resource
import runpy
import sys
import time

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from PIL import Image

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages

from .conftest import RECORDED, as_arrays

CASES = RECORDED["msgpack"]
ARRAY = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}


def assert_same(found, wanted):
  assert type(found) is type(wanted)
  if isinstance(wanted, dict):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
      assert_same(found[key], value)
  elif isinstance(wanted, list):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
      assert_same(one, other)
  else:
    np.testing.assert_array_equal(found, wanted)
    assert np.asarray(found).dtype == np.asarray(wanted).dtype


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_openpis(name):
  value = as_arrays(CASES[name]["value"])
  packed = base64.b64decode(CASES[name]["packed_b64"])
  assert messages.pack(np.asfortranarray(value) if name == "fortran" else value) == packed
  assert_same(messages.unpack(packed), as_arrays(CASES[name]["unpacked"]))


def test_arrays_are_views_of_the_message():
  found = messages.unpack(messages.pack({"image": np.arange(6)}))["image"]
  assert not found.flags.writeable and found.base is not None


@pytest.mark.parametrize(("name", "value"), [
  ("object", np.array([None])), ("complex", np.zeros(1, np.complex128)), ("void", np.zeros(1, [("a", "<i4")]))])
def test_dtypes_that_openpi_refuses(name, value):
  with pytest.raises(Pi0RagError) as refused:
    messages.pack({"x": value})
  assert str(refused.value).startswith(RECORDED["msgpack_errors"][name].removeprefix("ValueError: "))


@pytest.mark.parametrize(("value", "message"), [
  (jnp.zeros(2), r"a jaxlib\S+ArrayImpl cannot be sent: make it a numpy array"),
  ({1, 2}, "a builtins.set cannot be sent"),
  (2**70, f"{2**70} cannot be sent: an integer has at most 64 bits"),
  (functools.reduce(lambda inner, _: [inner], range(2000), []), "the message cannot be packed: recursion limit"),
])
def test_what_cannot_be_sent_is_named(value, message):
  with pytest.raises(Pi0RagError, match=message):
    messages.pack({"x": value})


@pytest.mark.parametrize(("data", "message"), [
  ("text", "a bytes-like object is required, not 'str'"),
  (b"", "0 bytes are no whole msgpack message: incomplete input"),
  (messages.pack({"x": np.zeros(3)})[:-4], "bytes are no whole msgpack message: incomplete input"),
  (b"\xc1", "1 bytes are no whole msgpack message: FormatError"),
  (b"\x01\x02", "2 bytes are no whole msgpack message: unpack\\(b\\) received extra data"),
  (b"\xa1\xff", "no whole msgpack message: 'utf-8' codec"),
  (msgpack.packb({1: 2}), "no whole msgpack message: int is not allowed for map key"),
  (msgpack.packb({**ARRAY, b"shape": [3]}), r"shape \[3\] of dtype <f4 is 12 bytes, it has 8"),
  (msgpack.packb({**ARRAY, b"shape": [-1, -2]}), r"shape \[-1, -2\]; allowed: at most 32 axes of 0 to"),
  (msgpack.packb({**ARRAY, b"shape": [True, 2]}), r"shape \[True, 2\]; allowed"),
  (msgpack.packb({**ARRAY, b"shape": [2**60, 2**60, 0]}), "allowed: at most 32 axes"),
  (msgpack.packb({**ARRAY, b"shape": [1] * 33}), "allowed: at most 32 axes"),
  (msgpack.packb({**ARRAY, b"shape": "ab"}), "an array of the message is broken"),
  (msgpack.packb({**ARRAY, b"shape": None}), "an array of the message is broken"),
  (msgpack.packb({**ARRAY, b"data": 3}), "an array of the message is broken"),
  (msgpack.packb({**ARRAY, b"dtype": "nonsense"}), "Unsupported dtype: 'nonsense'"),
  (msgpack.packb({**ARRAY, b"dtype": "<f3"}), "unknown dtype '<f3'"),
  (msgpack.packb({**ARRAY, b"dtype": "<U0", b"data": b"", b"shape": [2**24] * 30}), "elements have no bytes"),
  (msgpack.packb({**ARRAY, b"dtype": "<U1", b"data": b"\xff" * 4, b"shape": []}), "beyond Unicode"),
  (msgpack.packb({**ARRAY, b"dtype": "|O"}), r"Unsupported dtype: '\|O'; allowed: numbers"),
  (msgpack.packb({**ARRAY, b"dtype": "f4," * 100}), "Unsupported dtype: "),
  (msgpack.packb({**ARRAY, b"dtype": None}), "Unsupported dtype: None"),
  (msgpack.packb({b"__ndarray__": True}), r"an array of the message has the keys \['__ndarray__'\] and no 'data'"),
  (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}), "an array of the message is broken"),
  (msgpack.packb({b"__npgeneric__": True, b"data": [1, 2], b"dtype": "<f4"}), "a scalar is a list"),
  (msgpack.packb({b"nd": True, b"type": [["a", "<f4"]], b"kind": b"V", b"data": b"", b"shape": []}), "Unsupported"),
  (msgpack.packb({"__image__": True, "format": "png", "data": b"nothing", "shape": [1, 1, 3]}), "cannot identify"),
])
def test_malformed_messages_are_refused(data, message):
  with pytest.raises(Pi0RagError, match=message):
    messages.unpack(data)


@pytest.mark.parametrize("data", [
  b"\xdd\xff\xff\xff\xff",  # a list of four thousand million values
  b"\xdd\x00\x98\x96\x80" * 1000,  # ten million values within one another
  b"\xdc\xff\xff" + b"\x80" * 0xFFFF,  # 64 bytes of memory for each of these
  b"\x91" * 5000, b"\x81\xa1a" * 5000 + b"\xc0",
])
def test_what_would_take_much_memory_is_refused_before(data):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  began = time.perf_counter()
  with pytest.raises(Pi0RagError, match="more than 8192 values or 32 levels"):
    messages.unpack(data)
  assert time.perf_counter() - began < 1
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**14  # KB


def test_pictures_that_burst_are_refused():
  buffer = io.BytesIO()
  Image.new("RGB", (4000, 4000)).save(buffer, "png")
  with pytest.raises(Pi0RagError, match="pictures of more than 16777216 bytes"):
    messages.unpack(msgpack.packb({"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": []}))


def vla_eval_picture(picture, format_):
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, format_.upper(), quality=95)
  return {"__image__": True, "format": format_, "data": buffer.getvalue(), "shape": list(picture.shape)}


@pytest.mark.parametrize("dialect", ["openpi", "msgpack_numpy", "msgpack_numpy_text_keys", "vla_eval"])
@pytest.mark.parametrize("value", [np.arange(6, dtype="<f4").reshape(2, 3), np.zeros((0, 4), "<i8"), np.float32(2.5),
                                   np.array("wipe")])
def test_all_three_dialects_are_read(dialect, value):
  """The maps that msgpack-numpy 0.4.8 and vla-eval 0.8.0 make."""
  if dialect == "openpi":
    packed = messages.pack(value)
  elif dialect == "vla_eval":
    value = np.asarray(value)
    packed = msgpack.packb({"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str,
                            "shape": list(value.shape)})
  else:
    found = {b"nd": isinstance(value, np.ndarray), b"type": value.dtype.str, b"data": value.tobytes()}
    found |= {b"kind": b"", b"shape": value.shape} if found[b"nd"] else {}
    if dialect.endswith("text_keys"):
      found = {name.decode(): part for name, part in found.items()}
    packed = msgpack.packb(found)
  assert_same(messages.unpack(packed), value)


def test_vla_evals_pictures_are_read():
  picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
  np.testing.assert_array_equal(messages.unpack(msgpack.packb(vla_eval_picture(picture, "png"))), picture)
  assert messages.unpack(msgpack.packb(vla_eval_picture(picture, "jpeg"))).shape == picture.shape
  raw = {"__image__": True, "format": "raw", "data": picture.tobytes(), "dtype": "|u1", "shape": [8, 9, 3]}
  np.testing.assert_array_equal(messages.unpack(msgpack.packb(raw)), picture)


def test_maps_that_look_alike_stay_maps():
  assert messages.unpack(msgpack.packb({"nd": 3, "other": 1})) == {"nd": 3, "other": 1}


@pytest.mark.parametrize(("value", "line"), [
  ("a\nb\x1b[31m", r"a\nb\x1b[31m"), ("x" * 1000, "x" * 300 + "..."), ({"a": 1}, "{'a': 1}"),
  ("'/home/me/x.sqlite3' is damaged, as ~/y/z is; observation/image, [H, W] / 2", "'<path>' is damaged, as <path> is; "
   "observation/image, [H, W] / 2"),
])
def test_texts_of_strangers_take_one_line(value, line):
  assert messages.shown(value) == line


@pytest.mark.parametrize(("file", "missing"), [
  ("messages", "msgpack"), ("client", "websockets.sync.client"), ("admission", "websockets.asyncio.server"),
  ("websocket_server", "websockets.asyncio.server")])
def test_without_the_extra_it_is_named(monkeypatch, file, missing):
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(Pi0RagError, match=r"pip install 'pi0rag-jax\[serving\]'"):
    runpy.run_path(str(pathlib.Path(messages.__file__).with_name(f"{file}.py")))
