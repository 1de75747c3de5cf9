"""Policies x conditions x seeds: `python -m eval.sweep --config=configs/X.py --out=DIR`.

Every episode is on disk before anything is computed from it. The same command goes on where an interrupted one
stopped, and writes `records.jsonl`, `summary.json`, `report.html` and charts into DIR.
"""

import json
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from pi0rag_jax.errors import Pi0RagError

USER_ERROR, INTERRUPTED = 2, 130
CONFIG_NAME = "config.json"


def main(argv) -> None:
  """Runs the sweep; a user's mistake ends in one line and status 2."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument '{argv[1]}'")
  logging.set_verbosity(logging.WARNING)  # faiss tells at length which builds of itself it tries
  try:
    sweep(read_config(), pathlib.Path(flags.FLAGS.out))
  except Pi0RagError as error:
    print(f"eval.sweep: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)
  except KeyboardInterrupt:
    print(f"\neval.sweep: interrupted; the same command goes on from here (results so far in {flags.FLAGS.out})",
          file=sys.stderr)
    # Worker processes and device threads have nothing left to save.
    os._exit(INTERRUPTED)


def read_config():
  """Returns the configuration of the flag; config_flags reports an unreadable file only when it is used."""
  try:
    return flags.FLAGS.config.lock()
  except OSError as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise Pi0RagError(f"cannot read the configuration file: {reason}; the project's are in configs/") from error


def sweep(config, out: pathlib.Path) -> dict:
  """Returns the summary of a sweep, run from the start or from where it stopped.

  Errors: Pi0RagError for a wrong configuration, or a folder with the results of another one.
  """
  # Late, so that a wrong flag is answered before a model library is loaded.
  from eval import experiment, report

  console = Console()
  experiment.validate(config)
  out.mkdir(parents=True, exist_ok=True)
  require_same_config(config, out)
  summary, clips = experiment.run(config, out, console)
  report.write_report(out, summary, clips)
  console.print(report.terminal_table(summary))
  console.print(report.headline(summary), markup=False, highlight=False)
  console.print(f"Report: {out / 'report.html'}", markup=False, highlight=False)
  return summary


def require_same_config(config, out: pathlib.Path) -> None:
  """Records the configuration of a results folder, or refuses a folder that was made with another one."""
  values = json.loads(config.to_json_best_effort())
  path = out / CONFIG_NAME
  if not path.exists():
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")
    return
  try:
    before = _flat(json.loads(path.read_text(encoding="utf8")))
  except json.JSONDecodeError as e:
    raise Pi0RagError(f"{path} is no JSON ({e}): use another --out, or delete the folder") from e
  now = _flat(values)
  different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
  if different:
    name = different[0]
    raise Pi0RagError(f"{out} holds results of another configuration: {name} was {before.get(name)!r}, is "
                      f"{now.get(name)!r} ({len(different)} differ in all). Use another --out")


def _flat(values: dict, prefix: str = "") -> dict:
  """Returns nested dicts as one, with dotted names."""
  flat = {}
  for name, value in values.items():
    flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
  return flat


def parse_flags(argv):
  """Returns what absl leaves of the arguments; an override that the configuration lacks is one line and status 2."""
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    print("eval.sweep: unknown entry of the configuration: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(USER_ERROR)


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  config_flags.DEFINE_config_file("config", None, "Configuration file, as configs/quickstart.py.")
  flags.DEFINE_string("out", None, "Folder of the results; an interrupted sweep in it is continued.")
  flags.mark_flags_as_required(["config", "out"])
  app.run(main, flags_parser=parse_flags)
