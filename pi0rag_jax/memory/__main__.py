"""Command line: `python -m pi0rag_jax.memory COMMAND DIR`; without a command it lists them.

Commands that need policies or robots lie above the memory, in `learning` and `serving`, and are imported when they run.
"""

import argparse
import contextlib
import dataclasses
import json
import sys

from pi0rag_jax.errors import Pi0RagError, exit_status
from pi0rag_jax.memory import address, anew, backup, portable, verify
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import KINDS
from pi0rag_jax.memory.store import GROUPS

NPZ, LEROBOT = "npz", "lerobot"
VERSIONED = ("inspect", "backup", "copy", "export", "explain")  # also of what was


def inspect(arguments) -> int:
  """Prints the header, sizes, and counts by kind, outcome, failure kind, task and source."""
  store = address.open_store(arguments.directory, read_only=True)
  with contextlib.closing(store), store.snapshot():
    groups = {group: store.breakdown(group) for group in GROUPS}
    apart = [f"{identity} ({reason})" for identity, reason in store.quarantined().items()]
    read_at, bytes_on_disk = store.following(), store.bytes_on_disk()
  found = {
    "directory": str(arguments.directory),
    "header": dataclasses.asdict(store.header),
    "records": sum(groups["kind"].values()),
    "quarantined": apart,
    "bytes_on_disk": bytes_on_disk,
  } | {name: value for name, value in read_at.items() if name == "version"}
  found |= {f"by_{group}": counts for group, counts in groups.items()}
  if arguments.json:
    print(json.dumps(found, indent=1))
    return 0
  for name, value in found.items():
    if isinstance(value, dict):
      value = ", ".join(f"{key or '(none)'} {number}" for key, number in value.items()) or "-"
    elif isinstance(value, list):
      value = ", ".join(value) or "-"
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


def copy(arguments) -> int:
  """Makes another memory of the same records, and compares the two."""
  target = arguments.target
  if address.on_server(target):
    target = address.with_credentials(target, arguments.memory_credentials)
  done = anew.copy(arguments.directory, target)
  print(f"{done} records of {arguments.directory} are in {target}, which says the same")
  return 0


def quarantine(arguments) -> int:
  """Takes records out of every search, or lets them in again."""
  if arguments.release == (arguments.reason is not None):
    raise Pi0RagError("give either a --reason or --release")
  with Memory.load(arguments.directory, read_only=False) as memory:
    if arguments.release:
      memory.release(arguments.ids)
    else:
      memory.quarantine(arguments.ids, arguments.reason)
  print(f"{len(arguments.ids)} records of {arguments.directory} are " + (
    "searched again" if arguments.release else "in quarantine: no search returns them"))
  return 0


def export(arguments) -> int:
  """Writes the memory to one portable file, or what was taught as a data set."""
  if arguments.format == LEROBOT:
    return _export_episodes(arguments)
  written, damaged = portable.export_memory(arguments.directory, arguments.out, skip_damaged=arguments.skip_damaged)
  print(f"{written} records written to {arguments.out}" + (f", {damaged} damaged ones left out" if damaged else ""))
  return 0


def _export_episodes(arguments) -> int:
  from pi0rag_jax.learning import taught

  if arguments.kept is None:
    raise Pi0RagError("--format=lerobot needs --kept, the folder of a server's --keep_episodes: the memory has no "
                      "pictures")
  done = taught.export(arguments.directory, arguments.kept, arguments.out, pictures=arguments.pictures)
  print(f"{done.episodes} episodes, {done.frames} frames in {arguments.out}; at {done.labels} frames the memory has a "
        f"label; left out: {done.untaught} kept episodes that did not teach it, {done.without_pictures} records of "
        f"episodes that were not kept\ncolumns of a training: {json.dumps(done.columns)}")
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
    memory.compact(arguments.keep_versions)
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


def explain_(arguments) -> int:
  """Prints where records come from, or which of them made an episode's decisions what they were."""
  from pi0rag_jax.learning import explain

  if (arguments.ids is None) == (arguments.episode is None):
    raise Pi0RagError("give either --ids of records or an --episode")
  space, unit = _meaning(arguments, [arguments.directory])
  with Memory.load(arguments.directory) as memory:
    explainer = explain.Explainer(memory, space, unit)
    if arguments.ids is not None:
      found = [explainer.record(identity) for identity in arguments.ids]
      texts = [explain.in_words(each) for each in found]
    else:
      told = _decisions(arguments, space)
      chosen = explain.chosen(told, arguments.decision, arguments.episode)
      found = [explainer.decision(each, told.ended) for each in chosen]
      first = arguments.decision or 0
      texts = [explain.decision_in_words(number, each, arguments.records) for number, each in enumerate(found, first)]
  print(json.dumps(found, indent=1) if arguments.json else "\n".join(texts))
  return 0


def _decisions(arguments, space):
  """Returns the decisions of an episode: kept ones, or those that the server's log still has."""
  from pi0rag_jax.learning import explain, kept
  from pi0rag_jax.serving import episode_log

  if arguments.kept is not None:
    return explain.of_kept(arguments.kept, arguments.episode)
  log = address.beside(arguments.directory) / episode_log.LOG_NAME
  steps = episode_log.logged(log, arguments.episode).steps if log.is_file() else []
  if not steps:
    raise Pi0RagError(f"the server's log in {arguments.directory} has no episode '{arguments.episode}': it tells of "
                      "episodes under way, and of late ones; --kept=DIR reads those of a server's --keep_episodes")
  return explain.Told([kept.decision_of(step, space) for step in steps], None, str(log))


def merge_(arguments) -> int:
  """Makes one memory of several, and names what contradicts itself in them."""
  from pi0rag_jax.learning import conflicts, merge

  space, unit = _meaning(arguments, arguments.others)
  done = merge.merge(arguments.directory, arguments.others, space=space, unit=unit, conflicts=arguments.conflicts,
                     capacity=arguments.capacity)
  for conflict in done.conflicts[: arguments.shown]:
    print(conflicts.in_words(conflict, [address.shown(other) for other in arguments.others]))
  if len(done.conflicts) > arguments.shown:
    print(f"and {len(done.conflicts) - arguments.shown} more conflicts")
  for old, new in done.renamed.items():
    print(f"'{old}' is another one than that of the same name: it is '{new}' now")
  unknown = "; conflicts were not looked for, since no robot has this action space: give --policy" if not space else ""
  print(f"{done.records} records in {arguments.directory}; left out: {done.duplicates} duplicates, {done.dropped} "
        f"older ones of {len(done.conflicts)} conflicts{unknown}")
  return 0


def conflicts_(arguments) -> int:
  """Names corrections of one situation that disagree; status 1 if there are any."""
  from pi0rag_jax.learning import conflicts

  space, unit = _meaning(arguments, [arguments.directory])
  if space is None:
    raise Pi0RagError("no robot has this memory's action space: give --policy, which knows what its actions mean")
  with Memory.load(arguments.directory) as memory:
    found = conflicts.of_memory(memory, space, unit)
  if arguments.json:
    print(json.dumps([conflicts.as_json(conflict) for conflict in found], indent=1))
    return int(bool(found))
  for conflict in found[: arguments.shown]:
    print(conflicts.in_words(conflict))
  if len(found) > arguments.shown:
    print(f"and {len(found) - arguments.shown} more conflicts")
  whose = "; sides of them: " + ", ".join(f"{count} of {who}" for who, count in conflicts.by_origin(found)[:5])
  print(f"{len(found)} conflicts in {address.shown(arguments.directory)}{whose if found else ''}")
  return int(bool(found))


def _meaning(arguments, directories):
  """Returns (action space or None, unit distance or None) of a memory: its policy's, where that is given."""
  header = address.stored_header(directories[0])
  if header is None:
    raise Pi0RagError(f"no memory in {address.shown(directories[0])}")
  if arguments.policy is None:
    from pi0rag_jax.robots import registry

    return registry.space_of(header.actions), None
  from pi0rag_jax.policy import directory

  policy = directory.load(arguments.policy)
  if policy.fingerprint != header.policy:
    raise Pi0RagError(f"{directories[0]} is of another policy than '{arguments.policy}'")
  return policy.space, policy.unit_distance


def migrate_(arguments) -> int:
  """Makes the memory of other weights, and says how silent it has fallen."""
  from pi0rag_jax.learning import migrate

  done = migrate.migrate(arguments.directory, arguments.policy, arguments.kept, arguments.out, below=arguments.below,
                         checkpoint=arguments.checkpoint, key_name=arguments.key_name)
  count = lambda kinds: f"{sum(kinds.values())} records ({', '.join(f'{n} {kind}s' for kind, n in kinds.items() if n)})"  # noqa: E731
  print(f"{count(done.before)} before, {count(done.after)} in {arguments.out}; left out: {done.not_kept} of episodes "
        f"that were not kept; retired: {done.retired} on which '{arguments.policy}' agrees\n"
        f"what corrections ask for: {done.disagreement_before:.2f} before, {done.disagreement_after:.2f} of the new "
        "policy (mean path cost, 1 is about 1 cm)")
  return 0


def parser() -> argparse.ArgumentParser:
  """Returns the command line's parser; `run` in its result is the command."""
  top = argparse.ArgumentParser(prog="python -m pi0rag_jax.memory", description="Look after a memory.",
                                epilog="example: python -m pi0rag_jax.memory inspect memory")
  commands = top.add_subparsers(required=True, metavar="COMMAND")
  added = {}
  for name, run, example, text in (
    ("inspect", inspect, "memory", "counts, sizes and header"),
    ("verify", check, "memory", "check file, records and index; status 1 if something is wrong"),
    ("backup", back_up, "memory copy", "copy to a new folder while it may be written; the copy is verified"),
    ("copy", copy, "memory 'postgresql://robot@host/fleet?memory=kitchen'",
     "copy to a new memory, a folder or a name on a server, and compare the two"),
    ("quarantine", quarantine, "memory --ids=1,2 --reason='wrong gripper'",
     "keep records, and return them from no search"),
    ("export", export, "memory --out=memory.npz",
     "write one portable .npz file, or what was taught as a LeRobot data set"),
    ("import", import_, "memory --from=memory.npz",
     "add the records of an exported file; what is there already is left out"),
    ("compact", compact, "memory --near_duplicates=0.05", "give disk space back, evict near-duplicates"),
    ("serve", serve, "memory --port=8080", "show it to browsers, also while a policy server writes it"),
    ("explain", explain_, "memory --ids=1,2",
     "say where records come from, or why an episode's actions were what they were"),
    ("merge", merge_, "both memory_1 memory_2", "make DIR of the memories of several robots with the same policy"),
    ("conflicts", conflicts_, "memory --shown=5",
     "name corrections of one situation that disagree, and whose they are; status 1 if there are any"),
    ("migrate", migrate_, "memory --policy=runs/new/policy --kept=kept --out=memory_2",
     "make the memory of the weights that were trained since; what they know is retired"),
  ):
    added[name] = commands.add_parser(name, help=text, description=text, epilog=f"example: {top.prog} {name} {example}")
    added[name].add_argument("directory", metavar="DIR", help="folder of a memory, or its address on a server, "
                             f"{address.EXAMPLE}")
    address.add_flags(added[name], versions=name in VERSIONED)
    added[name].set_defaults(run=run)
  added["inspect"].add_argument("--json", action="store_true", help="print JSON")
  added["backup"].add_argument("out", metavar="OUT", help="folder to make")
  added["copy"].add_argument("target", metavar="TO", help="new or empty memory: a folder, or an address on a server")
  added["quarantine"].add_argument("--ids", type=_ids, required=True, metavar="1,2", help="records")
  added["quarantine"].add_argument("--reason", help="what is wrong with them")
  added["quarantine"].add_argument("--release", action="store_true", help="let searches return them again")
  added["export"].add_argument("--out", required=True, metavar="FILE", help="file to write")
  added["export"].add_argument("--format", choices=(NPZ, LEROBOT), default=NPZ, help="file or data set (default npz)")
  added["export"].add_argument("--kept", metavar="KEPT", help="of lerobot: folder of a server's --keep_episodes")
  added["export"].add_argument("--pictures", choices=("video", "images"), default="video",
                               help="of lerobot: small, or exact (default video)")
  added["export"].add_argument("--skip_damaged", action="store_true", help="leave damaged records out")
  added["import"].add_argument("--from", required=True, dest="source", metavar="FILE", help="exported file")
  added["import"].add_argument("--capacity", type=int, default=10_000, help="refuse to hold more (default 10000)")
  added["compact"].add_argument(
    "--near_duplicates", type=_distance, metavar="DISTANCE", help="evict until no two keys are nearer (L2)"
  )
  added["compact"].add_argument("--keep_versions", type=_count, metavar="N",
                                help="of a memory on a server: give up reading versions before the last N, and what "
                                "was evicted before them")
  added["compact"].add_argument("--kind", choices=(*KINDS, "all"), default="anchor", help="evict from (default anchor)")
  added["serve"].add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
  added["serve"].add_argument("--port", type=_port, default=8080, help="TCP port, 0 for a free one (default 8080)")
  added["serve"].add_argument("--token", help="key that browsers must know; with it records can be deleted")
  added["serve"].add_argument("--episodes", metavar="DIR", help="kept episodes, whose pictures are shown")
  _add_explain(added["explain"])
  added["merge"].add_argument("others", nargs="+", metavar="MEMORY", help="two or more")
  added["merge"].add_argument("--conflicts", choices=("keep", "newest", "refuse"), default="keep",
                              help="corrections of one situation that disagree: keep both, the newer one, or stop "
                              "(default keep)")
  added["merge"].add_argument("--capacity", type=int, default=10_000, help="refuse to hold more (default 10000)")
  added["merge"].add_argument("--shown", type=int, default=20, help="conflicts to print (default 20)")
  migrated = added["migrate"]
  migrated.add_argument("--policy", required=True, help="the new one, as the server takes it")
  migrated.add_argument("--checkpoint", help="of a configuration, as the server takes it")
  migrated.add_argument("--key_name", default="", help="key statistics of the policy; its own by default")
  migrated.add_argument("--kept", required=True, metavar="KEPT", help="folder of a server's --keep_episodes")
  migrated.add_argument("--out", required=True, metavar="DIR2", help="folder to make")
  migrated.add_argument("--below", type=_distance, default=0.5, metavar="COST",
                        help="retire records that ask for less than this mean path cost (default 0.5, about 5 mm)")
  added["conflicts"].add_argument("--shown", type=int, default=20, help="conflicts to print (default 20)")
  added["conflicts"].add_argument("--json", action="store_true", help="print all of them as JSON")
  for name in ("explain", "merge", "conflicts"):
    added[name].add_argument("--policy", help="the memory's, for its own unit of distance")
  return top


def _add_explain(command: argparse.ArgumentParser) -> None:
  command.add_argument("--ids", type=_ids, metavar="1,2", help="records")
  command.add_argument("--episode", metavar="ID", help="whose decisions are explained")
  command.add_argument("--decision", type=int, metavar="N", help="one of them, from 0 on; all by default")
  command.add_argument("--kept", metavar="KEPT", help="folder of a server's --keep_episodes")
  command.add_argument("--records", type=int, default=3, help="to tell of for each decision (default 3)")
  command.add_argument("--json", action="store_true", help="print JSON")


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status: 2 for a user's mistake, with one line that says it."""
  arguments = parser().parse_args(argv)
  return exit_status(lambda: _run(arguments))


def _run(arguments) -> int:
  place = arguments.directory
  if arguments.memory_credentials is not None and address.on_server(place):
    place = address.with_credentials(place, arguments.memory_credentials)
  arguments.directory = address.at_version(place, getattr(arguments, "memory_version", None))
  if hasattr(arguments, "others"):
    arguments.others = [address.read(other) for other in arguments.others]
  return arguments.run(arguments)


def _ids(text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(",")]
  except ValueError:
    raise argparse.ArgumentTypeError(f"'{text}' are no ids, such as 1,2") from None


def _distance(text: str) -> float:
  value = float(text)
  if not 0 < value < float("inf"):
    raise argparse.ArgumentTypeError(f"{text} is not a distance above 0")
  return value


def _count(text: str) -> int:
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"{text} is no number of 0 or more")
  return value


def _port(text: str) -> int:
  value = int(text)
  if not 0 <= value < 1 << 16:
    raise argparse.ArgumentTypeError(f"{text} is no port, allowed: 0 to 65535")
  return value


if __name__ == "__main__":
  sys.exit(main())
