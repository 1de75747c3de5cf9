"""What a sweep fits to its frozen memories, kept beside them: a resumed sweep fits nothing again."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.plan import Evaluate, Place, Pool, Step, Stream
from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import fits
from pi0rag_jax.learning.fits import Inverted
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.fit import UNFITTED, Fit
from pi0rag_jax.worlds import replay
from pi0rag_jax.worlds.batch import BatchEnv

EXECUTED_NAME = "executed.jsonl"  # what the episodes of all streams did
FOLDER = "fits"
_TABLE = "noise.npz"  # of a stream, as far as it was asked for


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a fit cost, and how good it is."""

  stream: str
  stream_episodes: int
  method: str  # that it is for
  records: int
  seconds: float  # of fitting, after the records' noise was found
  inversion_seconds: float  # of finding it, without the simulation
  bytes: int
  loss: float | None  # mean squared error of a network over its records
  inversion_error: float | None  # median over the records, see Inverted


class Fits:
  """The fits of one sweep."""

  def __init__(self, out: pathlib.Path, policy: Policy, new_env: Callable[[Place], BatchEnv]):
    self._out, self._policy, self._new_env = out, policy, new_env

  def of(self, source: Stream | Pool, after: int, rule: rules.SteeringConfig, memory: Memory) -> Fit:
    """Returns what a rule needs of a frozen memory, which has records.

    Errors: Pi0RagError where the episodes of its records cannot be seen again, which noise takes.
    """
    if not rules.is_fitted(rule):
      return UNFITTED
    path = path_of(self._out, source, after, rule)
    if not path.exists():
      fit, facts = self._fitted(source, after, rule, memory)
      files.write_json(path.with_suffix(".json"), dataclasses.asdict(facts))
      fit.save(path)
    return Fit.load(path)

  def _fitted(self, source: Stream | Pool, after: int, rule: rules.SteeringConfig, memory: Memory) -> tuple[Fit, Facts]:
    records = {number: record for number, record in memory.records() if record.kind in fits.KINDS}
    table, inversion_seconds = {}, 0.0
    if rules.asks_for_noise(rule):
      table, inversion_seconds = self._noise(source, list(records.values()))
      records = {number: record for number, record in records.items() if fits.identity(record) in table}
    noise = {name: found.noise_TX for name, found in table.items()}
    chosen, episodes = list(records.values()), after * (len(source.streams) if isinstance(source, Pool) else 1)
    began, loss = time.monotonic(), None
    if rule.method == "noise_network":
      network, loss = fits.noise_network(chosen, noise, episodes=episodes, seed=rule.seed)
      fit = Fit(network=network)
    elif rule.method == "residual_network":
      network, loss = fits.residual_network(chosen, self._policy, episodes=episodes, seed=rule.seed)
      fit = Fit(network=network)
    else:
      fit = Fit(noise={number: noise[fits.identity(record)] for number, record in records.items()})
    errors = [table[fits.identity(record)].error for record in chosen] if table else []
    return fit, Facts(source.name, after, rule.method, len(chosen), round(time.monotonic() - began, 3),
                      round(inversion_seconds, 3), fit.nbytes, loss, float(np.median(errors)) if errors else None)

  def _noise(self, source: Stream | Pool, records: Sequence[Record]) -> tuple[dict[str, Inverted], float]:
    """Returns (the noise of records by their identity, the seconds that it took to find)."""
    table: dict[str, Inverted] = {}
    seconds = 0.0
    for stream in source.streams if isinstance(source, Pool) else (source,):
      here = [record for record in records if record.task == stream.place.task
              and record.provenance.get("condition") == stream.place.condition
              and record.provenance.get("seed") in stream.seeds]
      found, took = self._noise_of(stream, here)
      table |= found
      seconds += took
    if not table:
      raise Pi0RagError(f"none of the episodes of '{source.name}' is in {self._out / EXECUTED_NAME}: a version before "
                        "this one ran it, or somebody went back in time in it. Use another --out")
    return table, seconds

  def _noise_of(self, stream: Stream, records: Sequence[Record]) -> tuple[dict[str, Inverted], float]:
    path = self._out / FOLDER / stream.directory / _TABLE
    table = _load_table(path)
    missing = [record for record in records if fits.identity(record) not in table]
    episodes = self._episodes(stream)
    seeds = dict.fromkeys(record.provenance["seed"] for record in missing)
    wanted = [episodes[seed] for seed in seeds if seed in episodes]
    if not wanted:
      return table, 0.0
    with self._new_env(stream.place) as env:
      seen = _Timed(replay.replay(env, wanted))
      began = time.monotonic()
      table |= fits.invert(self._policy, missing, seen)
    _save_table(path, table)
    return table, time.monotonic() - began - seen.seconds

  def _episodes(self, stream: Stream) -> Mapping[int, replay.Executed]:
    path = self._out / EXECUTED_NAME
    if not path.exists():
      return {}
    return {seed: episode for (name, seed), episode in replay.read(path).items() if name == stream.name}


class _Timed:
  """An iterator and how long it was waited for."""

  def __init__(self, items: Iterator[Any]):
    self._items, self.seconds = items, 0.0

  def __iter__(self) -> Iterator[Any]:
    return self

  def __next__(self):
    began = time.monotonic()
    try:
      return next(self._items)
    finally:
      self.seconds += time.monotonic() - began


def facts(out: pathlib.Path, steps: Iterable[Step]) -> list[dict[str, Any]]:
  """Returns what each policy's fits cost: `policy` and the fields of Facts."""
  found = []
  for step in steps:
    if not isinstance(step, Evaluate) or step.stream is None:
      continue
    for method in step.methods:
      path = path_of(out, step.stream, step.after, rules.preset(method.steering or "residual")).with_suffix(".json")
      if method.steering and path.exists():
        found.append({"policy": method.name, **schema.read(path, dict[str, Any])})
  return list({(one["policy"], one["stream"], one["stream_episodes"]): one for one in found}.values())


def path_of(out: pathlib.Path, source: Stream | Pool, after: int, rule: rules.SteeringConfig) -> pathlib.Path:
  """Returns the file of what a rule has fitted to a memory."""
  return out / FOLDER / f"{source.directory}-{after}" / f"{rule.method}.npz"


def _load_table(path: pathlib.Path) -> dict[str, Inverted]:
  if not path.exists():
    return {}
  with np.load(path, allow_pickle=False) as file:
    names, noise_MTX, error_M = (file[name] for name in ("names_M", "noise_MTX", "error_M"))
  return {name: Inverted(noise_TX, error) for name, noise_TX, error
          in zip(names.tolist(), noise_MTX, error_M.tolist())}


def _save_table(path: pathlib.Path, table: Mapping[str, Inverted]) -> None:
  arrays: dict[str, Any] = {"names_M": np.array(list(table)),
                            "noise_MTX": np.stack([one.noise_TX for one in table.values()]),
                            "error_M": np.array([one.error for one in table.values()])}
  files.write(path, lambda file: np.savez(file, **arrays))
