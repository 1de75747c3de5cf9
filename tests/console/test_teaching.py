"""The command: what it refuses, and a person who teaches in a browser."""

import queue
import threading
import types

import pytest

from pi0rag_jax.console import teaching
from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.serving.websocket_server import reserve
from pi0rag_jax.sim import teach


@pytest.mark.parametrize(("changes", "words"), [
  ({"policy": "aloha_small", "world": "aloha"}, "not available for the robot 'aloha'.*not displacements of the tool"),
  ({"world": "mars"}, "unknown world 'mars'"), ({"task": "juggling"}, "unknown task 'juggling'"),
  ({"condition": "fog"}, "unknown condition 'fog'"), ({"policy": "metaworld_small"}, "is for the robot 'metaworld'"),
  ({"task": "stacking"}, "was trained on pick_and_place, not on 'stacking'"),
])
def test_what_cannot_be_is_told_before_anything_runs(changes, words):
  asked = {"policy": "panda_small", "checkpoint": None, "world": "panda", "task": "", "condition": "nominal"} | changes
  with pytest.raises(Pi0RagError, match=words):
    teaching.plan(**asked)


def test_the_task_is_the_policys_own():
  found = teaching.plan("panda_small", None, "panda", "", "camera_shift")
  assert found.config.task == "pick_and_place" and {"Expert", "Rewinds", "Films"} <= set(found.abilities)
  assert teaching.facts(found, "http://x")["turns"]


def test_a_mistake_is_one_line_and_status_2(monkeypatch, capsys):
  values = types.SimpleNamespace(policy="panda_small", checkpoint=None, world="panda", task="", condition="fog",
                                 memory=None, seed=0, port=0)
  monkeypatch.setattr(teach.flags, "FLAGS", values)
  with pytest.raises(SystemExit) as ended:
    teach.main([])
  told = capsys.readouterr()
  assert ended.value.code == 2 and told.err.count("\n") == 1 and "unknown condition 'fog'" in told.err and not told.out


@pytest.mark.slow  # 10 s: episodes in real time
def test_a_person_teaches_in_a_browser(tab, tiny_policy_dir, tmp_path, monkeypatch):
  loops = []
  made = ControlLoop.__init__
  monkeypatch.setattr(ControlLoop, "__init__", lambda self, *given: (made(self, *given), loops.append(self))[0])
  addresses = queue.Queue()
  values = types.SimpleNamespace(
    policy=str(tiny_policy_dir), config=None, checkpoint=None, memory=str(tmp_path / "memory"), host="127.0.0.1",
    keep_episodes=None,
    key_name="", start=None,
    default_prompt=None, denoising_steps=None, weights=None, real_time=False)
  plan = teaching.plan(str(tiny_policy_dir), None, "panda", "", "nominal")
  console = threading.Thread(target=teaching.run, args=[plan, values, reserve("127.0.0.1", 0)],
                             kwargs={"token": "t", "seed": 100_000, "ready": addresses.put}, daemon=True)
  console.start()
  try:
    tab.add_init_script("window.pad = null; navigator.getGamepads = () => [window.pad]")
    tab.goto(addresses.get(timeout=120))
    tab.wait_for_selector("#over:has-text('to begin')")
    tab.keyboard.press("n")
    tab.wait_for_selector("#who:has-text('the policy acts')")
    tab.keyboard.down("w")
    tab.wait_for_selector("#who:has-text('you act')")
    tab.keyboard.press("Space")
    tab.wait_for_selector("#fingers:has-text('closed')")
    tab.keyboard.up("w")
    tab.keyboard.press("h")
    tab.wait_for_selector("#who:has-text('the policy acts')")
    tab.evaluate("() => { pad = {connected: true, axes: [0, 0, 0, -1], buttons: [{pressed: true}, {pressed: false}]} }")
    tab.wait_for_selector("#who:has-text('you act')")
    tab.evaluate("() => { pad = {connected: true, axes: [0, 0, 0, 0], buttons: [{pressed: false}, {pressed: true}]} }")
    tab.wait_for_selector("#who:has-text('the policy acts')")
    tab.click("#expert")
    tab.wait_for_selector("#over:has-text('Done, with help')", timeout=60_000)
    acted = [by for by, _ in loops[0].episodes[0].acted]
    assert acted[:2] == ["policy", "human"] and acted[-1] == "expert" and loops[0].episodes[0].taught > 0

    tab.click("#again")  # at the same start the memory has something to say
    tab.wait_for_selector("#episodes tr:nth-child(2)")
    tab.wait_for_selector("#memory-says:has-text('Now most of all record')")
    tab.click("#success")
    tab.wait_for_selector("#over:has-text('by itself')")
    with tab.context.browser.new_page() as memory:
      memory.goto(tab.get_attribute("#memory", "href"))
      memory.wait_for_selector("#episodes li:nth-child(2)")
    for _ in range(2):
      tab.click("#undo")
      tab.wait_for_selector("#episodes tr[data-outcome='taken back']")
    tab.wait_for_selector("#undo[disabled]")
  finally:
    for loop in loops:
      loop.stopping = True
    console.join(20)
  assert not console.is_alive()
  with Memory.load(tmp_path / "memory") as memory:
    assert len(memory) == memory.episodes == 0
