"""How often the experts of a world succeed: `python -m pi0rag_jax.worlds.experts --world=mobile --out=experts.json`.

Undisturbed, and without pictures. A second call goes on with the tasks that the file lacks.
"""

import math
import pathlib
from typing import Any

from absl import app, flags

from pi0rag_jax import cli, files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.statistics import wilson
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import NOMINAL, Progress, World, WorldConfig

COMMAND = "worlds.experts"
FIRST_SEED = 300_000  # of tuning: neither data nor evaluations have these


def run_episode(world: World, seed: int) -> Progress:
  """Returns how an episode of a world's expert ended."""
  world.begin(seed)
  while not (progress := world.advance(world.plan(1))).done:
    pass
  return progress


def measure(config: WorldConfig, seeds: range) -> dict[str, Any]:
  """Returns how many of the seeds' episodes the expert of a world succeeds in, with Wilson's interval.

  Errors: Pi0RagError where there is no expert, or the simulation fails.
  """
  registry.require_expert(config)
  world, ticks, failed = registry.make_world(config), [], []
  for seed in seeds:
    progress = run_episode(world, seed)
    if progress.error:
      raise Pi0RagError(f"seed {seed}: the simulation failed: {progress.error}")
    ticks.append(progress.ticks)
    failed += [] if progress.success else [seed]
  world.close()
  rate = wilson(len(seeds) - len(failed), len(seeds))
  return {"task": config.task_name, "condition": config.condition, "n": len(seeds), "first_seed": seeds[0],
          "successes": len(seeds) - len(failed), "interval_95": [round(rate.low, 4), round(rate.high, 4)],
          "ticks_mean": round(sum(ticks) / len(ticks), 1), "ticks_max": max(ticks), "failed_seeds": failed}


def main(_) -> None:
  """Measures what the flags say; a user's mistake ends in one line and status 2."""
  with cli.user_errors(COMMAND):
    run(flags.FLAGS)


def run(values) -> None:
  """See `main`; `values` are the flags."""
  options = schema.parse(values.options.encode(), dict[str, Any], "--options") if values.options else {}
  family = registry.family(values.world, options)
  path = pathlib.Path(values.out).expanduser()
  rows = schema.read(path, dict[str, Any])["rows"] if path.is_file() else []
  there = {(row["task"], row["condition"]) for row in rows}
  for task in values.tasks or family.tasks:
    if (task, values.condition) in there:
      continue
    seeds = range(values.seed, values.seed + values.episodes)
    rows.append(measure(WorldConfig(task, values.condition, values.world, options, horizon=1), seeds))
    files.write_json(path, {"name": "experts", "world": values.world, "rows": rows})
    row = rows[-1]
    limit = family.time_limit(task)
    print(f"{task}: {row['successes']} of {row['n']}, {row['ticks_mean']:.0f} ticks on average"
          + ("" if math.isinf(limit) else f", limit {limit:.0f}"), flush=True)


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  flags.DEFINE_string("world", "panda", "A family of worlds, or the id of a gymnasium environment.")
  flags.DEFINE_string("options", "", "Options of the world, JSON.")
  flags.DEFINE_list("tasks", [], "Names of its tasks; all by default.")
  flags.DEFINE_string("condition", NOMINAL, "Name of its condition.")
  flags.DEFINE_integer("episodes", 100, "Of each task.", lower_bound=1)
  flags.DEFINE_integer("seed", FIRST_SEED, "The first episode's seed.")
  flags.DEFINE_string("out", None, "JSON file to write.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
