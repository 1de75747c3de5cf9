import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Header, Record
from pi0rag_jax.memory.record import check_records


def fields(**changes):
  good = {
    "key": [1.0, 2.0], "base_chunk": [[0.0, 1.0]], "corrected_chunk": [[0.5, 1.0]], "kind": "anchor",
    "outcome": "success",
  }  # fmt: skip
  return good | changes


def test_arrays_are_read_only_float32_copies():
  key = np.array([1.0, 2.0])
  record = Record(**fields(key=key))
  key[0] = 9
  assert record.key.dtype == record.base_chunk.dtype == np.float32
  assert record.key.tolist() == [1, 2]
  with pytest.raises(ValueError):
    record.key[0] = 3
  with pytest.raises(dataclasses.FrozenInstanceError):
    record.kind = "correction"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"key": [[1.0]]}, r"key has shape \(1, 1\), must have 1 axes"),
    ({"key": []}, r"key has shape \(0,\)"),
    ({"key": ["a", "b"]}, "key is not an array of numbers"),
    ({"key": [1.0, np.nan]}, "key has 1 values that are not finite"),
    ({"key": [1.0, 1e6]}, r"key has a value of magnitude 1e\+06, at most 65504"),
    ({"base_chunk": [0.0]}, r"base_chunk has shape \(1,\), must have 2 axes"),
    ({"corrected_chunk": [[np.inf, 0.0]]}, "corrected_chunk has 1 values that are not finite"),
    ({"corrected_chunk": [[0.0]]}, r"base_chunk is \(1, 2\), corrected_chunk \(1, 1\)"),
    ({"kind": "fault"}, "kind is 'fault', allowed: correction, anchor, failure"),
    ({"outcome": ""}, "outcome is '', allowed: success, failure"),
    ({"failure_kind": None}, "failure_kind is None, must be a string"),
    ({"task": "\ud800"}, "which UTF-8 cannot hold"),
    ({"provenance": {}}, r"provenance\['source'\] is None, allowed: expert, human, retry, policy"),
    ({"provenance": "expert"}, "provenance is a str, must be a mapping"),
    ({"provenance": {"source": "expert", "pose": np.zeros(2)}}, r"provenance\['pose'\] is array.*plain JSON"),
    ({"provenance": {"source": "expert", "loss": float("nan")}}, r"provenance\['loss'\] is nan"),
    ({"provenance": {"source": "expert", 1: 2}}, "names must be strings"),
    ({"use_count": -1}, "use_count is -1"),
    ({"use_count": True}, "use_count is True"),
    ({"helped": -0.5}, "helped is -0.5, must be a number of 0 or more"),
    ({"hurt": float("inf")}, "hurt is inf"),
    ({"episode": 1.5}, "episode is 1.5, must be an integer"),
    ({"created": float("nan")}, "created is nan"),
  ],
)
def test_errors_say_what_was_seen(changes, message):
  with pytest.raises(Pi0RagError, match=message):
    Record(**fields(**changes))


def test_provenance_is_what_json_gives_back():
  provenance = {"source": "expert", "pose": (1, 2)}
  record = Record(**fields(provenance=provenance))
  provenance["source"] = "human"
  assert record.provenance == {"source": "expert", "pose": [1, 2]}


def test_header_rejects_bad_fields():
  good = {"key_dim": 2, "action_horizon": 1, "action_dim": 2, "encoder": "e", "policy": "p"}
  assert Header(**good).chunk_shape == (1, 2)
  for change, message in (
    ({"key_dim": 0}, "key_dim is 0"),
    ({"action_dim": 2.5}, "action_dim is 2.5"),
    ({"encoder": ""}, "encoder is ''"),
    ({"chunk_dtype": "bfloat16"}, "chunk_dtype is 'bfloat16', allowed: float16, float32"),
    ({"key_dim": 1 << 40}, "key_dim is 1099511627776, must be an integer of 1 or more, at most 1048576"),
    ({"start": "draw"}, "start is 'draw', allowed: 'zero', 'draw:<seed>' or 'new'"),
    ({"start": 0}, "start is 0, allowed"),
    ({"actions": None}, "actions is None, must be a string"),
  ):
    with pytest.raises(Pi0RagError, match=message):
      Header(**(good | change))


def test_header_names_every_difference():
  header = Header(2, 1, 2, "prefix", "p")
  message = (r"key_dim is 3, the memory has 2 \(another size of keys\); encoder is 'siglip', the memory has 'prefix' "
             r"\(another key recipe\). .*another directory for a new memory")
  with pytest.raises(Pi0RagError, match=message):
    header.require(Header(3, 1, 2, "siglip", "p"), "here")
  with pytest.raises(Pi0RagError, match=r"start is 'draw:3', the memory has 'zero' \(another start of the flow\)"):
    header.require(dataclasses.replace(header, start="draw:3"), "here")


def test_an_action_space_that_is_not_recorded_fits_any():
  header = Header(2, 1, 2, "prefix", "p", actions="arm")
  header.require(dataclasses.replace(header, actions=""), "here")
  dataclasses.replace(header, actions="").require(header, "here")
  with pytest.raises(Pi0RagError, match=r"actions is 'base', the memory has 'arm' \(another action space\)"):
    header.require(dataclasses.replace(header, actions="base"), "here")


def test_records_must_fit_the_header(make_record, header):
  check_records([make_record()], header)
  with pytest.raises(Pi0RagError, match=r"record 1: key has 5 dims, the memory holds 4 \(encoder 'test'\)"):
    check_records([make_record(), make_record(dim=5)], header)
  with pytest.raises(Pi0RagError, match=r"record 0: chunks are \(2, 2\), the memory holds \(3, 2\)"):
    check_records([make_record(chunk=(2, 2))], header)
  with pytest.raises(Pi0RagError, match="item 0 is a dict"):
    check_records([{}], header)
