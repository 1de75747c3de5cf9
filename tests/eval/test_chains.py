"""Chains: resumed where they were killed, counted as CALVIN does, by an expert, a policy, and one that is taught."""

import dataclasses
import json
import pathlib
import shutil
import types

import pytest

from eval import chain_summary, chains
from eval.progress import SweepProgress
from eval.records import STAGES, EpisodeRecord, RecordLog
from eval.stream import Cell
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.sim.calvin import world as play_table
from pi0rag_jax.sim.calvin.world import FAMILY
from pi0rag_jax.worlds import registry

FLAGS = {"world": "calvin", "options": "", "condition": "nominal", "tasks": [], "policy": "expert", "memory": "",
         "memory_credentials": None, "steering": "residual", "start": "", "teach": False, "corrected_max": 9,
         "chains": 2, "seed": 390_000, "slots": 2, "processes": 0, "name": ""}

def run(out, **changes):
  chains.run(types.SimpleNamespace(**{**FLAGS, "out": str(out), **changes}))
  return json.loads((out / "summary.json").read_text())["rows"]


@pytest.fixture
def policy(tiny_policy_dir, tmp_path):
  """A policy that may work at the play table, where it does nothing of use; tasks have little time."""
  folder = shutil.copytree(tiny_policy_dir, tmp_path / "tiny")
  spec, _ = directory.describe(str(folder))
  dataclasses.replace(spec, tasks=("open_drawer",), execute_steps=8).save(folder)
  return str(folder)


def record(seed, stages, *, task="chain", policy="p", **changes):
  outcome = "success" if stages == 5 else "failure"
  values = {"outcome": outcome, "steps": 100, "extra": {STAGES: stages}, **changes}
  return EpisodeRecord("eval", policy, task, "nominal", "", seed, seed, **values)


def test_the_expert_does_five_in_a_row_and_goes_on_after_a_kill(tmp_path, monkeypatch):
  run(tmp_path / "a", chains=1)
  made = []
  monkeypatch.setattr(chains.registry, "make_world", lambda config: made.append(config) or FAMILY.make(config))
  (row,) = run(tmp_path / "a", chains=2)
  assert (row["policy"], row["n"], row["average_length"], row["successes"]) == ("expert", 2, 5.0, [2] * 5)
  assert row["average_length_interval_95"][1] == 5.0 and 1.5 < row["average_length_interval_95"][0] < 2.5
  assert sum(count["tried"] for count in row["by_task"].values()) == 10
  run(tmp_path / "a", chains=2)
  assert len(made) == 1  # nothing was left to do
  (other,) = run(tmp_path / "b", chains=2)
  assert other == row
  with pytest.raises(Pi0RagError, match="first_seed was 390000, is 390001"):
    run(tmp_path / "a", seed=390_001)


def test_a_chain_ends_at_its_first_failure_and_tells_which():
  found = [record(3, 5), record(4, 2), record(5, 0), record(6, 1, outcome="crashed")]
  (row,) = chain_summary.summarize(found, FAMILY, ["chain"])
  assert (row["n"], row["crashed"], row["average_length"]) == (3, 1, round(7 / 3, 4))
  assert row["successes"] == [2, 2, 1, 1, 1]
  assert sum(count["failed"] for count in row["by_task"].values()) == 2
  assert row["by_task"][FAMILY.asks("chain", 4)[2]]["failed"] >= 1
  assert "2.33 of 5 tasks in a row" in chain_summary.in_words(row)


def test_tasks_of_their_own_scenes_follow_each_other(tmp_path):
  family, asked = registry.family("libero"), []

  def runner(task, seeds):
    asked.append((task, list(seeds)))
    for seed in seeds:
      yield record(seed, 5 if (seed, task) != (8, "libero_10/1") else 0, task=task, extra={})

  tasks, cell = chains.legs("libero", family, [])[:3], Cell("eval", "p", "libero_10/0", "nominal")
  with RecordLog(tmp_path / "records.jsonl") as log, SweepProgress() as progress:
    log.append(record(7, 5, task="libero_10/0", extra={}))
    chains.run_chains(log, cell, tasks, range(7, 10), runner, progress)
    (row,) = chain_summary.summarize(log.records, family, tasks)
  assert asked == [("libero_10/0", [8, 9]), ("libero_10/1", [7, 8, 9]), ("libero_10/2", [7, 9])]
  assert (row["n"], row["tasks_per_chain"], row["successes"]) == (3, 3, [3, 2, 2])
  assert len(chains.legs("libero", family, [])) == 10
  with pytest.raises(Pi0RagError, match="has no chains of its own"):
    chains.legs("panda", registry.family("panda"), [])
  with pytest.raises(Pi0RagError, match="unknown task"):
    chains.legs("panda", registry.family("panda"), ["fly"])


@pytest.mark.slow
def test_a_policy_alone_and_one_that_is_taught(tmp_path, policy, monkeypatch):
  monkeypatch.setattr(play_table, "TIME_LIMIT", 60)
  (alone,) = run(tmp_path / "out", policy=policy)
  assert (alone["policy"], alone["n"], alone["average_length"], alone["corrected"]) == ("tiny", 2, 0.0, 0)
  memory = str(tmp_path / "memory")
  rows = run(tmp_path / "out", policy=policy, memory=memory, teach=True)
  taught = rows[1]
  assert [row["policy"] for row in rows] == ["tiny", "tiny_taught"]
  # What the expert does after it took over is not the policy's.
  assert (taught["n"], taught["average_length"], taught["corrected"]) == (2, 0.0, 2)
  assert taught["memory_records"] > 10
  prompts = {one.prompt for _, one in _open(memory, policy)}
  assert len(prompts) > 2  # each record has that of its task
  again = run(tmp_path / "out", policy=policy, memory=memory, teach=True)
  assert again == rows
  frozen = run(tmp_path / "out", policy=policy, memory=memory)[2]
  assert (frozen["policy"], frozen["memory_records"]) == ("tiny_memory", taught["memory_records"])
  with pytest.raises(Pi0RagError, match="--teach needs"):
    run(tmp_path / "out", teach=True)


def _open(memory: str, policy: str):
  loaded = directory.load(policy, start="zero")
  with Memory.open(pathlib.Path(memory), **loaded.memory_header(), create=False, read_only=True) as opened:
    return list(opened.records())
