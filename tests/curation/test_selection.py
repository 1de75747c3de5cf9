"""Selections: both files give back what went in, the view holds the kept episodes and no others."""

import judged
import numpy as np
import pytest

from pi0rag_jax.curation import selection
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.errors import Pi0RagError

KEPT = np.array([True, False, False, True, True])


def make_selection(path, kept_J=KEPT) -> Selection:
  return Selection(str(path), np.linspace(0, 1, len(kept_J)), kept_J, 0.5, "fixed", {"classifier": "step_mlp"})


def test_text_is_demo_scores_and_leaves_out_a_data_set_without_a_kept_episode(tmp_path):
  file = tmp_path / "kept.txt"
  none = make_selection("/data/none", np.zeros(3, bool))
  selection.write_text(file, [make_selection("/data/a"), none, make_selection("/data/with space")])
  assert file.read_text() == "/data/a 0,3,4\n/data/with space 0,3,4\n"
  assert selection.read_text(file) == {"/data/a": (0, 3, 4), "/data/with space": (0, 3, 4)}


def test_json_keeps_every_score_and_how_the_choice_was_made(tmp_path):
  before = Selection("/data/a", np.array([0.25, np.nan, 1.0]), np.array([False, False, True]), 0.5, "roc", {"n": 3})
  selection.write_json(tmp_path / "s.json", [before, make_selection("/data/b")])
  after, other = selection.read_json(tmp_path / "s.json")
  np.testing.assert_array_equal(after.scores_J, before.scores_J)
  np.testing.assert_array_equal(after.kept_J, before.kept_J)
  assert (after.path, after.threshold, after.rule, after.details) == ("/data/a", 0.5, "roc", {"n": 3})
  np.testing.assert_array_equal(other.kept_J, KEPT)


@pytest.mark.parametrize("name", ["s.json", "s.txt"])
def test_a_file_chooses_from_the_data_set_that_it_names(tmp_path, name, monkeypatch):
  dataset = judged.write(tmp_path / "data")
  monkeypatch.chdir(tmp_path)
  write = selection.write_text if name.endswith(".txt") else selection.write_json
  write(name, [make_selection("data"), make_selection("/elsewhere")])
  assert selection.choose(dataset, name).episodes.tolist() == [0, 3, 4]
  other = judged.write(tmp_path / "other")
  with pytest.raises(Pi0RagError, match=r"keeps nothing of '.*other'; the data sets in it: '.*data', '/elsewhere'"):
    selection.choose(other, name)


def test_the_fingerprint_is_of_what_is_kept():
  other = make_selection("data", ~KEPT)
  same = Selection(make_selection("data").path, np.zeros(5), KEPT, 0.1, "roc")
  found = [selection.fingerprint(each) for each in ([make_selection("data")], [same], [other], [make_selection("b")])]
  assert found[0] == found[1] and len(set(found)) == 3
  pair = [make_selection("data"), make_selection("b")]
  assert selection.fingerprint(pair) == selection.fingerprint(pair[::-1])


def test_mistakes_are_named(tmp_path):
  dataset = judged.write(tmp_path / "data")
  with pytest.raises(Pi0RagError, match=r"has scores \(2,\) and bool\(3,\)"):
    Selection("a", np.zeros(2), np.zeros(3, bool), 0.0, "fixed")
  broken = tmp_path / "s.txt"
  for text, message in (("data\n", "expected `path ep,ep,ep`"), ("a 1\na 2\n", "line 2: .* 'a' came before"),
                        (f"{dataset.path} 3,9\n", "keeps episodes 3 to 9 of .* which has 0 to 4")):
    broken.write_text(text)
    with pytest.raises(Pi0RagError, match=message):
      selection.choose(dataset, broken)
  broken = tmp_path / "s.json"
  for text, message in (("{", "no selections .*train.curate writes them"),
                        ('{"version": 9}', "has version 9, read is 1"),
                        ('{"version": 1, "selections": [{"path": "a", "rule": "fixed", "threshold": 1, "details": {}, '
                         '"kept": [2], "scores": [0.5, null]}]}', "keeps episode 2 of 'a', which has scores of 0 to 1"),
                        ):
    broken.write_text(text)
    with pytest.raises(Pi0RagError, match=message):
      selection.read_json(broken)
  with pytest.raises(Pi0RagError, match="No such file"):
    selection.read_json(tmp_path / "none.json")
  with pytest.raises(Pi0RagError, match="what JSON cannot"):
    selection.write_json(tmp_path / "x.json", [Selection("a", np.zeros(1), np.ones(1, bool), np.inf, "fixed")])
