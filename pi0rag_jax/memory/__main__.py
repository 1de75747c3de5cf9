"""Command line: `python -m pi0rag_jax.memory inspect|verify|backup|export|import|compact|serve DIR`."""

import argparse
import dataclasses
import json
import sys

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import backup, portable, verify
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import KINDS
from pi0rag_jax.memory.store import GROUPS, SqliteStore


def inspect(arguments) -> int:
  """Prints the header, sizes, and counts by kind, outcome, failure kind, task and source."""
  store = SqliteStore(arguments.directory, read_only=True)
  with store.snapshot():
    groups = {group: store.breakdown(group) for group in GROUPS}
  found = {
    "directory": arguments.directory,
    "header": dataclasses.asdict(store.header),
    "records": sum(groups["kind"].values()),
    "bytes_on_disk": store.bytes_on_disk(),
  } | {f"by_{group}": counts for group, counts in groups.items()}
  if arguments.json:
    print(json.dumps(found, indent=1))
    return 0
  for name, value in found.items():
    if isinstance(value, dict):
      value = ", ".join(f"{key or '(none)'} {number}" for key, number in value.items()) or "-"
    print(f"{name:16} {value}")
  return 0


def check(arguments) -> int:
  """Prints what is wrong with the memory; 1 if anything is."""
  problems = verify.verify(arguments.directory)
  for problem in problems:
    print(problem)
  if not problems:
    print(f"{arguments.directory} is whole")
  return 1 if problems else 0


def back_up(arguments) -> int:
  """Copies the memory, also while it is written."""
  print(f"{arguments.directory} is copied to {backup.backup(arguments.directory, arguments.out)}, which is whole")
  return 0


def export(arguments) -> int:
  """Writes the memory to one portable file."""
  written, damaged = portable.export_memory(arguments.directory, arguments.out, skip_damaged=arguments.skip_damaged)
  print(f"{written} records written to {arguments.out}" + (f", {damaged} damaged ones left out" if damaged else ""))
  return 0


def import_(arguments) -> int:
  """Adds the records of an exported file."""
  added, known = portable.import_memory(arguments.directory, arguments.source, capacity=arguments.capacity)
  print(f"{added} records added to {arguments.directory}, {known} were there already")
  return 0


def compact(arguments) -> int:
  """Evicts near-duplicates if asked to, and gives disk space back."""
  with Memory.load(arguments.directory, read_only=False) as memory:
    before = memory.statistics()["bytes_on_disk"]
    kinds = KINDS if arguments.kind == "all" else (arguments.kind,)
    evicted = {}
    if arguments.near_duplicates is not None:
      for kind in kinds:
        ids = memory.near_duplicates(kind, arguments.near_duplicates)
        memory.remove(ids)
        evicted[kind] = len(ids)
    memory.compact()
    after = memory.statistics()["bytes_on_disk"]
  texts = [f"{number} near-duplicate {kind}s evicted" for kind, number in evicted.items()]
  print("; ".join([*texts, f"{before} bytes on disk before, {after} after"]))
  return 0


def serve(arguments) -> int:
  """Serves the memory's page to browsers until Ctrl-C."""
  from pi0rag_jax.serving import memory_page  # above the memory; this command alone brings both together

  memory_page.run(arguments.directory, host=arguments.host, port=arguments.port, token=arguments.token,
                  episodes=arguments.episodes)
  return 0


def parser() -> argparse.ArgumentParser:
  """Returns the command line's parser; `run` in its result is the command."""
  top = argparse.ArgumentParser(prog="python -m pi0rag_jax.memory", description="Look after a memory.")
  commands = top.add_subparsers(required=True, metavar="COMMAND")
  added = {}
  for name, run, text in (
    ("inspect", inspect, "counts, sizes and header"),
    ("verify", check, "check file, records and index; status 1 if something is wrong"),
    ("backup", back_up, "copy to a new folder while it may be written; the copy is verified"),
    ("export", export, "write one portable .npz file"),
    ("import", import_, "add the records of an exported file; what is there already is left out"),
    ("compact", compact, "give disk space back, evict near-duplicates"),
    ("serve", serve, "show it to browsers, also while a policy server writes it: `serve memory --port=8080`"),
  ):
    added[name] = commands.add_parser(name, help=text, description=text)
    added[name].add_argument("directory", metavar="DIR")
    added[name].set_defaults(run=run)
  added["inspect"].add_argument("--json", action="store_true", help="print JSON")
  added["backup"].add_argument("out", metavar="OUT", help="folder to make")
  added["export"].add_argument("--out", required=True, metavar="FILE", help="file to write")
  added["export"].add_argument("--skip_damaged", action="store_true", help="leave damaged records out")
  added["import"].add_argument("--from", required=True, dest="source", metavar="FILE", help="exported file")
  added["import"].add_argument("--capacity", type=int, default=10_000, help="refuse to hold more (default 10000)")
  added["compact"].add_argument(
    "--near_duplicates", type=_distance, metavar="DISTANCE", help="evict until no two keys are nearer (L2)"
  )
  added["compact"].add_argument("--kind", choices=(*KINDS, "all"), default="anchor", help="evict from (default anchor)")
  added["serve"].add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
  added["serve"].add_argument("--port", type=_port, default=8080, help="TCP port, 0 for a free one (default 8080)")
  added["serve"].add_argument("--token", help="key that browsers must know; with it records can be deleted")
  added["serve"].add_argument("--episodes", metavar="DIR", help="kept episodes, whose pictures are shown")
  return top


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status: 2 for a user's mistake, with one line that says it."""
  arguments = parser().parse_args(argv)
  try:
    return arguments.run(arguments)
  except Pi0RagError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _distance(text: str) -> float:
  value = float(text)
  if not 0 < value < float("inf"):
    raise argparse.ArgumentTypeError(f"{text} is not a distance above 0")
  return value


def _port(text: str) -> int:
  value = int(text)
  if not 0 <= value < 1 << 16:
    raise argparse.ArgumentTypeError(f"{text} is no port, allowed: 0 to 65535")
  return value


if __name__ == "__main__":
  sys.exit(main())
