"""Command line: `python -m pi0rag_jax.data validate|summary|split|bench DIR`."""

import argparse
import json
import sys
from pathlib import Path

from pi0rag_jax.data import splits, summary, throughput, validation
from pi0rag_jax.data.dataset import DamagedEpisode, Dataset, Fields, expanded
from pi0rag_jax.data.formats import READERS, open_dataset
from pi0rag_jax.errors import exit_status

SHOWN_PROMPTS = 20


def validate(arguments) -> int:
  """Prints what is wrong with every episode; 1 if anything is."""
  dataset = _open(arguments)
  schema = validation.Schema.load(arguments.directory) or validation.infer_schema(dataset)
  damaged, lines, wrong = dict(dataset.damaged), [], 0
  for episode in range(dataset.num_episodes):
    name = dataset.episode_name(episode)
    try:
      problems = validation.dataset_problems(dataset, episode, schema)
    except DamagedEpisode as error:
      damaged[name] = str(error)
      continue
    wrong += bool(problems)
    lines += [f"{name}: {problem}" for problem in problems]
  for line in [*damaged.values(), *lines]:
    print(line)
  print(f"{dataset.num_episodes} episodes, {wrong} not valid, {len(damaged)} that cannot be read")
  return 1 if wrong or damaged else 0


def summarize(arguments) -> int:
  """Prints what the data set holds; 1 if no episode can be read."""
  dataset = _open(arguments)
  found = summary.summarize(dataset, validation.Schema.load(arguments.directory))
  status = 0 if found["episodes"] else 1
  if arguments.json:
    print(json.dumps(found, indent=1))
    return status
  reasons = found.pop("reasons")
  for name, value in found.items():
    if isinstance(value, dict):
      shown = [f"{key or '(none)'} {number}" for key, number in list(value.items())[:SHOWN_PROMPTS]]
      value = ", ".join(shown) + (", ..." if len(value) > SHOWN_PROMPTS else "") or "-"
    print(f"{name:20} {value}")
    if name == "damaged":
      print("".join(f"  {reason}\n" for reason in reasons), end="")
  return status


def split(arguments) -> int:
  """Writes which episodes train, validate and test."""
  dataset = _open(arguments)
  parts = splits.split_episodes(dataset.num_episodes, fractions=arguments.fractions, seed=arguments.seed)
  out = arguments.out or (_folder(arguments.directory) / splits.FILE_NAME)
  splits.save_splits(out, parts, num_episodes=dataset.num_episodes)
  print(f"{', '.join(f'{name} {len(part)}' for name, part in parts.items())} episodes, written to {out}")
  return 0


def bench(arguments) -> int:
  """Measures how fast batches of this data set come, and that memory does not grow with its size."""
  for row in throughput.measure(_open(arguments)):
    print(row)
  return 0


def parser() -> argparse.ArgumentParser:
  """Returns the command line's parser; `run` in its result is the command."""
  top = argparse.ArgumentParser(prog="python -m pi0rag_jax.data", description="Look after recorded episodes.",
                                epilog="example: python -m pi0rag_jax.data validate recordings")
  commands = top.add_subparsers(required=True, metavar="COMMAND")
  added = {}
  for name, run, example, text in (
    ("validate", validate, "recordings", "check every episode; status 1 if something is wrong"),
    ("summary", summarize, "recordings --json", "counts, sizes, texts, outcomes, and how far the plan is fulfilled"),
    ("split", split, "recordings --fractions 0.9 0.05 0.05", "draw training, validation and test episodes"),
    ("bench", bench, "recordings", "measure how fast batches come, and the memory that a large data set takes"),
  ):
    added[name] = commands.add_parser(name, help=text, description=text, epilog=f"example: {top.prog} {name} {example}")
    added[name].add_argument("directory", metavar="DIR")
    added[name].set_defaults(run=run)
    added[name].add_argument("--format", choices=sorted(READERS), help="of the data set (default: found out)")
    added[name].add_argument("--state", action="append", metavar="FIELD", help="stored field, repeatable")
    added[name].add_argument("--actions", action="append", metavar="FIELD", help="stored field, repeatable")
    added[name].add_argument("--prompt", metavar="FIELD", help="stored field of the language")
  added["summary"].add_argument("--json", action="store_true", help="print JSON")
  added["split"].add_argument("--fractions", nargs=3, type=float, default=splits.FRACTIONS, metavar="SHARE",
                              help="of training, validation and test (default 0.8 0.1 0.1)")
  added["split"].add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
  added["split"].add_argument("--out", metavar="FILE", help=f"default: {splits.FILE_NAME} in DIR")
  return top


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status: 2 for a user's mistake, with one line that says it."""
  arguments = parser().parse_args(argv)
  return exit_status(lambda: arguments.run(arguments))


def _open(arguments) -> Dataset:
  fields = Fields(state=arguments.state, actions=arguments.actions, prompt=arguments.prompt)
  return open_dataset(arguments.directory, arguments.format, fields=fields, skip_bad=True)


def _folder(directory: str) -> Path:
  path = expanded(directory)
  return path if path.is_dir() else path.parent


if __name__ == "__main__":
  sys.exit(main())
