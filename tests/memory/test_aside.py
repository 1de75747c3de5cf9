"""A survey in another process says what one here does, and ends with who asked for it."""

import contextlib
import io
import json

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import aside
from pi0rag_jax.memory.aside import SurveyAside
from pi0rag_jax.memory.survey import Survey


@pytest.fixture
def folder(open_memory, make_record, tmp_path):
  with open_memory() as memory:
    memory.add([make_record(1.0), make_record(3.0)], token="episode a")
  return str(tmp_path / "memory")


def test_the_same_answers(folder):
  with contextlib.closing(SurveyAside(folder)) as asked:
    for name, values in (("overview", {}), ("records", {"sort": "used"}), ("record", {"identity": 2}), ("map", {})):
      assert asked.ask(name, **values) == json.loads(json.dumps(Survey(folder).ask(name, **values)))
    with pytest.raises(Pi0RagError, match="there is no record 9"):
      asked.ask("record", identity=9)
    with pytest.raises(Pi0RagError, match="unknown question 'close'"):
      asked.ask("close")
    first = asked._process
    first.kill()
    with pytest.raises(RuntimeError, match="has ended"):
      asked.ask("overview")
    assert asked.ask("overview")["records"] == 2, "another one is started"
    second = asked._process
  assert first.returncode is not None and second.returncode is not None


def test_a_bug_is_told_and_the_next_question_answered(folder, monkeypatch):
  monkeypatch.setattr(Survey, "overview", lambda self: 1 / 0)
  answers = io.StringIO()
  questions = io.StringIO('["overview", {}]\n["episodes", {"page": 0}]\n')
  aside.answer_all(Survey(folder), questions, answers)
  first, second = map(json.loads, answers.getvalue().splitlines())
  assert first == ["bug", "ZeroDivisionError: division by zero"] and second[1]["total"] == 1


def test_no_memory_is_told_at_once(tmp_path):
  with pytest.raises(Pi0RagError, match="no memory in"):
    SurveyAside(str(tmp_path))
