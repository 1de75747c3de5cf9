"""The memory's page in Chromium: what a person sees and presses."""

import re

import numpy as np
import pytest

from pi0rag_jax.memory.memory import Memory

from .test_labels import page_of
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


def test_a_person_labels_a_moment_in_a_browser(tab, taught):
  memory = taught._memory
  before = memory.of_episode("a")
  with page_of(taught) as port:
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.goto(f"http://127.0.0.1:{port}/memory#token=s3cret")
    tab.click("#episodes li[data-episode='a'] button:has-text('label')")
    tab.wait_for_selector("#moment-is:has-text('tick 0): policy acted')")
    tab.locator("#at").fill("2")
    tab.wait_for_selector("#moment-is:has-text('tick 8): human acted, which is not labelled')")
    assert tab.is_disabled("#teach")
    tab.locator("#at").fill("1")
    tab.wait_for_selector("#teach:enabled")
    assert tab.locator("#moment-pictures img").count() == 2
    box = tab.locator("#pad").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(*middle)
    tab.mouse.down()
    tab.mouse.move(middle[0] + box["width"] / 11, middle[1] - box["height"] / 11 * 2)  # 2 of 22, and 4 up
    tab.mouse.up()
    tab.fill("input[type=number][data-entry='2']", "-0.03")
    tab.locator("input[type=range][data-entry='4']").fill("0.25")
    tab.click("#teach")
    tab.wait_for_selector("#taught:has-text('of tick 4')")
    (identity,) = set(memory.of_episode("a")) - set(before)
    (record,) = memory.get([identity])
    # To the right is y, away from the camera is -x; the pad's edge at 100 is what the robot moves in a chunk, 0.24 m.
    np.testing.assert_allclose(record.corrected_chunk[:, :3].sum(axis=0), [-0.096, 0.048, -0.03], atol=0.003)
    np.testing.assert_allclose(record.corrected_chunk[:, 4], 0.25, atol=0.001)
    assert record.provenance["labelled"] == "afterwards" and record.provenance["tick"] == 4
    tab.click(f"#labels li[data-id='{identity}'] button")
    tab.wait_for_selector(f"#labels li[data-id='{identity}']", state="detached")
    assert memory.of_episode("a") == before and tab.is_hidden("#trouble")
