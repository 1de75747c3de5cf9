"""Memories of several robots as one: what is there twice, what contradicts, what is counted."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import merge
from pi0rag_jax.learning.conflicts import in_words
from pi0rag_jax.memory import Memory, Record
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.robots.panda import ACTIONS

HEADER = {"key_dim": 2, "action_horizon": 4, "action_dim": 5, "encoder": "e", "policy": "p",
          "actions": ACTIONS.fingerprint}


def record(key, moved, episode="e", kind="correction", created=1.0, task="pick", **fields):
  """Returns a record that asks for so much more x per tick, m."""
  chunk_TA = np.zeros((4, 5), np.float32)
  better_TA = chunk_TA.copy()
  better_TA[:, 0] = moved
  return Record(np.float32([key, 0]), chunk_TA, better_TA, kind, "success", task=task, created=created,
                provenance={"source": "human", "episode": episode, "tick": 0}, **fields)


@pytest.fixture
def memories(tmp_path):
  """Returns memories("name", {token: records}): their folders."""
  def make(name, batches, outcomes=()):
    with Memory.open(tmp_path / name, **HEADER) as memory:
      for token, records in batches.items():
        memory.add(records, token=token, outcomes=outcomes)
    return tmp_path / name

  return make


def said(folder):
  with Memory.load(folder) as memory:
    return [(r.key[0], r.provenance["episode"], r.provenance["memory"], r.helped, r.episode)
            for _, r in memory.records()], memory.tokens(), (memory.episodes, memory.successes)


def test_the_union_has_everything_once_and_counts_on(memories, tmp_path):
  shared = record(5, 0.001, "s", created=5)
  a = memories("a", {"episode a": [record(0, 0.001, "a", created=2, helped=1.5)], "episode s": [shared]},
               outcomes=[([], [], True)])
  b = memories("b", {"episode b": [record(9, 0.001, "b")], "episode s": [shared]}, outcomes=[([], [], False)])
  done = merge.merge(tmp_path / "out", [a, b], space=ACTIONS, unit=1.0)
  assert (done.records, done.duplicates, done.conflicts, done.renamed) == (3, 1, [], {})
  records, tokens, clock = said(tmp_path / "out")
  # By time; as old on the new clock as on their own.
  assert records == [(9, "b", "b", 0, 3), (0, "a", "a", 1.5, 3), (5, "s", "a", 0, 4)]
  assert sorted(tokens) == ["episode a", "episode b", "episode s"] and clock == (4, 2)
  again = merge.merge(tmp_path / "again", [tmp_path / "out", a], space=ACTIONS, unit=1.0)
  assert (again.records, again.duplicates) == (3, 2)


def test_episodes_of_one_name_stay_apart(memories, tmp_path):
  a, b = (memories(name, {"episode e": [record(key, 0.001)]}) for name, key in (("a", 0), ("b", 7)))
  done = merge.merge(tmp_path / "out", [a, b], space=ACTIONS, unit=1.0)
  assert list(done.renamed.values()) == ["episode e (b)"]
  records, tokens, _ = said(tmp_path / "out")
  assert [episode for _, episode, *_ in records] == ["e", "e (b)"] and tokens == ["episode e", "episode e (b)"]


@pytest.mark.parametrize(("other", "conflicts"), [
  (record(0.5, -0.01, "f", created=2), 1),  # 4 cm against -4 cm, on average half of it
  (record(0.5, 0.009, "f", created=2), 0),  # nearly the same
  (record(2.0, -0.01, "f", created=2), 0),  # somewhere else
  (record(0.5, -0.01, "f", created=2, task="pour"), 0),
  (record(0.5, -0.01, "f", created=2, kind="anchor"), 0),
  (dataclasses.replace(record(0.5, -0.01, "f", created=2), base_chunk=np.full((4, 5), 0.02)), 0),  # another plan
])
def test_conflicts_are_corrections_of_one_situation_that_disagree(memories, tmp_path, other, conflicts):
  a, b = memories("a", {"a": [record(0, 0.01)]}), memories("b", {"b": [other]})
  done = merge.merge(tmp_path / "kept", [a, b], space=ACTIONS, unit=1.0)
  assert (done.records, len(done.conflicts)) == (2, conflicts)
  if not conflicts:
    return
  assert "task 'pick': record 1 of" in in_words(done.conflicts[0], [a, b])
  assert merge.merge(tmp_path / "newest", [b, a], space=ACTIONS, unit=1.0, conflicts="newest").dropped == 1
  assert [key for key, *_ in said(tmp_path / "newest")[0]] == [0.5]
  with pytest.raises(Pi0RagError, match="1 conflicts, the first: task 'pick'"):
    merge.merge(tmp_path / "refused", [a, b], space=ACTIONS, unit=1.0, conflicts="refuse")
  assert not (tmp_path / "refused").exists()


def test_the_command(memories, tmp_path, capsys):
  a = memories("a", {"a": [record(0, 0.01, "a"), record(5, 0.01, "c"), record(9, 0.01, "d")]})
  b = memories("b", {"b": [record(0.1, -0.01, "b")]})
  out = str(tmp_path / "out")
  assert main(["merge", out, str(a), str(b)]) == 0
  told = capsys.readouterr().out.splitlines()
  assert "contradicts record" in told[0] and told[-1] == (
    f"4 records in {out}; left out: 0 duplicates, 0 older ones of 1 conflicts")
  with Memory.open(tmp_path / "other", **{**HEADER, "policy": "q"}):
    pass
  for arguments, message in (([str(a)], "two memories or more"), ([str(a), str(a)], "named twice"),
                             ([str(a), str(tmp_path / "other")], "policy"), ([str(a), str(tmp_path)], "no memory in"),
                             ([str(a), str(b), "--capacity=2"], "exceed the capacity 2"),
                             ([str(a), str(b), "--conflicts=refuse"], "1 conflicts")):
    assert main(["merge", str(tmp_path / "new"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
