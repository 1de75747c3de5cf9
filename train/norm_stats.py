"""Computes what states and actions are normalized by, before a training: `python -m train.norm_stats --out=DIR`.

    python -m train.norm_stats --config=configs/pi0_libero_lora.py --config.data="({'path': 'data/libero'},)" --out=DIR
    python -m train.norm_stats --config=configs/panda_small.py --out=DIR --checkpoint=CHECKPOINT

The file is openpi's, `DIR/assets/<asset_id>/norm_stats.json`, of the training episodes as `train.launch` would compute
it; for fine-tuning, `--config.norm_stats=DIR` reads it. `--checkpoint` compares the statistics that a checkpoint brings
with those of the data, and warns of every dimension that they do not fit. Quantiles are exact;
`--openpi_quantiles` gives those of openpi's histograms.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.progress import Progress

from pi0rag_jax import cli
from pi0rag_jax.data.dataset import expanded
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.openpi import norm_stats
from pi0rag_jax.robots.normalize import EPSILON, NormStats
from pi0rag_jax.typing import Config
from train import config_check, head_data, metrics, policy_data
from train.named import filled, named_config, read_model

COMMAND = "train.norm_stats"
MAX_RATIO = 3.0  # of the spreads, either way
PLAIN_INTERVAL_S = 10.0  # between two lines of progress where there is no terminal
NAMES = ("state", "actions")

Report = Callable[[int, int], None]  # of how many readings, of how many, are done


def policy_stats(config: Config, folder: Path, report: Report, *, openpi_quantiles: bool) -> dict[str, NormStats]:
  """Returns the statistics of the kind 'policy'; `folder` takes synthetic data."""
  named = named_config(config)
  parts = policy_data.open_parts(config, named, folder)
  return policy_data.compute_stats(config, named, parts, workers=config.threads, openpi_quantiles=openpi_quantiles,
                                   horizon=read_model(config, named).action_horizon, progress=report)


def head_stats(config: Config, folder: Path, report: Report, *, openpi_quantiles: bool) -> dict[str, NormStats]:
  """Returns the statistics of the kind 'head'; `folder` takes synthetic data."""
  parts = head_data.open_parts(config, folder)
  report(1, 2)
  found = head_data.compute_stats(parts, openpi_quantiles=openpi_quantiles)
  report(2, 2)
  return found


KINDS: dict[str, Callable[..., dict[str, NormStats]]] = {
  "head": head_stats, "policy": policy_stats, "openpi": policy_stats}


def compute(
  config: Config, folder: Path, console: Console | None = None, *, openpi_quantiles: bool = False
) -> dict[str, NormStats]:
  """Returns the statistics of `state` and `actions` of a configuration's training episodes, and shows progress.

  Args:
    config: of one of KINDS.
    folder: takes the synthetic data of debug configurations.
    console: where a bar is shown, if it is a terminal; the default is standard error.
    openpi_quantiles: see `compute_norm_stats`.
  """
  config_check.check(config)
  if config.kind not in KINDS:
    raise unknown_name("kind of training with statistics", config.kind, KINDS)
  config = filled(config)
  console = console or Console(stderr=True)
  with Progress(console=console, disable=not console.is_terminal) as bar:
    task = bar.add_task("episodes, read twice", total=None)
    told_s = time.monotonic()

    def report(done: int, total: int) -> None:
      nonlocal told_s
      bar.update(task, completed=done, total=total)
      if bar.disable and time.monotonic() - told_s > PLAIN_INTERVAL_S:
        told_s = time.monotonic()
        metrics.log.info("statistics: %d of %d readings of an episode", done, total)

    found = KINDS[config.kind](config, folder, report, openpi_quantiles=openpi_quantiles)
  return {name: found[name] for name in NAMES}


def compare(checkpoint: Mapping[str, NormStats], data: Mapping[str, NormStats]) -> list[str]:
  """Returns what does not fit, in words: a mean outside the other's quantiles, spreads of very different size.

  The spread is the distance of the quantiles q01 and q99, or the standard deviation where they were not recorded.
  Dimensions that only the checkpoint has are a model's padding if they are constant.
  """
  found = []
  for name in NAMES:
    if name not in checkpoint:
      found.append(f"{name}: the checkpoint has no statistics of it; there are {', '.join(sorted(checkpoint))}")
      continue
    theirs, ours = checkpoint[name], data[name]
    if theirs.dim < ours.dim or np.any(theirs.std[ours.dim :] > 0):
      found.append(f"{name}: the checkpoint's statistics have {theirs.dim} dims, the data {ours.dim}: they belong to "
                   "another robot")
    for dim in range(min(theirs.dim, ours.dim)):
      found += [f"{name}[{dim}]: {reason}" for reason in _misfits(theirs, ours, dim)]
  return found


def _misfits(theirs: NormStats, ours: NormStats, dim: int) -> list[str]:
  """Returns what does not fit in one dimension."""
  found = []
  low, high = _range(theirs, dim)
  if not low - EPSILON <= ours.mean[dim] <= high + EPSILON:
    found.append(f"the data's mean {ours.mean[dim]:.4g} is outside the checkpoint's {low:.4g} to {high:.4g}")
  spreads = [_spread(stats, dim, both=theirs.q01 is not None and ours.q01 is not None) for stats in (theirs, ours)]
  if max(spreads) > MAX_RATIO * min(spreads):
    found.append(f"the data's spread {spreads[1]:.4g} is {spreads[1] / spreads[0]:.3g} times the checkpoint's "
                 f"{spreads[0]:.4g}; allowed: up to {MAX_RATIO:g} times either way")
  return found


def _range(stats: NormStats, dim: int) -> tuple[float, float]:
  """Returns the quantiles, or what they are of a normal distribution."""
  if stats.q01 is not None and stats.q99 is not None:
    return stats.q01[dim], stats.q99[dim]
  reach = 2.326 * stats.std[dim]
  return stats.mean[dim] - reach, stats.mean[dim] + reach


def _spread(stats: NormStats, dim: int, *, both: bool) -> float:
  """Returns what is divided by: the quantiles' distance if both statistics have them, else the deviation."""
  if both and stats.q01 is not None and stats.q99 is not None:
    return float(stats.q99[dim] - stats.q01[dim]) + EPSILON
  return float(stats.std[dim]) + EPSILON


def load(checkpoint: str, asset_id: str) -> dict[str, NormStats]:
  """Returns the statistics that a checkpoint brings."""
  groups = norm_stats.load_norm_stats(checkpoint, asset_id)
  return {name: NormStats.from_dict(values) for name, values in groups.items()}


def main(_) -> None:
  """Writes the statistics; warnings do not change the status, a mistake of the user ends in one line and status 2."""
  logging.set_verbosity(logging.WARNING)
  metrics.log.setLevel("INFO")
  values = flags.FLAGS
  with cli.user_errors(COMMAND):
    config, out = filled(cli.read_config()), expanded(values.out)
    if out.is_file():
      raise Pi0RagError(f"--out='{out}' is a file: give a folder")
    theirs = load(values.checkpoint, values.checkpoint_asset or config.asset_id) if values.checkpoint else None
    found = compute(config, out, openpi_quantiles=values.openpi_quantiles)
    norm_stats.save_norm_stats(out, config.asset_id, {name: stats.to_dict() for name, stats in found.items()})
    metrics.log.info("written to %s", out / "assets" / config.asset_id / "norm_stats.json")
    if theirs is not None:
      misfits = compare(theirs, found)
      for line in misfits:
        metrics.log.warning("%s", line)
      verdict = f"{len(misfits)} warnings: compute its statistics anew" if misfits else "it fits the data"
      metrics.log.info("the checkpoint '%s': %s", values.checkpoint, verdict)


if __name__ == "__main__":
  cli.define_config(example="configs/pi0_libero_lora.py")
  flags.DEFINE_string("out", None, "The folder whose assets/<asset_id>/norm_stats.json is written.")
  flags.DEFINE_string("checkpoint", None, "A checkpoint, also at gs://, whose statistics are compared with the data.")
  flags.DEFINE_string("checkpoint_asset", None, "Its asset id, where it is not the configuration's.")
  flags.DEFINE_bool("openpi_quantiles", False, "Quantiles as openpi's histograms give them, instead of exact ones.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
