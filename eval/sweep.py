"""Policies x conditions x seeds: `python -m eval.sweep --config=configs/X.py --out=DIR`.

Every episode is on disk before anything is computed from it. The same command goes on where an interrupted one
stopped, and writes `records.jsonl`, `summary.json`, `report.html` and charts into DIR. On several machines, whose
nodes all see DIR, it is `python -m eval.sweep --ray=auto --config=configs/X.py --out=DIR` on one of them; `--ray=local`
uses this machine's cores (docs/sweeps.md).
"""

import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from rich.console import Console

from pi0rag_jax import cli, cluster, files, schema
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.errors import Pi0RagError

if TYPE_CHECKING:
  from pi0rag_jax.typing import Config

COMMAND = "eval.sweep"
INTERRUPTED = 130
CONFIG_NAME = "config.json"
POLICIES = "evaluation.policies"  # the entry that may grow in a folder with results


def main(_) -> None:
  """Runs the sweep; a user's mistake ends in one line and status 2."""
  logging.set_verbosity(logging.WARNING)  # faiss tells at length which builds of itself it tries
  try:
    with cli.user_errors(COMMAND):
      sweep(cli.read_config(), pathlib.Path(flags.FLAGS.out), stop_early=flags.FLAGS.stop_early,
            machines=cluster.machines())
  except KeyboardInterrupt:
    print(f"\n{COMMAND}: interrupted; the same command goes on from here (results so far in {flags.FLAGS.out})",
          file=sys.stderr)
    # Worker processes and device threads have nothing left to save.
    os._exit(INTERRUPTED)


def sweep(config: "Config", out: pathlib.Path, *, stop_early: bool = False, machines: Machines = HERE) -> dict:
  """Returns the summary of a sweep, run from the start or from where it stopped.

  Args:
    stop_early, machines: see `experiment.run`. What one run began another may go on with, with or without them.

  Errors: Pi0RagError for a wrong configuration, or a folder with the results of another one.
  """
  # Late, so that a wrong flag is answered before a model library is loaded.
  from eval import checks, experiment, report
  from pi0rag_jax.policy import compiling

  compiling.keep_programs()
  console = Console()
  checks.validate(config)
  out.mkdir(parents=True, exist_ok=True)
  require_same_config(config, out)
  summary, clips = experiment.run(config, out, console, stop_early=stop_early, machines=machines)
  report.write_report(out, summary, clips)
  console.print(report.terminal_table(summary))
  if (methods := report.method_table(summary)) is not None:
    console.print(methods)
  console.print(report.headline(summary), markup=False, highlight=False)
  console.print(f"Report: {out / 'report.html'}", markup=False, highlight=False)
  return summary


def require_same_config(config: "Config", out: pathlib.Path) -> None:
  """Records the configuration of a results folder, or refuses a folder that was made with another one."""
  from eval import experiment

  values = json.loads(config.to_json_best_effort())
  path, records = out / CONFIG_NAME, out / experiment.RECORDS_NAME
  if not path.exists():
    if records.exists() and records.stat().st_size:
      raise Pi0RagError(f"{out} has {records.name} and no {CONFIG_NAME}, which says of what configuration they are: "
                        "put it back, or use another --out")
    files.write_json(path, values)
    return
  try:
    before = _flat(schema.read(path, dict[str, Any]))
  except Pi0RagError as error:
    raise Pi0RagError(f"{error}: it says of what configuration the results beside it are. Put it back, or use another "
                      "--out") from error
  now = _flat(values)
  asked, more = before.get(POLICIES), now.get(POLICIES)
  if isinstance(asked, list) and isinstance(more, list) and all(policy in more for policy in asked):
    before[POLICIES] = more  # further policies change nothing of the others' results
  # An entry that came since the folder was made, and asks for nothing, changes nothing.
  before |= {name: value for name, value in now.items() if name not in before and not value}
  different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
  if different:
    name = different[0]
    raise Pi0RagError(f"{out} holds results of another configuration: {name} was {before.get(name)!r}, is "
                      f"{now.get(name)!r} ({len(different)} differ in all). Use another --out")
  if asked != more:
    files.write_json(path, values)


def _flat(values: dict, prefix: str = "") -> dict:
  """Returns nested dicts as one, with dotted names."""
  flat = {}
  for name, value in values.items():
    flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
  return flat


if __name__ == "__main__":
  cli.define_config(example="configs/quickstart.py")
  flags.DEFINE_string("out", None, "Folder of the results; an interrupted sweep in it is continued.")
  flags.DEFINE_bool("stop_early", False, "End a policy's evaluation once it is clearly better or worse than every "
                    "policy without memory.")
  cluster.define_flags()
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
