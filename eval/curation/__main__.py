"""Holds scorers of demonstrations to policies trained on what they keep: `python -m eval.curation --out=DIR`.

Demonstrators of a MetaWorld task are mixed, 20, 50 and 60 % of them bad in the same way or half of them each in its
own; every scorer keeps as many as are clean, and policies from places to actions are cloned with several seeds.
Resumes, and goes on with more --episodes: every pass over the mixtures adds some seeds to all policies.
"""

import dataclasses
import importlib.util
import json
import time
from pathlib import Path

from absl import app, flags, logging

from eval import provenance
from eval.curation import evaluation, experiment, summary
from eval.curation.experiment import MIXTURES, Settings
from pi0rag_jax import cli, files, schema
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.policy import compiling
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import NOMINAL

COMMAND = "eval.curation"
BLOCK = 10  # seeds of a pass
SETTINGS, SUMMARY, DEMONSTRATIONS = "settings.json", "summary.json", "demonstrations.npz"
RECORDED = "recorded_flaws.json"


def study(settings: Settings, out: Path, names: list[str], *, episodes: int, processes: int) -> None:
  """Runs mixtures and writes `summary.json` after every pass."""
  for name in names:
    if name not in MIXTURES:
      raise unknown_name("mixture", name, MIXTURES)
  registry.check(registry.family("metaworld", {}), settings.task, NOMINAL)
  if importlib.util.find_spec("metaworld") is None:
    raise Pi0RagError("MetaWorld is missing: pip install --no-deps metaworld==3.1.1")
  _claim(settings, out)
  started = time.monotonic()
  pool = experiment.collect(settings, out / DEMONSTRATIONS, processes=processes)
  last = settings.first_evaluation + episodes
  for first in range(settings.first_evaluation, last, BLOCK):
    seeds = range(first, min(first + BLOCK, last))
    for number, name in enumerate(names):
      experiment.prepare(experiment.draw(settings, pool, name, out), processes=processes)
      if evaluation.evaluate(settings.task, out / name, seeds, processes=processes):
        logging.info("%s: seeds to %d, %.0f s", name, seeds[-1], time.monotonic() - started)
        begun = names if first > settings.first_evaluation else names[: number + 1]
        write(settings, out, begun, time.monotonic() - started)
    if not (out / RECORDED).is_file():
      files.write_json(out / RECORDED, experiment.recorded_flaws(settings, pool))
  write(settings, out, names, time.monotonic() - started)
  for name in names:
    print(f"{name}\n{summary.table(schema.read(out / SUMMARY, dict)['mixtures'][name])}\n")


def write(settings: Settings, out: Path, names: list[str], wall_clock_s: float) -> None:
  """Writes the summary of all that was run."""
  found = {name: summary.mixture_summary(out / name, settings.training_seeds) for name in names}
  files.write_json(out / SUMMARY, {
    "mixtures": found,
    "recorded_flaws": schema.read(out / RECORDED, dict) if (out / RECORDED).is_file() else None,
    "provenance": provenance.provenance(settings, seeds=[settings.first_evaluation], wall_clock_s=wall_clock_s)})


def _claim(settings: Settings, out: Path) -> None:
  """Writes down what a folder's results are of; raises where they are of other settings."""
  wanted, file = json.loads(json.dumps(dataclasses.asdict(settings))), out / SETTINGS
  if not file.exists():
    files.write_json(file, wanted)
  elif (found := schema.read(file, dict)) != wanted:
    different = [name for name in wanted if found.get(name) != wanted[name]]
    raise Pi0RagError(f"'{out}' holds results of another {', '.join(different)}: use another --out")


def main(_) -> None:
  """Runs what the flags say; a mistake of the user ends in one line and status 2."""
  values = flags.FLAGS
  logging.set_verbosity(logging.INFO)
  compiling.keep_programs()
  with cli.user_errors(COMMAND):
    if values.episodes < 1 or values.processes < 0:
      raise Pi0RagError(f"--episodes={values.episodes} --processes={values.processes}; allowed: 1 or more, 0 or more")
    study(Settings(task=values.task), Path(values.out), values.mixtures, episodes=values.episodes,
          processes=values.processes)


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "Folder of the results.")
  flags.DEFINE_string("task", Settings.task, "Of MetaWorld, one whose expert comes down to a thing.")
  flags.DEFINE_list("mixtures", list(MIXTURES), f"Some of {', '.join(MIXTURES)}.")
  flags.DEFINE_integer("episodes", 100, "Of every policy.")
  flags.DEFINE_integer("processes", 2, "That simulate; 0: none beside this one.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
