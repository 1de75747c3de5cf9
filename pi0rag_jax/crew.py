"""Jobs that are carried out here, or on the machines of a Ray cluster; their results come back one by one.

An actor is made once, with all that takes long to load, and carries out one job after the other. It goes on with a job
only when its last result has been dealt with, so that a result which is on disk here was never overtaken by what came
of it there. An actor that dies costs what it was doing: its job begins anew, with what is left of it, in another one.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

from pi0rag_jax import cluster
from pi0rag_jax.cluster import Machines
from pi0rag_jax.errors import Pi0RagError

ATTEMPTS = 3  # of a job whose actors die without a result
_LOOK_S = 5.0  # how often new nodes are looked for
OVER = object()  # in the place of a result: the job is done


class Work(Protocol):
  """What an actor is made of."""

  def __call__(self, job: Any, /) -> Iterable[Any]:
    """Carries out a job, and yields its results."""
    ...

  def close(self) -> None:
    """Ends what it began."""
    ...


@dataclasses.dataclass(eq=False)
class _Job:
  key: Any
  name: str
  build: Callable[[], Any]
  rank: tuple
  likes: str
  losses: int = 0  # of actors, since its last result


def _rank(job: _Job) -> tuple:
  return job.rank


class Jobs(Protocol):
  """Where jobs are carried out."""

  def give(self, key: Any, build: Callable[[], Any], *, name: str = "", rank: tuple = (), likes: str = "") -> None:
    """Puts a job into the queue.

    Args:
      key: of its results.
      build: returns what there is to do as the job begins, also anew; None where nothing is left of it.
      name: for people.
      rank: jobs of a lower one come first.
      likes: what an actor still has from a job that liked the same.
    """
    ...

  def results(self) -> Generator[tuple[Any, str, Any]]:
    """Yields (key, node, result), OVER at the end of each job, until no job is left; more may be given meanwhile."""
    ...


class Here:
  """Carries out jobs one after the other in this process."""

  def __init__(self, make: Callable[[], Work]):
    self._make = make
    self._queue: list[_Job] = []

  def give(self, key: Any, build: Callable[[], Any], *, name: str = "", rank: tuple = (), likes: str = "") -> None:
    """See Jobs."""
    self._queue.append(_Job(key, name, build, rank, likes))

  def results(self) -> Generator[tuple[Any, str, Any]]:
    """See Jobs."""
    work: Work | None = None
    try:
      while self._queue:
        job = min(self._queue, key=_rank)
        self._queue.remove(job)
        if (argument := job.build()) is not None:
          work = work or self._make()
          yield from ((job.key, "", result) for result in work(argument))
        yield job.key, "", OVER
    finally:
      if work is not None:
        work.close()


@contextlib.contextmanager
def crew(make: Callable[[], Work], machines: Machines, *, shared: pathlib.Path | None = None,
         note: Callable[[str], None] = print) -> Iterator[Jobs]:
  """Yields what carries out jobs.

  Args:
    make: makes what carries out a job, once in each actor; it is pickled, and so are jobs and results.
    shared: a folder that every node must see as this one does, with its locks.
    note: is told of nodes and of actors that died.
  Errors: Pi0RagError where there is no Ray or no such cluster; later, where a node has other code or packages, or does
    not see the folder.
  """
  if machines.address is None:
    yield Here(make)
    return
  with cluster.connected(machines.address), cluster.marked(shared) as marker:
    found = Crew(make, machines.cpus, marker, note)
    try:
      yield found
    finally:
      found.close()


def spread(work: Callable[[Any], Any], jobs: Iterable[tuple[str, Any]], machines: Machines, *,
           shared: pathlib.Path | None = None, note: Callable[[str], None] = print) -> Iterator[Any]:
  """Yields what some work makes of each (name, job), as it is done; see `crew`.

  Work that writes a file in the shared folder writes the same one again if it is done twice.
  """
  with crew(functools.partial(_Once, work), machines, shared=shared, note=note) as hands:
    for number, (name, job) in enumerate(jobs):
      hands.give(number, lambda job=job: job, name=name, rank=(number,))
    yield from (result for _, _, result in hands.results() if result is not OVER)


@dataclasses.dataclass(frozen=True)
class _Once:
  """Work whose every job has one result."""

  function: Callable[[Any], Any]

  def __call__(self, job: Any) -> Iterator[Any]:
    yield self.function(job)

  def close(self) -> None:
    """See Work."""


class _Hand:
  """What an actor is."""

  def __init__(self, make: Callable[[], Work], folder: str):
    self._make, self._folder = make, folder
    self._work: Work | None = None
    self._results: Iterator[Any] = iter(())

  def check(self, wanted: dict[str, str], marker: tuple[pathlib.Path, str] | None) -> tuple[str, str]:
    """Returns (the id of this node, why it cannot be used: '' if it can)."""
    import ray

    return ray.get_runtime_context().get_node_id(), self._trouble(wanted, marker)

  def _trouble(self, wanted: dict[str, str], marker: tuple[pathlib.Path, str] | None) -> str:
    if os.path.isdir(self._folder):  # relative paths are the driver's
      os.chdir(self._folder)
    mine = cluster.facts()
    for name, value in wanted.items():
      if mine.get(name, value) != value:
        return f"has {name} {mine[name]}, the machine that drives it {value}: install the same on all nodes"
    return cluster.trouble_with(*marker) if marker else ""

  def take(self, *job: Any) -> tuple[str, Any]:
    """Returns ('result', the next one), ('over', None) or ('error', a user's mistake), of a new job if one is given."""
    try:
      if job:
        self._work = self._work or self._make()
        self._results = iter(self._work(job[0]))
      for result in self._results:
        return "result", result
    except Pi0RagError as error:
      return "error", str(error)
    return "over", None


@dataclasses.dataclass
class _Actor:
  handle: Any
  began: float
  node: str = ""
  job: _Job | None = None
  has: str = ""  # what its last job liked
  ready: bool = False


class Crew:
  """Carries out jobs by actors of the cluster that this process is connected to; see `crew`."""

  def __init__(self, make: Callable[[], Work], cpus: int, marker: tuple[pathlib.Path, str] | None,
               note: Callable[[str], None]):
    import ray

    self._ray, self._cpus, self._marker, self._note = ray, cpus, marker, note
    # Ray sets the threads of numpy and FAISS to an actor's CPUs, and with them how sums are rounded.
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    self._gpus = 1 if ray.cluster_resources().get("GPU") else 0
    self._new = ray.remote(_Hand).options(
      num_cpus=cpus, num_gpus=self._gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD",
      runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "RAY_USAGE_STATS_ENABLED": "0"}})
    self._arguments, self._facts = (make, os.getcwd()), cluster.facts()
    self._queue: list[_Job] = []
    self._actors: list[_Actor] = []
    self._waited: dict[Any, _Actor] = {}  # by the reference of its answer
    self._lost_at_start = 0
    self._alive, self._node_died = {node["NodeID"] for node in self._nodes()}, 0.0
    if not self._room():
      raise Pi0RagError(f"no node of the cluster has {cpus} CPUs{' and a GPU' * self._gpus}: use fewer with --ray_cpus")
    self._names: dict[str, str] = {}
    note(f"Ray: {self._room()} actors on {', '.join(sorted(self._name(n['NodeID']) for n in self._nodes()))}")

  def give(self, key: Any, build: Callable[[], Any], *, name: str = "", rank: tuple = (), likes: str = "") -> None:
    """See Jobs."""
    self._queue.append(_Job(key, name, build, rank, likes))

  def results(self) -> Generator[tuple[Any, str, Any]]:
    """See Jobs."""
    while self._queue or any(actor.job for actor in self._actors):
      yield from self._assign()
      if not self._queue and not self._waited:
        continue
      self._fill()
      if not self._waited:  # no node is left: others may come
        time.sleep(_LOOK_S)
        continue
      ready, _ = self._ray.wait(list(self._waited), num_returns=1, timeout=_LOOK_S)
      for reference in ready:
        yield from self._answered(self._waited.pop(reference), reference)

  def close(self) -> None:
    """Ends the actors."""
    for actor in self._actors:
      self._ray.kill(actor.handle)
    self._actors.clear()

  def _nodes(self) -> list[dict]:
    return [node for node in self._ray.nodes() if node["Alive"]]

  def _room(self) -> int:
    """Returns how many actors the nodes have room for."""
    kinds = [("CPU", self._cpus), ("GPU", self._gpus)]
    return sum(min(int(node["Resources"].get(kind, 0) // need) for kind, need in kinds if need)
               for node in self._nodes())

  def _name(self, node_id: str) -> str:
    """Returns what people call a node: its host, and a part of its id where a host has several."""
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in self._ray.nodes()}
    if node_id not in self._names:
      host = hosts.get(node_id, "?")
      self._names[node_id] = host if list(hosts.values()).count(host) < 2 else f"{host}:{node_id[:4]}"
    return self._names[node_id]

  def _fill(self) -> None:
    """Makes as many actors as there is room and work for."""
    wanted = len(self._queue) + sum(actor.job is not None for actor in self._actors)
    while len(self._actors) < min(wanted, self._room()):
      actor = _Actor(self._new.remote(*self._arguments), time.monotonic())
      self._actors.append(actor)
      self._waited[actor.handle.check.remote(self._facts, self._marker)] = actor

  def _assign(self) -> Iterator[tuple[Any, str, Any]]:
    """Gives jobs to the actors that have none; yields those of which nothing is left."""
    for job in sorted(self._queue, key=_rank):
      idle = [actor for actor in self._actors if actor.ready and actor.job is None]
      if not idle:
        return
      self._queue.remove(job)
      argument = job.build()
      if argument is None:
        yield job.key, "", OVER
        continue
      actor = max(idle, key=lambda one: one.has == job.likes)
      actor.job, actor.has = job, job.likes
      self._waited[actor.handle.take.remote(argument)] = actor

  def _answered(self, actor: _Actor, reference) -> Iterator[tuple[Any, str, Any]]:
    """Deals with what an actor answered, or with its death."""
    errors = self._ray.exceptions
    try:
      answer = self._ray.get(reference)
    except errors.RayTaskError:
      raise
    except errors.RayError as error:
      self._lost(actor, error)
      return
    if not actor.ready:
      self._started(actor, *answer)
      return
    assert actor.job is not None
    kind, value = answer
    if kind == "error":
      raise Pi0RagError(value)
    job = actor.job
    job.losses = 0
    if kind == "over":
      actor.job = None
      yield job.key, actor.node, OVER
    else:
      yield job.key, actor.node, value
      self._waited[actor.handle.take.remote()] = actor  # what came has been dealt with

  def _started(self, actor: _Actor, node_id: str, trouble: str) -> None:
    actor.node, actor.ready, self._lost_at_start = self._name(node_id), True, 0
    if trouble:
      raise Pi0RagError(f"the node {actor.node} {trouble}")

  def _lost(self, actor: _Actor, error: Exception) -> None:
    """Gives up an actor, and those of its node that are idle: they may be gone too. Its job is among the next ones."""
    why, job = _why(error), actor.job
    for one in [one for one in self._actors if one is actor or (one.ready and not one.job and one.node == actor.node)]:
      self._ray.kill(one.handle)
      self._actors.remove(one)
    counts = 0 if self._died_with_its_node(actor) else 1
    if job is None:
      self._lost_at_start += counts
      if self._lost_at_start >= ATTEMPTS:
        raise Pi0RagError(f"{ATTEMPTS} of Ray's actors ended as they started: {why}")
      return
    job.losses += counts
    if job.losses >= ATTEMPTS:
      raise Pi0RagError(f"'{job.name}' ended {ATTEMPTS} actors without a result, the last on {actor.node}: {why}")
    self._note(f"an actor on {actor.node} was lost; '{job.name}' goes on in another one")
    self._queue.append(job)

  def _died_with_its_node(self, actor: _Actor) -> bool:
    """Returns whether a node has died since an actor began, which is no fault of what it did."""
    alive = {node["NodeID"] for node in self._nodes()}
    if self._alive - alive:
      self._node_died = time.monotonic()
    self._alive = alive
    return actor.began < self._node_died


def _why(error: Exception) -> str:
  """Returns why an actor died, in one line. Errors: Pi0RagError where its node lacks something."""
  text = str(error)
  if missing := re.search(r"ModuleNotFoundError: (.*)", text):
    raise Pi0RagError(f"a node of the cluster lacks a module ({missing[1]}): install this project, and what it needs, "
                      "on all of them")
  return " ".join(text.split("\n\n")[0].split())
