"""Corrections of one memory that contradict each other: which, whose, and how the command says so."""

import json

from pi0rag_jax.memory import Memory
from pi0rag_jax.memory.__main__ import main

from .test_merge import HEADER, memories, record  # noqa: F401


def test_the_command_names_who_disagrees(memories, capsys):  # noqa: F811
  def of(key, moved, episode, robot, teacher):
    made = record(key, moved, episode)
    made.provenance.update(robot=robot, teacher=teacher)
    return made

  far = [record(key, 0.01, "far") for key in (5, 9, 14, 20)]  # between most, the distance that units are of
  same_episode = [of(0, 0.01, "a", "r1", "ann"), of(0.1, -0.01, "a", "r1", "ann")]
  folder = memories("m", {"a": same_episode, "b": [of(0.2, -0.012, "b", "r2", "bob")], "far": far})
  assert main(["conflicts", str(folder)]) == 1
  told = capsys.readouterr().out.splitlines()
  origins = ("; 1: robot r1, teacher ann, source human, episode a, tick 0; 3: robot r2, teacher bob, source human, "
             "episode b, tick 0")
  assert told[0].startswith("task 'pick': record 3 contradicts record 1, 0.") and told[0].endswith(origins)
  assert told[1:] == [
    f"1 conflicts in {folder}; sides of them: 1 of robot r1, teacher ann, 1 of robot r2, teacher bob"]
  assert main(["conflicts", str(folder), "--json"]) == 1
  (found,) = json.loads(capsys.readouterr().out)
  assert [side["id"] for side in found["records"]] == [1, 3] and found["records"][1]["teacher"] == "bob"


def test_where_all_agree_there_are_none(memories, capsys):  # noqa: F811
  folder = memories("m", {"a": [record(0, 0.01, "a")], "b": [record(0.1, 0.0101, "b")]})
  assert main(["conflicts", str(folder)]) == 0
  assert capsys.readouterr().out == f"0 conflicts in {folder}\n"
  with Memory.open(folder.parent / "other", **{**HEADER, "actions": "unknown"}):
    pass
  assert main(["conflicts", str(folder.parent / "other")]) == 2
  assert "give --policy" in capsys.readouterr().err
