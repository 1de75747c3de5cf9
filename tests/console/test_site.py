"""The console's page: who is let in, what it is told, and what it may say."""

import contextlib
import http.client
import json
import types

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pi0rag_jax.console.site import MAX_VIEWERS, WIRE, ConsoleSite, beside
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.setting import Told
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving.websocket_server import reserve

HOST = "127.0.0.1"
FACTS = {"world": "panda", "task": "pick", "condition": "camera_shift", "condition_says": "knocked", "policy": "small",
         "memory": "http://127.0.0.1:1/memory", "expert": True, "turns": True}


@pytest.fixture(scope="module")
def site():
  operator = Operator(expert=True)
  made = ConsoleSite(operator, FACTS, lambda raw: raw["image"], films=True)
  reserved = reserve(HOST, 0)
  with beside(lambda ready: made.run(reserved, ready)):
    yield types.SimpleNamespace(site=made, operator=operator, port=reserved.getsockname()[1])


def opened(site, **headers):
  origin = headers.pop("origin", f"http://{HOST}:{site.port}")
  return connect(f"ws://{HOST}:{site.port}{WIRE}", origin=origin, additional_headers=headers, compression=None)


def loop(**changes):
  films = []
  driver = types.SimpleNamespace(film=lambda size: films.append(size) or np.zeros((size, size, 3), np.uint8))
  seen = {"image": {"front": np.full((4, 4, 3), 0.5, np.float32)}, "prompt": "pick it up"}
  return types.SimpleNamespace(**{
    "driver": driver, "seen": seen, "by": "human", "waiting": False, "surest": {}, "moment": 1, "films": films,
    "episodes": [Told(1, 7, "a", acted=[["policy", 3]])]} | changes)


def test_the_page_is_whole_and_for_this_machine_only(site):
  for path, host, status in (("/", "127.0.0.1", 200), ("/", "localhost", 200), ("/", "evil.example", 403),
                             ("/x", "127.0.0.1", 404)):
    plain = http.client.HTTPConnection(HOST, site.port, timeout=10)
    plain.request("GET", path, headers={"Host": f"{host}:{site.port}"})
    answer = plain.getresponse()
    text = answer.read().decode()
    assert answer.status == status
    assert ("Let the expert help" in text and "camera_shift: knocked" in text) is (status == 200)


@pytest.mark.parametrize("origin", ["http://evil.example", None])
def test_other_pages_cannot_drive(site, origin):
  with pytest.raises(InvalidStatus):
    opened(site, origin=origin)


def test_pictures_come_and_keys_go(site):
  with opened(site) as page:
    page.recv()
    shown = loop()
    for _ in range(2):
      site.site.show(shown)
    told = json.loads(page.recv())
    assert told["picture"].startswith("data:image/jpeg") and told["cameras"]["front"].startswith("data:image/jpeg")
    assert (told["by"], told["prompt"], told["episodes"][0]["acted"]) == ("human", "pick it up", [["policy", 3]])
    assert len(shown.films) == 1, "one picture of a moment"
    page.send(json.dumps({"press": "next", "auto": True}))
    site.operator.wait(5.0) if not site.operator.pressed else None
    assert site.operator.take() == "next" and site.operator.auto
  for _ in range(100):
    if not site.operator.auto:
      break
    site.operator.wait(0.05)
  assert not site.operator.auto, "nobody looks any more"


@pytest.mark.parametrize("message", ["x", "[]", '{"press": "all"}', "[" * 1000, b"\x00"])
def test_a_message_that_is_none_ends_the_page(site, message):
  with opened(site) as page:
    page.recv()
    page.send(message)
    with pytest.raises(ConnectionClosed):
      page.recv(timeout=10)
  assert not site.operator.pressed


def test_pages_are_bounded(site):
  with contextlib.ExitStack() as pages:
    for _ in range(MAX_VIEWERS):
      pages.enter_context(opened(site)).recv()
    with pytest.raises(InvalidStatus):
      opened(site)


def test_a_server_that_cannot_start_says_so():
  async def broken(ready):
    raise Pi0RagError("no port")

  with pytest.raises(Pi0RagError, match="no port"), beside(broken):
    pass
