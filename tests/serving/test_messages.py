"""Messages: openpi's bytes exactly, and mistakes said."""

import base64
import functools
import pathlib
import runpy
import sys

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

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
  (b"", "0 bytes are no whole msgpack message: Unpack failed: incomplete input"),
  (messages.pack({"x": np.zeros(3)})[:-4], "bytes are no whole msgpack message"),
  (b"\xc1", "1 bytes are no whole msgpack message: FormatError"),
  (b"\x01\x02", "2 bytes are no whole msgpack message: unpack\\(b\\) received extra data"),
  (b"\xa1\xff", "no whole msgpack message: 'utf-8' codec"),
  (msgpack.packb({**ARRAY, b"shape": [3]}), r"shape \[3\] of dtype <f4 is 12 bytes, it has 8"),
  (msgpack.packb({**ARRAY, b"shape": [-1, -2]}), r"shape \[-1, -2\] of dtype <f4 is 8 bytes"),
  (msgpack.packb({**ARRAY, b"shape": "ab"}), "an array of the message is broken"),
  (msgpack.packb({**ARRAY, b"data": 3}), "an array of the message is broken"),
  (msgpack.packb({**ARRAY, b"dtype": "nonsense"}), "unknown dtype 'nonsense'"),
  (msgpack.packb({**ARRAY, b"dtype": "|O"}), r"Unsupported dtype: '\|O'; allowed: numbers"),
  (msgpack.packb({**ARRAY, b"dtype": None}), "Unsupported dtype: None"),
  (msgpack.packb({b"__ndarray__": True}), "an array of the message has the keys .*; expected .*shape"),
  (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}), "an array of the message is broken"),
])
def test_malformed_messages_are_refused(data, message):
  with pytest.raises(Pi0RagError, match=message):
    messages.unpack(data)


@pytest.mark.parametrize(("file", "missing"), [
  ("messages", "msgpack"), ("client", "websockets.sync.client"), ("websocket_server", "websockets.asyncio.server")])
def test_without_the_extra_it_is_named(monkeypatch, file, missing):
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(Pi0RagError, match=r"pip install 'pi0rag-jax\[serving\]'"):
    runpy.run_path(str(pathlib.Path(messages.__file__).with_name(f"{file}.py")))
