"""What people are told of a memory, from its file alone."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, survey
from pi0rag_jax.memory.survey import Survey


@pytest.fixture
def taught(open_memory, make_record):
  """A memory of four episodes: one that succeeded, one that was helped, one in vain, one whose records went."""
  memory = open_memory()

  def told(name, *rows):
    return [make_record(x, kind, outcome=outcome, task="pick", provenance={
      "source": source, "episode": name, "robot": "r", "tick": tick}) for x, kind, outcome, source, tick in rows]

  memory.add(told("a", *((x, ANCHOR, "success", "policy", 8 * x) for x in range(3))), token="episode a",
             outcomes=[([], [], True)])
  memory.add(told("b", (10, ANCHOR, "success", "policy", 0), (11, "correction", "failure", "human", 8),
                  (12, "correction", "success", "human", 16), (13, ANCHOR, "success", "policy", 24)),
             token="episode b", outcomes=[([1, 2], [1.0, 0.5], False)])
  memory.add([], token="episode c", outcomes=[([1], [0.25], True)])
  memory.remove(memory.add(told("d", (20, ANCHOR, "success", "policy", 0)), token="episode d"))
  memory.record_use([1, 1, 2])
  memory.flush()
  return memory


def surveyed(memory):
  return Survey(memory._store.path.parent)


def test_overview(taught):
  found = surveyed(taught).overview()
  assert (found["records"], found["episodes"], found["successes"]) == (7, 3, 2)
  assert (found["helpful"], found["harmful"], found["used"]) == (0, 2, 2)
  assert found["groups"]["kind"] == [("anchor", 5), ("correction", 2)] and found["header"]["key_dim"] == 4
  ends = [next(end for end in survey.ENDS if point[end]) for point in found["series"]]
  assert ends == ["alone", "helped", "failed", "unknown"]
  assert [point["episode"] for point in found["series"]] == [1, 2, 3, 4]


def test_episodes_say_who_acted_when(taught):
  found = {episode["name"]: episode for episode in surveyed(taught).episodes()["episodes"]}
  assert list(found) == ["d", "c", "b", "a"]
  # The moment before a take-over is labelled by who took over, but the policy acted.
  assert found["b"]["acted"] == [(0, "policy"), (16, "human"), (24, "policy"), (24, "")]
  assert (found["b"]["records"], found["b"]["corrections"], found["b"]["robot"]) == (4, 2, "r")
  assert found["a"]["undoable"] and not found["c"]["undoable"] and found["a"]["hurt"] == 1.5


def test_records_by_kind_episode_and_usefulness(taught, monkeypatch):
  found = surveyed(taught)
  assert [row["id"] for row in found.records(kind="correction")["records"]] == [6, 5]
  assert [row["id"] for row in found.records(episode="a", sort="hurt")["records"]] == [1, 2, 3]
  assert found.records(task="pour")["total"] == 0 and found.records(sort="used")["records"][0]["use_count"] == 2
  monkeypatch.setattr(survey, "RECORDS_PER_PAGE", 3)
  page = found.records(page=2)
  assert (page["total"], [row["id"] for row in page["records"]]) == (7, [1])
  with pytest.raises(Pi0RagError, match="unknown order 'best'"):
    found.records(sort="best")
  with pytest.raises(Pi0RagError, match="unknown kind 'x'"):
    found.records(kind="x")


def test_a_record_with_its_neighbours(taught, monkeypatch):
  monkeypatch.setattr(survey, "_KEYS_AT_A_TIME", 2)
  monkeypatch.setattr(survey, "NEIGHBOURS", 3)
  found = surveyed(taught).record(2)
  assert [(row["id"], row["distance"]) for row in found["neighbours"]] == [(1, 1.0), (3, 1.0), (4, 9.0)]
  assert found["base"] == [[1.0, 1.0]] * 3 and found["corrected"] == [[2.0, 2.0]] * 3
  with pytest.raises(Pi0RagError, match="there is no record 99"):
    surveyed(taught).record(99)


def test_a_map_keeps_distances_along_the_main_axis(taught, monkeypatch):
  found = surveyed(taught)
  points = {point["id"]: point["x"] for point in found.map()["points"]}
  np.testing.assert_allclose([points[i] - points[1] for i in (2, 3, 5)], [1, 2, 11], atol=1e-4)
  monkeypatch.setattr(survey, "MAP_POINTS", 2)
  few = found.map(chosen=5)
  assert few["total"] == 7 and [point["id"] for point in few["points"]] == [1, 5, 7]
  assert found.map(kind="failure") == {"total": 0, "explained": [0.0, 0.0], "points": []}


def test_it_follows_a_memory_that_is_written(taught, make_record):
  found = surveyed(taught)
  assert found.episodes()["total"] == 4
  taught.add([make_record(5.0)], token="episode e")
  assert found.episodes()["total"] == 5 and found.overview()["records"] == 8


@pytest.mark.parametrize("version", [1, 2])
def test_older_files(open_memory, make_record, older, tmp_path, version):
  with open_memory() as memory:
    memory.add([make_record(1.0, provenance={"source": "expert", "seed": 3, "tick": 0})], token="s: 3")
  older(tmp_path / "memory", version)
  found = Survey(tmp_path / "memory")
  assert found.overview()["records"] == 1 and found.episodes()["episodes"][0]["name"] == "seed 3"
  assert found.records()["records"][0]["helped"] == 0 and found.record(1)["neighbours"] == []


def test_an_empty_memory(open_memory):
  found = surveyed(open_memory())
  assert found.overview()["series"] == [] and found.episodes()["episodes"] == found.map()["points"] == []


def test_no_memory(tmp_path):
  with pytest.raises(Pi0RagError, match="no memory in"):
    Survey(tmp_path)
