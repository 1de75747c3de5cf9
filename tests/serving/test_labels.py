"""Labels: what people say afterwards of a moment, as records over the wire, from the log or from what was kept."""

import contextlib
import importlib.metadata
import pathlib
import shutil

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import lessons
from pi0rag_jax.memory import backup, forgetting
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.survey import Survey
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.serving import client, episode_log
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.memory_page import FileChanges, MemoryPage, PageServer
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer, reserve

from .conftest import HOST, PROMPT, live_through, running
from .test_memory_page import ask

CHUNK = lessons.straight(np.array([0.08, -0.04, 0.0, 0.0, 1.0]), ACTIONS, 16)


def labelled(teachable, tick=4, chunk=CHUNK, episode="a"):
  answer = teachable.session().infer({"episode": {"label": {"episode": episode, "tick": tick, "chunk": chunk}}})
  (identity,) = answer["episode"]["records"]
  return identity, teachable._memory.get([identity])[0]


def test_a_label_is_a_correction_of_its_decision_once(taught, observations):
  steps = episode_log.logged(taught.log.path, "a").steps
  before = len(taught._memory)
  identity, record = labelled(taught)
  assert (record.kind, record.outcome, record.task, record.prompt) == ("correction", "failure", "pick", "move")
  assert record.failure_kind == "drop" and record.provenance == {
    "source": "human", "episode": "a", "robot": "r 1", "tick": 4, "labelled": "afterwards",
    "version": importlib.metadata.version("pi0rag-jax")}
  np.testing.assert_array_equal(record.key, steps[1].key_E)
  np.testing.assert_array_equal(record.base_chunk, steps[1].base_TA.astype(np.float16))
  np.testing.assert_array_equal(record.corrected_chunk, CHUNK.astype(np.float16))
  _, decision = taught.agent.session().answer({**observations[1], "prompt": "move"})
  assert identity in decision.ids_BK[0]  # robots have it at their next decision
  assert labelled(taught)[0] == identity and len(taught._memory) == before + 1
  assert labelled(taught, chunk=CHUNK / 2)[0] == identity + 1
  taught.forget([identity])
  assert labelled(taught)[0] == identity + 2  # forgotten, it may be said again


def test_what_was_kept_gives_the_same_record(taught, tmp_path, monkeypatch):
  identity, wanted = labelled(taught)
  taught.forget([identity])
  monkeypatch.setattr(taught.labels, "_log", tmp_path / "none")
  found = labelled(taught)[1]
  for name in ("key", "base_chunk", "corrected_chunk"):
    np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
  assert (found.provenance, found.task, found.prompt, found.failure_kind) == (
    wanted.provenance, wanted.task, wanted.prompt, wanted.failure_kind)


def test_an_episode_is_taken_back_with_its_labels(taught, observations, tmp_path, monkeypatch):
  memory = taught._memory
  before = memory.episodes, len(memory), memory.tokens()
  live_through(taught, observations, "d", {"success": True})
  ids = memory.of_episode("d") + [labelled(taught, tick, episode="d")[0] for tick in (0, 4)]
  assert taught.labels.moments("d")["moments"][1] == [4, "policy"]
  assert taught.undo("d") == {"id": "d", "forgotten": ids} and len(ids) == 6
  assert (memory.episodes, len(memory), memory.tokens()) == before
  with pytest.raises(Pi0RagError, match="was not taught the episode 'd'"):
    labelled(taught, episode="d")
  monkeypatch.setattr(taught.labels, "_log", tmp_path / "none")
  with pytest.raises(Pi0RagError, match="the episode 'd' any more, and it was not kept"):
    taught.labels.moments("d")


@pytest.mark.parametrize(("label", "message"), [
  ({"episode": "zebra"}, "was not taught the episode 'zebra'"), ({"episode": "c"}, "it is still under way"),
  ({"tick": 5}, "nothing was decided at tick 5 of the episode 'a': its 4 decisions are at 0 to 12"),
  ({"tick": 8}, "at tick 8 of the episode 'a' human acted"),
  ({"chunk": CHUNK[:3]}, r"has shape \[3, 5\], allowed: numbers \[16, 5\]"), ({"chunk": "far"}, r"has shape \[0\]"),
  ({"chunk": CHUNK * np.nan}, "entry 0 of the action at frame 0 is nan"),
  ({"chunk": CHUNK * 9}, "the label at tick 4 of the episode 'a': entry 0 .* takes -0.015 to 0.015"),
  ({"tick": "4"}, "Expected `int`"), ({"when": 3}, "unknown field `when`"),
])
def test_what_is_wrong_with_a_label_is_said(taught, label, message):
  before = len(taught._memory)
  with pytest.raises(Pi0RagError, match=message):
    taught.session().infer({"episode": {"label": {"episode": "a", "tick": 4, "chunk": CHUNK} | label}})
  assert len(taught._memory) == before


def test_people_see_a_labelled_failure_as_corrected(taught, observations):
  survey = Survey(taught._memory._store.path.parent)
  ends = lambda: {row["name"]: (row["end"], row["labels"]) for row in survey.episodes()["episodes"]}  # noqa: E731
  live_through(taught, observations, "f", {"success": False})
  assert ends()["f"] == ("failed", 0)
  labelled(taught, episode="b"), labelled(taught, episode="f")
  assert ends() == {"a": ("helped", 0), "b": ("alone", 1), "f": ("helped", 1)}
  assert survey.records(episode="f")["records"][0]["labelled"] == "afterwards"


def test_without_a_policy_it_takes_the_log(taught, tmp_path):
  memory_dir = backup.backup(taught.log.path.parent, tmp_path / "memory")
  log = shutil.copy(taught.log.path, memory_dir)
  changes = FileChanges(str(memory_dir), str(taught.keeper.folder))
  label = changes.labels.gesture("a", 4, [0.08, -0.04, 0.0, 0.0, 1.0])
  assert changes.labels.moments("a")["moments"] == [[0, "policy"], [4, "policy"], [8, "human"], [12, "policy"]]
  (identity,) = changes.label(label)["records"]
  with Memory.load(memory_dir, read_only=False) as memory:
    assert forgetting.forget(memory, [identity]) == [identity]
  pathlib.Path(log).write_text("")
  for again in (lambda: changes.labels.moments("a"), lambda: changes.label(label)):
    with pytest.raises(Pi0RagError, match="knows nothing of the episode 'a' any more, and no policy is here"):
      again()


def test_the_client_labels_over_a_socket(taught):
  with running(WebsocketPolicyServer(taught, HOST, admission=PROMPT)) as server, contextlib.closing(
      client.TeachingClient(HOST, server.port)) as robot:
    (identity,) = robot.label("a", 4, CHUNK)["records"]
    with pytest.raises(client.ServerError, match="human acted"):
      robot.label("a", 8, CHUNK)
    assert robot.forget([identity])["forgotten"] == [identity]


@contextlib.contextmanager
def page_of(teachable, token="s3cret"):
  """Serves the memory's page beside a policy; yields the port."""
  admission = Admission(token=token)
  with contextlib.closing(MemoryPage(str(teachable.log.path.parent), admission, changes=teachable,
                                     episodes=str(teachable.keeper.folder))) as page:
    reserved = reserve(HOST, 0)
    with running(PageServer(page, admission, reserved)):
      yield reserved.getsockname()[1]


@pytest.mark.parametrize(("query", "status", "words"), [
  ("episode=a&tick=4&gesture=0.1,0,0,0,x", 400, "a gesture is numbers"),
  ("episode=a&tick=4&gesture=0.1,0,0", 409, "a gesture has 5 numbers, one for each entry of the action, got 3"),
  ("episode=a&tick=4&gesture=inf,0,0,0,0", 409, "entry 0 of the gesture is inf"),
  ("episode=a&tick=-4&gesture=0,0,0,0,0", 400, "tick is no number"),
  ("episode=a&tick=8&gesture=0,0,0,0,0", 409, "human acted"), ("tick=8&gesture=0,0,0,0,0", 409, "not taught")])
def test_what_the_page_refuses(taught, query, status, words):
  before = len(taught._memory)
  with page_of(taught) as port:
    found, said = ask(port, f"/memory/label?{query}")
    assert (found, len(taught._memory)) == (status, before) and words in said["error"]
    assert ask(port, f"/memory/label?{query}", {})[0] == 401
