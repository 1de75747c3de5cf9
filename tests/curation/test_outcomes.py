"""The log of outcomes: what was done elsewhere does not count, what was cut off is gone, what is there stays."""

import pytest

from pi0rag_jax.curation.outcomes import OutcomeLog
from pi0rag_jax.errors import Pi0RagError

FACTS = {"policy": "p", "task": "stacking", "condition": "nominal", "stochastic": False}


def test_an_outcome_counts_for_the_same_policy_and_place_alone(tmp_path):
  path = tmp_path / "log" / "kept.jsonl"
  with OutcomeLog(path, FACTS) as log:
    log.append(1, "success", ticks=30)
  for name, other in (("policy", "q"), ("task", "pouring"), ("condition", "camera_shift"), ("stochastic", True)):
    with OutcomeLog(path, FACTS | {name: other}) as log:
      assert log.outcomes == {}
      log.append(1, "failure")
  with OutcomeLog(path, FACTS) as log:
    assert log.outcomes == {1: "success"}
  assert len(path.read_text().splitlines()) == 5


def test_a_line_that_was_cut_off_is_removed(tmp_path):
  path = tmp_path / "kept.jsonl"
  with OutcomeLog(path, FACTS) as log:
    log.append(1, "success")
  whole = path.read_text()
  path.write_text(whole + whole[:20])
  with OutcomeLog(path, FACTS) as log:
    assert log.outcomes == {1: "success"}
    log.append(2, "failure")
  with OutcomeLog(path, FACTS) as log:
    assert log.outcomes == {1: "success", 2: "failure"}


def test_mistakes_are_named(tmp_path):
  path = tmp_path / "kept.jsonl"
  with OutcomeLog(path, FACTS), pytest.raises(Pi0RagError, match=r"kept.jsonl' is being written by another process"):
    OutcomeLog(path, FACTS)
  path.write_text('{"seed": 1, "outcome": "success"}\n[1]\n')
  with pytest.raises(Pi0RagError, match=r"kept.jsonl', line 2, is no outcome of an episode .*remove the line"):
    OutcomeLog(path, FACTS)
