"""The fleet's kill test tells what was lost, is there twice, or was never written."""

import dataclasses
import json

import pytest

from eval import fleet_durability
from pi0rag_jax.memory import Memory


@pytest.fixture
def memory(tmp_path):
  with Memory.open(tmp_path, **dataclasses.asdict(fleet_durability.HEADER)) as opened:
    yield opened


def teach(memory, robot, number, token=None):
  return memory.add(fleet_durability.batch(robot, number), token=token or f"{robot} {number}")


def test_a_whole_memory_has_no_problems(memory, tmp_path):
  acknowledged = {robot: {number: teach(memory, robot, number) for number in range(3)} for robot in range(2)}
  assert fleet_durability.check(tmp_path, acknowledged, whole=True) == []
  teach(memory, 1, 3)
  assert fleet_durability.check(tmp_path, acknowledged, whole=False) == []
  assert fleet_durability.check(tmp_path, acknowledged, whole=True) == [
    "[3] of robot 1 are there and were not acknowledged"]


def test_what_is_lost_twice_or_another_is_named(memory, tmp_path):
  acknowledged = {0: {0: teach(memory, 0, 0), 1: [77]}}
  told = fleet_durability.check(tmp_path, acknowledged, whole=True)
  assert told == ["1 of robot 0 was acknowledged as [77], found None"]
  del acknowledged[0][1]
  twice = acknowledged[0][0] + teach(memory, 0, 0, token="again")
  assert f"found {twice}" in fleet_durability.check(tmp_path, acknowledged, whole=True)[0]
  memory.remove(acknowledged[0][0])
  assert "ids have gaps" in fleet_durability.check(tmp_path, acknowledged, whole=True)


def test_two_states_differ_where_a_search_would(memory, tmp_path):
  teach(memory, 0, 0)
  with Memory.load(tmp_path) as other:
    assert fleet_durability.state(memory) == fleet_durability.state(other)
    memory.record_outcome([1], [0.5], success=True)
    assert fleet_durability.state(memory) != fleet_durability.state(other)


@pytest.mark.slow
def test_nothing_is_lost(postgres, tmp_path, capsys):
  asked = ["--kills=6", "--writers=2", "--readers=1", "--pause_s=0.05", f"--out={tmp_path / 'report.json'}"]
  assert fleet_durability.main(asked) == 0
  report = json.loads(capsys.readouterr().out)
  assert report == json.loads((tmp_path / "report.json").read_text())
  assert report["kills"] == {"server": 2, "writer": 2, "reader": 2} and report["episodes_acknowledged"] > 4
