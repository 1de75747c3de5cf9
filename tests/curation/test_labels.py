"""Labels of success: from rewards, flags and files, unknown where nothing is said, and mistakes named."""

import json

import judged
import numpy as np
import pytest

from pi0rag_jax.curation import labels
from pi0rag_jax.errors import Pi0RagError

NAN = np.nan


def test_a_flag_of_the_episode_is_read(tmp_path):
  dataset = judged.write(tmp_path)
  for rule in ("flag", {"kind": "flag", "field": "success"}, labels.Rule()):
    np.testing.assert_array_equal(labels.success_of(dataset, rule=rule), [1, 0, 1, 0, 1])


def test_a_reward_counts_in_the_last_frame_or_in_any_and_has_to_be_above(tmp_path):
  dataset = judged.write(tmp_path, rewards=[[0, 0, 0, 4], [4], None, [0, NAN, 0, 0, 0, 0, NAN], [3.99] * 8])
  last = {"kind": "reward", "threshold": 3.99}
  np.testing.assert_array_equal(labels.success_of(dataset, rule=last), [1, 0, NAN, NAN, 0])
  found = labels.success_of(dataset, rule=last | {"frames": "any"})
  np.testing.assert_array_equal(found[[0, 1, 2, 4]], [1, 1, NAN, 0])


@pytest.mark.parametrize(("name", "text", "expected"), [
  ("labels.csv", "episode,success\n0,1\n3,false\n", [1, NAN, NAN, 0, NAN]),
  ("labels.csv", "1\n0\n\n1\n", [1, 0, 1, NAN, NAN]),
  ("labels.csv", "4, success\n1, failure\n2,\n", [NAN, 0, NAN, NAN, 1]),
  ("labels.json", json.dumps({"2": True, "4": None, "0": 0.0}), [0, NAN, 1, NAN, NAN]),
  ("labels.json", "[1, 0, null]", [1, 0, NAN, NAN, NAN]),
])
def test_a_file_labels_by_number_or_in_order(tmp_path, name, text, expected):
  dataset = judged.write(tmp_path / "data")
  file = tmp_path / name
  file.write_text(text)
  found = labels.success_of(dataset, rule={"kind": "file", "path": str(file)})
  np.testing.assert_array_equal(found, expected)


def test_a_file_is_looked_for_from_the_data_set_on(tmp_path, monkeypatch):
  for name, text in (("early", "0,1\n"), ("late", "0,0\n")):
    dataset = judged.write(tmp_path / name)
    (tmp_path / name / "labels.csv").write_text(text)
    found = labels.success_of(dataset, rule={"kind": "file", "path": "labels.csv"})
    assert found[0] == (name == "early")


def test_mistakes_are_named(tmp_path):
  dataset = judged.write(tmp_path / "data")
  file = tmp_path / "labels.csv"
  file.write_text("7,1\n")
  for rule, message in (
    ("luck", "unknown rule for success 'luck'"),
    ({"kind": "flag", "fields": "x"}, "unknown field of a rule for success 'fields'. Did you mean 'field'"),
    ({"kind": "file"}, "'file' needs one"),
    ({"kind": "reward", "frames": "first"}, "unknown choice of frames 'first'"),
    ("reward", r"no episode of .* has a reward \(next.reward, rewards, reward\); its fields: .*success"),
    ({"kind": "flag", "field": "prompt"}, "the field 'prompt' is no number: 'pick up the cube'"),
    ({"kind": "file", "path": str(file)}, "labels episode 7, .* has 0 to 4"),
    ({"kind": "file", "path": str(tmp_path / "none.csv")}, "cannot be read"),
  ):
    with pytest.raises(Pi0RagError, match=message):
      labels.success_of(dataset, rule=rule)
  file.write_text("0,2\n")
  with pytest.raises(Pi0RagError, match=r"the label '2' is neither 1 nor 0"):
    labels.read_labels(file)
