"""Jobs on a cluster's actors, on one that is made up and answers at once; Ray itself is in tests/eval/test_ray.py."""

import pathlib
import sys

import pytest
from made_up_ray import MadeUpRay, RayError

from pi0rag_jax import cluster, crew
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.crew import OVER
from pi0rag_jax.errors import Pi0RagError


class Counting:
  """Work that counts up to a job's number, and notes what it was asked for."""

  asked: list

  def __init__(self):
    Counting.asked = []

  def __call__(self, job):
    if job < 0:
      raise Pi0RagError("a job is negative")
    for number in range(job):
      Counting.asked.append((job, number))
      yield number

  def close(self):
    Counting.asked.append("closed")


def test_here_jobs_follow_one_another_by_their_rank_and_more_may_come(tmp_path):
  with crew.crew(Counting, HERE) as hands:
    hands.give("b", lambda: 1, rank=(2,))
    hands.give("a", lambda: 2, rank=(1,))
    seen = []
    for key, _, result in hands.results():
      seen.append((key, "over" if result is OVER else result))
      if key == "a" and result is OVER:
        hands.give("nothing", lambda: None, rank=(0,))
  assert seen == [("a", 0), ("a", 1), ("a", "over"), ("nothing", "over"), ("b", 0), ("b", "over")]
  assert Counting.asked[-1] == "closed"


@pytest.fixture
def ray(made_up_ray):
  """A cluster of two nodes of one CPU each."""
  return made_up_ray(one=1, two=1)


def gathered(hands):
  return [(key, "over" if result is OVER else result) for key, _, result in hands.results()]


def test_on_a_cluster_each_job_gives_its_results_in_order_and_goes_on_once_they_were_dealt_with(ray):
  notes = []
  with crew.crew(Counting, Machines("local"), note=notes.append) as hands:
    hands.give("a", lambda: 3)
    hands.give("b", lambda: 2)
    seen = []
    for key, node, result in hands.results():
      seen.append((key, result))
      if result is not OVER:
        assert Counting.asked.count(({"a": 3, "b": 2}[key], result + 1)) == 0, "nobody has taken this one yet"
        assert node in ("one", "two")
  for key, count in (("a", 3), ("b", 2)):
    assert [result for name, result in seen if name == key] == [*range(count), OVER]
  assert notes == ["Ray: 2 actors on one, two"] and sorted(ray.taken) == ["one", "two"]


def test_a_job_whose_actor_died_begins_anew_with_what_is_left_of_it(ray):
  ray.dying, notes, logged = [False, False, True], [], []
  with crew.crew(Counting, Machines("local"), note=notes.append) as hands:
    hands.give("a", lambda: 3 - len(logged), name="the job")
    for _, _, result in hands.results():
      if result is not OVER:
        logged.append(result)
  assert logged == [0, 1, 0] and len(ray.taken) == 2
  assert notes[1:] == [f"an actor on {ray.taken[0]} was lost; 'the job' goes on in another one"]


def test_a_job_that_ends_its_actors_again_and_again_is_given_up(ray):
  ray.dying = [True] * 3
  with crew.crew(Counting, Machines("local"), note=lambda _: None) as hands:
    hands.give("a", lambda: 3, name="the job")
    with pytest.raises(Pi0RagError, match=r"^'the job' ended 3 actors without a result, the last on .*: the actor is "
                                          r"gone$"):
      gathered(hands)


def test_nodes_that_die_are_no_fault_of_the_job(ray):
  ray.hosts = MadeUpRay(**dict.fromkeys(("a", "b", "c", "d", "e"), 1)).hosts
  with crew.crew(Counting, Machines("local"), note=lambda _: None) as hands:
    def build():
      if len(ray.taken) < 5:  # it dies as soon as it has the job
        ray.hosts[ray.taken[-1]]["Alive"] = False
      return 1
    hands.give("x", build)
    assert gathered(hands) == [("x", 0), ("x", "over")]
  assert len(ray.taken) == 5


def test_idle_actors_of_a_node_that_lost_one_are_not_trusted(ray):
  ray.hosts = MadeUpRay(one=2).hosts
  with crew.crew(Counting, Machines("local"), note=lambda _: None) as hands:
    hands.give("short", lambda: 0, rank=(0,))
    hands.give("long", lambda: 2, rank=(1,))
    ray.dying = [False, False, True]
    assert ("long", "over") in gathered(hands)
  assert len(ray.taken) == 3


@pytest.mark.parametrize(("job", "mine", "message"), [
  (-1, {}, "^a job is negative$"),
  (1, {"numpy": "1.0"}, r"^the node (one|two) has numpy 2.*, the machine that drives it 1.0: install the same on all"),
])
def test_a_mistake_is_one_line(ray, monkeypatch, job, mine, message):
  with crew.crew(Counting, Machines("local"), note=lambda _: None) as hands:
    hands._facts = hands._facts | mine
    hands.give("a", lambda: job)
    with pytest.raises(Pi0RagError, match=message):
      gathered(hands)


def test_a_node_without_this_project_is_named(ray, monkeypatch):
  def check(*_):
    raise RayError("it died\n\nModuleNotFoundError: No module named 'eval'")
  monkeypatch.setattr(crew._Hand, "check", check)
  with crew.crew(Counting, Machines("local"), note=lambda _: None) as hands:
    hands.give("a", lambda: 1)
    with pytest.raises(Pi0RagError, match=r"a node of the cluster lacks a module .*'eval'.*: install this project"):
      gathered(hands)


def test_actors_that_no_node_has_cpus_for_are_refused(ray):
  with pytest.raises(Pi0RagError, match="no node of the cluster has 4 CPUs: use fewer with --ray_cpus"), crew.crew(
      Counting, Machines("local", cpus=4)):
    pass


def test_work_is_spread_over_a_cluster(ray):
  found = crew.spread(lambda job: job * job, [(str(n), n) for n in range(5)], Machines("local"), note=lambda _: None)
  assert sorted(found) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(("address", "message"), [
  ("somewhere", r"--ray=somewhere; allowed: 'auto', 'local', or the head's HOST:PORT"),
  ("ray://10.0.0.1:10001", "allowed: 'auto', 'local'"),
  ("127.0.0.1:9", "--ray=127.0.0.1:9: no cluster answers there .*; one begins with `ray start --head`"),
])
def test_a_cluster_that_is_not_there_is_told_in_one_line(ray, address, message):
  with pytest.raises(Pi0RagError, match=message), cluster.connected(address):
    pass


@pytest.mark.parametrize(("said", "message"), [
  ("Could not find any running Ray instance. Please", "this machine is no node of a running cluster"),
  ("Failed to connect to GCS: AuthenticationError: RPC error", "the cluster wants its token: copy ~/.ray/auth_token"),
  ("Version mismatch: The cluster was started with:\n Ray: 2.50", "another version: Version mismatch.* Ray: 2.50"),
])
def test_what_ray_says_is_told_in_one_line(ray, said, message):
  def init(**_):
    raise ConnectionError(said)
  ray.init = init
  with pytest.raises(Pi0RagError, match=f"--ray=auto: .*{message}"), cluster.connected("auto"):
    pass


def test_without_ray_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(Pi0RagError, match=r"--ray=local needs Ray.*pip install 'pi0rag-jax\[ray\]'"), crew.crew(
      Counting, Machines("local")):
    pass


def test_a_folder_that_nodes_do_not_share_is_told(tmp_path):
  with cluster.marked(tmp_path) as (path, text):
    assert cluster.trouble_with(path, text) == ""
    assert "sees another folder at" in cluster.trouble_with(path, "0" * 16)
    assert "does not see" in cluster.trouble_with(pathlib.Path("/nowhere/x"), text)
  assert list(tmp_path.iterdir()) == []
  path.write_text(text)
  assert "does not see the locks" in cluster.trouble_with(path, text)
