"""Command line: `python -m pi0rag_jax.curation mix|score|keep|export DATA`: demonstrations of any format, judged.

Needs no policy and no configuration; `train.curate` is the whole way with a policy's rollouts.
"""

import argparse
import collections
import dataclasses
import sys
from pathlib import Path

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.curation import export as export_lib
from pi0rag_jax.curation import flaws as flaws_lib
from pi0rag_jax.curation import metrics, mixtures, scorers, selection, thresholds, verdicts, views
from pi0rag_jax.curation.scorers import SCORERS, reading
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.data.dataset import Dataset, Fields
from pi0rag_jax.data.formats import READERS, open_dataset
from pi0rag_jax.data.lerobot_writer import PICTURES, VIDEO
from pi0rag_jax.errors import exit_status

WORST = 5  # episodes that `score` names
SEEDED = ("random", "deminf", "progress")  # scorers that draw


def mix(arguments) -> int:
  """Writes a file of selections that keeps a mixture of clean and flawed demonstrations."""
  dataset = _open(arguments)
  flaws = verdicts.flaws_of(dataset)
  kept_J = mixtures.mixture(flaws, share=arguments.share, episodes=arguments.episodes, kinds=arguments.kind or (),
                            seed=arguments.seed)
  details = {"share": arguments.share, "kinds": arguments.kind or [], "seed": arguments.seed}
  selection.write_json(arguments.out, [
    Selection(str(dataset.path), verdicts.clean(flaws), kept_J, 0.0, "mixture", details)])
  counts = collections.Counter(flaw for flaw, kept in zip(flaws, kept_J) if kept)
  print(f"{', '.join(f'{flaw} {count}' for flaw, count in sorted(counts.items()))}, written to {arguments.out}")
  return 0


def score(arguments) -> int:
  """Prints every scorer's scores, and how well they tell flawed demonstrations where that is known."""
  dataset = views.readable(_chosen(arguments))
  steps = reading.read(dataset, every=arguments.every, horizon=arguments.horizon, tool_dims=arguments.tool or ())
  names = arguments.scorer or [name for name, each in SCORERS.items() if not each.rollouts]
  found = {name: scorers.score(name, steps, **({"seed": arguments.seed} if name in SEEDED else {})) for name in names}
  clean_J = verdicts.clean(verdicts.flaws_of(dataset))
  judged = metrics.both_classes(clean_J)
  estimates = {name: metrics.auroc_estimate(scores_J, clean_J) for name, scores_J in found.items()} if judged else {}
  for name, scores_J in found.items():
    told = estimates.get(name)
    auroc = f"  AUROC {told.value:.3f} ({told.low:.2f} to {told.high:.2f})" if told else ""
    worst = ", ".join(str(int(dataset.episodes[i])) for i in np.argsort(scores_J, kind="stable")[:WORST])
    print(f"{name:12} {scores_J.min():9.3f} to {scores_J.max():9.3f}{auroc}  least: {worst}")
  if arguments.out:
    files.write_json(arguments.out, {
      "path": str(dataset.path), "episodes": dataset.episodes.tolist(),
      "scores": {name: scores_J.tolist() for name, scores_J in found.items()},
      "auroc": {name: dataclasses.asdict(told) for name, told in estimates.items()}})
  return 0


def keep(arguments) -> int:
  """Writes a file of selections that keeps a share of a data set, by the mean rank of one scorer or of several."""
  dataset = views.readable(_chosen(arguments))
  steps = reading.read(dataset, every=arguments.every, horizon=arguments.horizon, tool_dims=arguments.tool or ())
  scores_J = scorers.combined([scorers.score(name, steps) for name in arguments.scorer or ["agreement"]])
  kept_J = thresholds.kept("fraction", np.nan, dataset.spread(scores_J), value=arguments.share)
  border = thresholds.threshold("fraction", value=arguments.share, scores_J=scores_J, rollouts=())
  selection.write_json(arguments.out, [Selection(
    str(dataset.path), dataset.spread(scores_J), kept_J, border, "fraction",
    {"scorers": arguments.scorer or ["agreement"], "share": arguments.share})])
  print(f"{int(kept_J.sum())} of {len(kept_J)} episodes are kept, written to {arguments.out}")
  return 0


def export(arguments) -> int:
  """Writes the episodes that a selection keeps as a LeRobot v3 data set, with flaws put in where that is asked."""
  dataset = _chosen(arguments)
  flaws = (flaws_lib.assigned(dataset.num_episodes, arguments.flaw, share=arguments.share, seed=arguments.seed)
           if arguments.flaw else ())
  written = export_lib.write(dataset, export_lib.Export(
    Path(arguments.out), arguments.robot, arguments.pictures, flaws, arguments.integrates or (), arguments.seed))
  flawed = f", {sum(map(bool, flaws))} of them flawed" if flaws else ""
  damaged = f"; {len(dataset.damaged)} cannot be read and are left out" if dataset.damaged else ""
  print(f"{written} episodes{flawed}, written to {arguments.out}{damaged}")
  return 0


def parser() -> argparse.ArgumentParser:
  """Returns the command line's parser; `run` in its result is the command."""
  top = argparse.ArgumentParser(prog="python -m pi0rag_jax.curation", description=(__doc__ or "").partition("\n")[0],
                                epilog="example: python -m pi0rag_jax.curation score recordings")
  commands = top.add_subparsers(required=True, metavar="COMMAND")
  added = {}
  for name, run, example, text in (
    ("mix", mix, "data/panda_flawed --share 0.6 --episodes 150 --out mixture.json",
     "write a file of selections that keeps a mixture of clean and flawed demonstrations"),
    ("score", score, "recordings --every 4 --out scores.json",
     "score demonstrations by one another, without any policy"),
    ("keep", keep, "recordings --scorer agreement --share 0.5 --out selection.json",
     "write a file of selections that keeps the best share, which training and `export` read"),
    ("export", export, "recordings --selection selection.json --out chosen",
     "write a part of a data set as LeRobot v3, with flaws put in where that is asked"),
  ):
    added[name] = commands.add_parser(name, help=text, description=text, epilog=f"example: {top.prog} {name} {example}")
    added[name].add_argument("directory", metavar="DATA")
    added[name].set_defaults(run=run)
    added[name].add_argument("--format", choices=sorted(READERS), help="of the data set (default: found out)")
    added[name].add_argument("--state", action="append", metavar="FIELD", help="stored field, repeatable")
    added[name].add_argument("--actions", action="append", metavar="FIELD", help="stored field, repeatable")
    added[name].add_argument("--prompt", metavar="FIELD", help="stored field of the language")
    added[name].add_argument("--default_prompt", metavar="TEXT", help="where the data set says none")
    added[name].add_argument("--seed", type=_seed, default=0, help="of all draws (default 0)")
  added["mix"].add_argument("--share", type=float, required=True, help="of the mixture that is flawed")
  added["mix"].add_argument("--episodes", type=int, required=True, help="of the mixture")
  added["mix"].add_argument("--kind", action="append", metavar="FLAW", help="to draw from, repeatable (default: all)")
  added["mix"].add_argument("--out", required=True, metavar="FILE", help="of selections, .json")
  alone = [name for name, each in SCORERS.items() if not each.rollouts]
  for name in ("score", "keep", "export"):
    added[name].add_argument("--selection", metavar="FILE", help="of the episodes that count (default: all)")
  for name in ("score", "keep"):
    added[name].add_argument("--scorer", action="append", metavar="NAME", choices=alone,
                             help=f"repeatable: {', '.join(alone)}")
    added[name].add_argument("--every", type=int, default=1, help="frames from step to step (default 1)")
    added[name].add_argument("--horizon", type=int, default=16, help="actions that are compared (default 16)")
    added[name].add_argument("--tool", type=int, nargs="+", metavar="ENTRY", help="of the state, the tool's position")
  added["score"].add_argument("--out", metavar="FILE", help="of all scores, .json")
  added["keep"].add_argument("--share", type=float, default=0.5, help="that is kept (default 0.5)")
  added["keep"].add_argument("--out", required=True, metavar="FILE", help="of selections, .json")
  added["export"].add_argument("--out", required=True, metavar="DIR", help="of the new data set")
  added["export"].add_argument("--pictures", choices=PICTURES, default=VIDEO,
                               help=f"(default {VIDEO}; images are exact)")
  added["export"].add_argument("--robot", default="", help="its name (default: what the data set says)")
  added["export"].add_argument("--flaw", action="append", choices=sorted(flaws_lib.FLAWS),
                               help="repeatable; one: the flawed are bad alike, several: each in its own way")
  added["export"].add_argument("--share", type=float, default=0.5, help="that is flawed (default 0.5)")
  added["export"].add_argument("--integrates", type=int, nargs="+", metavar="ENTRY",
                               help="of an action, those that are motions, which idle demonstrators set to 0")
  return top


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status: 2 for a user's mistake, with one line that says it."""
  arguments = parser().parse_args(argv)
  return exit_status(lambda: arguments.run(arguments))


def _seed(text: str) -> int:
  """Returns a whole number from 0; argparse tells what is none."""
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f"'{text}'; allowed: whole numbers from 0")
  return int(text)


def _chosen(arguments) -> Dataset:
  """Returns the data set, or what a file of selections keeps of it."""
  dataset = _open(arguments)
  return selection.choose(dataset, arguments.selection) if arguments.selection else dataset


def _open(arguments) -> Dataset:
  fields = Fields(state=arguments.state, actions=arguments.actions, prompt=arguments.prompt,
                  default_prompt=arguments.default_prompt)
  return open_dataset(arguments.directory, arguments.format, fields=fields, skip_bad=True)


if __name__ == "__main__":
  sys.exit(main())
