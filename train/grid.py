"""A search over the grid that a configuration spans: every field whose value is a list, nested ones too.

In a file, `with config.ignore_type(): config.learning_rate = [1e-3, 3e-4]`; on the command line, where a field keeps
its type, `--grid=learning_rate=1e-3,3e-4`. Tuples are ordinary values. Points are trained one after another, or on a
Ray cluster several at once, each in a folder of its own; `<workdir>/grid.json` says what came of them, and a search
that was stopped goes on from there. `tensorboard --logdir=<workdir>` shows all of them.
"""

import ast
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Column, Table

from pi0rag_jax import cli, crew, files, schema
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Config
from train import config_check, loop, metrics, parallel
from train.checkpoint import CheckpointStore

GRID_FILE = "grid.json"
MAX_NAME = 80  # characters of a point's folder
DONE, FAILED = "done", "failed"


class _Entry(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
  """What came of a point."""

  name: str
  point: dict[str, Any]
  status: Literal["done", "failed"] | None = None
  error: str | None = None
  score: float | None = None
  step: int | None = None
  validation: dict[str, float | None] | None = None


class _Grid(msgspec.Struct):
  points: list[_Entry]


Point = Mapping[str, Any]  # a value of every field that is searched over, by its dotted name


def lists(config: Config, inside: str = "") -> dict[str, list]:
  """Returns the values of every field that is a list, by its dotted name."""
  found = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      found |= lists(value, f"{inside}{name}.")
    elif isinstance(value, list):
      found[inside + name] = value
  return found


def with_values(config: Config, fields: Mapping[str, Any]) -> Config:
  """Returns a copy of the configuration with other values, of any type, of some fields by their dotted names."""
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    for path, value in fields.items():
      *above, name = path.split(".")
      holder = changed
      for part in above:
        holder = holder[part]
      with holder.ignore_type():
        holder[name] = value
  return changed.lock()


def with_lists(config: Config, texts: Sequence[str]) -> Config:
  """Returns the configuration with the lists of `--grid=NAME=VALUE,VALUE`."""
  return with_values(config, dict(read_list(config, text) for text in texts))


def read_list(config: Config, text: str) -> tuple[str, list]:
  """Returns (field, values) of "field=value,value"; values are Python's, words may go without quotes."""
  path, _, values = text.partition("=")
  cli.check_overrides(config, [f"--config.{path}"])
  if not values:
    raise Pi0RagError(f"--grid={text}: expected NAME=VALUE,VALUE, such as --grid=learning_rate=1e-3,3e-4")
  current: Any = config
  for part in path.split("."):
    current = current[part]
  try:
    parsed = list(ast.literal_eval(f"[{values}]"))
  except (ValueError, SyntaxError):
    parsed = [word.strip() for word in values.split(",")]
  return path, [_as_type_of(value, current, path) for value in parsed]


def _as_type_of(value, current, path: str):
  """Returns the value as the field's type has it."""
  if isinstance(current, float) and type(value) is int:
    return float(value)
  if isinstance(current, str) and isinstance(value, (int, float)):
    return str(value)
  if current is not None and type(value) is not type(current) and not isinstance(current, (list, ConfigDict)):
    raise Pi0RagError(f"--grid: {value!r} is no value of '{path}', which is {current!r}")
  return value


def points(fields: Mapping[str, list]) -> list[Point]:
  """Returns all combinations; the last field changes fastest."""
  for name, values in fields.items():
    if not values:
      raise Pi0RagError(f"the field '{name}' is an empty list: give the values to search over")
    if len({repr(value) for value in values}) < len(values):
      raise Pi0RagError(f"the field '{name}' lists a value twice: {values}")
  return [dict(zip(fields, values)) for values in itertools.product(*fields.values())]


def names(chosen: Sequence[Point]) -> list[str]:
  """Returns the points' folders, such as "learning_rate=0.001,width=8"; unlike ones, however long values are."""
  short = {path: path.rsplit(".", 1)[-1] for path in chosen[0]}
  if len(set(short.values())) < len(short):
    short = {path: path for path in short}
  plain = [",".join(f"{short[path]}={_slug(value)}" for path, value in point.items()) for point in chosen]
  return [name if len(name) <= MAX_NAME and plain.count(name) == 1 else f"{name[:MAX_NAME]}-{_digest(point)}"
          for name, point in zip(plain, chosen)]


def run(config: Config, workdir: str | Path, *, train: Callable[[Config, Path], Any] = loop.train_and_evaluate,
        console: Console | None = None, machines: Machines = HERE) -> list[dict]:
  """Returns the entries of grid.json, after training every point that an earlier search has not finished.

  A point that fails with a Pi0RagError is recorded, and the next one follows; started again, the search tries it anew.

  Args:
    config: with lists.
    workdir: of the search.
    train: trains one point in its folder.
    console: where the ranked table goes; the default is standard output.
    machines: where points are trained.
  """
  config_check.check_fields(config)
  workdir = Path(workdir).absolute()
  chosen = points(lists(config))
  if "best_by" in chosen[0]:
    raise Pi0RagError("best_by is a list: points are ranked by one score")
  folders = names(chosen)
  if (workdir / loop.CONFIG_FILE).exists():
    raise Pi0RagError(f"workdir '{workdir}' is of a single run: use another --workdir for a grid")
  for point, name in zip(chosen, folders):
    loop.refuse_other_workdir(with_values(config, point), workdir / name)
  before = {entry["name"]: entry for entry in read(workdir)}
  parallel.wait_for_all("grid read")  # before the first process writes
  entries = [{"name": name, "point": point} for name, point in zip(folders, chosen)]
  entries = [before[e["name"]] | e if _is_done(before.get(e["name"]), workdir) else e for e in entries]
  with crew.crew(functools.partial(Trainer, train), machines, shared=workdir, note=metrics.log.info) as hands:
    for number, entry in enumerate(entries):
      progress = f"point {number + 1} of {len(entries)}, {entry['name']}"
      if entry.get("status") == DONE:
        metrics.log.info("%s: finished before", progress)
        continue
      job = progress, with_values(config, chosen[number]), workdir / entry["name"]
      hands.give(number, lambda job=job: job, name=progress, rank=(number,))
    for number, node, result in hands.results():
      if result is crew.OVER:
        continue
      entries[number] |= result
      write(workdir, entries)
      if node:
        metrics.log.info("point %d of %d: %s on %s", number + 1, len(entries), result["status"], node)
  write(workdir, entries)
  if parallel.is_first():
    (console or Console()).print(table(entries, config.best_by))
  return entries


class Trainer:
  """Trains the points of a search."""

  def __init__(self, train: Callable[[Config, Path], Any]):
    self._train = train

  def __call__(self, job: tuple[str, Config, Path]) -> Iterator[dict]:
    """Yields what came of a point, of (what to call it, its configuration, its folder)."""
    name, config, folder = job
    metrics.log.info("%s", name)
    yield train_point(config, folder, self._train)

  def close(self) -> None:
    """Leaves nothing behind."""


def train_point(config: Config, folder: Path, train: Callable[[Config, Path], Any]) -> dict:
  """Returns what came of a point: its best score, the step of it, and what else validation found there; or why not."""
  try:
    train(config, folder)
  except Pi0RagError as error:
    metrics.log.warning("failed: %s", error)
    return {"status": FAILED, "error": str(error)}
  store = CheckpointStore(folder, asset_id=config.asset_id)
  best = store.best_step()
  assert best is not None
  scores = store.metrics(best)
  return {"status": DONE, "score": scores["score"], "step": best, "validation": scores}


def ranked(entries: Sequence[Mapping]) -> list[Mapping]:
  """Returns the entries from the lowest score to the highest, and then those without one."""
  return sorted(entries, key=lambda entry: entry.get("score", float("inf")))


def table(entries: Sequence[Mapping], score: str) -> Table:
  """Returns the ranked points."""
  found = Table("rank", *entries[0]["point"], score, "step", Column("folder", overflow="fold"))
  for rank, entry in enumerate(ranked(entries), start=1):
    done = entry.get("status") == DONE
    result = (f"{entry['score']:.5g}", str(entry["step"])) if done else ("failed", "")
    found.add_row(str(rank) if done else "", *(str(value) for value in entry["point"].values()), *result, entry["name"])
  return found


def exists(workdir: str | Path) -> bool:
  """Returns whether the workdir is of a search."""
  return (Path(workdir) / GRID_FILE).exists()


def read(workdir: Path) -> list[dict]:
  """Returns the entries of an earlier search, none if there was none."""
  if not exists(workdir):
    return []
  return [msgspec.to_builtins(entry) for entry in schema.read(workdir / GRID_FILE, _Grid).points]


def write(workdir: Path, entries: Sequence[Mapping]) -> None:
  """Replaces grid.json; only the first process does."""
  if parallel.is_first():
    files.write_text(workdir / GRID_FILE, json.dumps({"points": list(entries)}, indent=2, default=str) + "\n")


def _is_done(entry: Mapping | None, workdir: Path) -> bool:
  """Returns whether an earlier search finished the point, and its folder is still there."""
  return entry is not None and entry.get("status") == DONE and (workdir / entry["name"] / loop.CONFIG_FILE).exists()


def _slug(value) -> str:
  """Returns a value as a part of a file's name."""
  return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value)).strip("-")


def _digest(point: Point) -> str:
  return hashlib.sha256(repr(sorted(point.items())).encode()).hexdigest()[:8]
