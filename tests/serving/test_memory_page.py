"""The memory's page over HTTP: what browsers are told, who may change it, and that nobody waits for it."""

import contextlib
import functools
import http.client
import json
import re
import shutil
import threading

import numpy as np
import pytest

from pi0rag_jax.data.recorder import EpisodeWriter
from pi0rag_jax.data.validation import Schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import forgetting
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.serving import memory_page
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.client import WebsocketClientPolicy
from pi0rag_jax.serving.memory_page import FileChanges, MemoryPage, PageServer
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer, reserve

from .conftest import HOST, Alone, running

TOKEN = "s3cret"
KEY = {"Authorization": f"Api-Key {TOKEN}"}
HEADER = {"key_dim": 2, "action_horizon": 2, "action_dim": 1, "encoder": "e", "policy": "p"}


def records(episode, *keys):
  return [Record(key, np.zeros((2, 1)), np.ones((2, 1)), "correction", "success", task="pick",
                 provenance={"source": "human", "episode": episode, "tick": tick})
          for tick, key in enumerate(np.array(keys, np.float32).reshape(-1, 1) + np.zeros(2))]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  folder = tmp_path_factory.mktemp("taught") / "memory"
  with Memory.open(folder, **HEADER) as memory:
    memory.add(records("a", 0, 1), token="episode a", outcomes=[([], [], False)])
    memory.add(records("b", 5), token="episode b", outcomes=[([], [], False)])
  return str(folder)


@pytest.fixture
def folder(original, tmp_path):
  return shutil.copytree(original, str(tmp_path / "memory"))


@pytest.fixture(scope="module")
def unchanged(original):
  """Asks the page of a memory that no test changes."""
  with alone(original) as get:
    yield get


@contextlib.contextmanager
def alone(folder, **options):
  """Serves the page alone, as `memory serve` does; yields a function that asks it."""
  admission = Admission(token=options.pop("token", TOKEN))
  with contextlib.closing(MemoryPage(folder, admission, changes=FileChanges(folder), **options)) as page:
    reserved = reserve(HOST, 0)
    port = reserved.getsockname()[1]
    with running(PageServer(page, admission, reserved)):
      get = functools.partial(ask, port)
      get.port = port
      yield get


def ask(port, path, headers=KEY):
  """Returns (status, what was said); text where it is no JSON."""
  plain = http.client.HTTPConnection(HOST, port, timeout=20)
  plain.request("GET", path, headers=headers)
  answer = plain.getresponse()
  body = answer.read().decode()
  return answer.status, json.loads(body) if answer.headers["Content-Type"] == "application/json" else body


def test_the_page_has_no_outside_address_and_no_data(unchanged):
  status, html = unchanged("/memory", {})
  assert status == 200 and "<script>" in html and "human" not in re.sub(r"<script>.*</script>", "", html, flags=re.S)
  assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
  assert unchanged("/", {})[0] == 302


def test_what_browsers_are_told(unchanged):
  def get(path):
    return unchanged(path)[1]

  assert get("/memory/overview")["records"] == 3
  assert [episode["name"] for episode in get("/memory/episodes")["episodes"]] == ["b", "a"]
  assert [row["id"] for row in get("/memory/records?episode=a&sort=oldest")["records"]] == [1, 2]
  assert get("/memory/records?task=")["total"] == 0
  assert [row["id"] for row in get("/memory/record?id=1")["neighbours"]] == [2, 3]
  assert len(get("/memory/map?kind=correction&id=2")["points"]) == 3


@pytest.mark.parametrize(("path", "headers", "status", "words"), [
  ("/memory/overview", {}, 401, "asks for its token"),
  ("/memory/forget?ids=1", {"Authorization": "Api-Key no"}, 401, "asks for its token"),
  ("/memory/overview", KEY | {"Origin": "http://evil.example"}, 403, "other web pages"),
  ("/memory/nothing", KEY, 404, "nothing of this name"),
  ("/memory/record?id=77", KEY, 409, "there is no record 77"),
  ("/memory/record?id=x", KEY, 400, "id is no number"),
  ("/memory/records?sort=best", KEY, 409, "unknown order 'best'"),
  ("/memory/records?page=99999999", KEY, 400, "page is no number that is allowed"),
  ("/memory/forget?ids=", KEY, 400, "1 to 500 ids"),
  ("/memory/forget?ids=1,99", KEY, 409, "there is no record 99 in <path>"),
  ("/memory/moments?episode=a", KEY, 409, "what the actions of this memory's robot mean"),
  ("/memory/undo?episode=zebra", KEY, 409, "no record comes of the episode 'zebra'"),
  ("/memory/records?" + "&".join(f"a{i}=1" for i in range(20)), KEY, 400, "cannot be understood"),
])
def test_what_is_refused(unchanged, original, path, headers, status, words):
  found, said = unchanged(path, headers)
  assert found == status and words in said["error"] and original not in said["error"]
  assert unchanged("/memory/overview")[1]["records"] == 3


def test_delete_and_undo(folder):
  with alone(folder) as get:
    assert get("/memory/undo?episode=b") == (200, {"id": "b", "forgotten": [3]})
    assert get("/memory/forget?ids=1") == (200, {"forgotten": [1]})
    found = get("/memory/overview")[1]
    assert (found["records"], found["episodes"]) == (1, 1) and found["read_only"] == ""
  with Memory.load(folder) as memory:
    assert [identity for identity, _ in memory.records()] == [2]


def test_without_a_token_it_only_reads_and_only_for_this_machine(folder):
  with alone(folder, token=None) as get:
    assert "read-only" in get("/memory/overview", {})[1]["read_only"]
    assert get("/memory/forget?ids=1", {})[0] == get("/memory/undo?episode=a", {})[0] == 403
    assert get("/memory/overview", {"Host": "rebound.example"})[0] == 403
  with alone(folder, token=None, host="0.0.0.0") as get:
    assert get("/memory", {})[0] == 403
  with pytest.raises(Pi0RagError, match="could read the memory: give a --token"):
    memory_page.run(folder, host="0.0.0.0")


def test_beside_a_writer_it_reads_and_changes_nothing(folder):
  with Memory.load(folder, read_only=False) as writer, alone(folder) as get:
    status, said = get("/memory/forget?ids=1")
    assert status == 409 and "in use for writing" in said["error"] and folder not in said["error"]
    writer.add(records("c", 9), token="episode c")
    assert get("/memory/overview")[1]["records"] == 4


class Waiting(Alone):
  """Infers until it is let go."""

  def __init__(self):
    self.asked, self.go = threading.Event(), threading.Event()

  def infer(self, observation):
    self.asked.set()
    assert self.go.wait(20)
    return {"actions": np.zeros((1, 1))}


class Learning:
  """The owner of a memory that is written, as `session.Teachable` is."""

  def __init__(self, memory):
    self._memory = memory

  def undo(self, name):
    return {"forgotten": forgetting.undo_episode(self._memory, name)}

  def forget(self, ids):
    return {"forgotten": forgetting.forget(self._memory, ids)}


def test_a_policy_server_shows_its_memory_during_an_inference_and_owns_the_changes(folder):
  policy, admission = Waiting(), Admission(token=TOKEN)
  with Memory.load(folder, read_only=False) as memory, contextlib.closing(
      MemoryPage(folder, admission, changes=Learning(memory), aside=True)) as page, running(
      WebsocketPolicyServer(policy, HOST, admission=admission, pages=[page])) as server:
    robot = WebsocketClientPolicy(HOST, server.port, TOKEN)
    asking = threading.Thread(target=robot.infer, args=[{"state": 1}])
    asking.start()
    try:
      assert policy.asked.wait(10)
      assert ask(server.port, "/memory/undo?episode=b") == (200, {"forgotten": [3]})
      assert ask(server.port, "/memory/overview")[1]["records"] == len(memory) == 2
      assert ask(server.port, "/memory/overview", {})[0] == 401
    finally:
      policy.go.set()
      asking.join()
      robot.close()


def test_a_crowd_is_turned_away(folder, monkeypatch):
  monkeypatch.setattr(memory_page, "MAX_WAITING", 0)
  with alone(folder) as get:
    assert get("/memory/overview") == (503, {"error": "too many ask at once: try again"})


def test_a_bug_is_not_shown(folder, monkeypatch, caplog):
  def broken(self):
    raise RuntimeError("at /home/me/x.py")

  monkeypatch.setattr(memory_page.Survey, "overview", broken)
  with alone(folder) as get:
    assert get("/memory/overview") == (500, {"error": "the page failed: the server's log says more"})
  assert "RuntimeError" in caplog.text and "/home/me" not in caplog.text


def test_pictures_of_kept_episodes(folder, tmp_path):
  with alone(folder, episodes=str(tmp_path / "kept")) as get:
    assert get("/memory/pictures?episode=a") == (200, {"moments": []})
    writer = EpisodeWriter(tmp_path / "kept", Schema(cameras={"front": (16, 16)}, state_dim=1, action_dim=1, fps=10))
    for tick in range(30):
      writer.add_frame(images={"front": np.full((16, 16, 3), tick, np.uint8)}, state=[0.0], action=[0.0],
                       time_s=tick / 10, by="human" if tick >= 20 else "policy")
    writer.save(prompt="pick", success=True, metadata={"episode": "a"})
    moments = get("/memory/pictures?episode=a")[1]["moments"]
    assert len(moments) == 10 and all(one["picture"].startswith("data:image/jpeg;base64,") for one in moments)
    assert (moments[0]["by"], moments[-1]["by"], moments[-1]["second"]) == ("policy", "human", 2.9)
    assert get("/memory/pictures?episode=b")[1]["moments"] == []


@pytest.mark.parametrize("arguments", [["--port=99999"], ["--port=x"]])
def test_the_command_refuses_what_is_no_port(folder, arguments, capsys):
  with pytest.raises(SystemExit) as ended:
    main(["serve", folder, *arguments])
  assert ended.value.code == 2 and "port" in capsys.readouterr().err


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
  assert main(["serve", str(tmp_path)]) == 2
  assert capsys.readouterr().err.count("\n") == 1
