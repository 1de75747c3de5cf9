"""The memory's page in Chromium: what a person sees and presses."""

import re

import pytest

from pi0rag_jax.memory.memory import Memory

from .test_memory_page import TOKEN, alone, folder, original  # noqa: F401


@pytest.fixture
def port(folder):  # noqa: F811
  with alone(folder) as get:
    yield get.port


def test_a_person_looks_undoes_and_deletes(tab, folder, port):  # noqa: F811
  tab.on("dialog", lambda dialog: dialog.accept())
  tab.goto(f"http://127.0.0.1:{port}/memory")
  tab.wait_for_selector("#key:not([hidden])")
  tab.fill("#token", TOKEN)
  tab.click("#key button")
  tab.wait_for_selector("#map circle")
  assert tab.locator("#records tr").count() == tab.locator("#map circle").count() == 3
  assert tab.locator("#episodes li").first.text_content().startswith("bwas helped or corrected")

  tab.click("#map circle[data-id='1']")
  tab.wait_for_selector("#neighbours tr")
  assert tab.locator("#neighbours tr td:first-child").all_text_contents() == ["2", "3"]
  assert "human" in tab.text_content("#detail") and tab.locator("#records tr.chosen").get_attribute("data-id") == "1"

  tab.click("#episodes li[data-episode='b'] button:has-text('undo')")
  tab.wait_for_selector("#records tr[data-id='3']", state="detached")
  tab.click("#records tr[data-id='2'] input")
  tab.click("#forget")
  tab.wait_for_selector("#records tr[data-id='2']", state="detached")
  assert re.match(r"1\D", tab.locator("#facts dd").first.text_content() + " ")
  assert tab.is_hidden("#trouble")
  with Memory.load(folder) as memory:
    assert [identity for identity, _ in memory.records()] == [1]


def test_a_key_that_is_wrong_is_told(tab, port):
  tab.goto(f"http://127.0.0.1:{port}/memory#token=wrong")
  tab.wait_for_selector("#trouble:has-text('asks for its token')")
  assert tab.url.endswith("/memory") and tab.is_visible("#key")
