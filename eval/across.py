"""Means over sweeps of several trained policies: `python -m eval.across --sweep=DIR --sweep=DIR ... --out=FILE.json`.

A sweep's intervals redraw its episodes and streams, not the training of its policy. Here each sweep is of another
training seed, and counts as one observation: t-intervals, and p-values that Holm's method corrects for all rows.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from scipy import stats

from pi0rag_jax import anytime, cli, files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.statistics import CONFIDENCE, Estimate, bounds, number

COMMAND = "eval.across"
FIGURES = ("success_rate", "difference", "failures_removed", "regressions")
_ROW = ("policy", "stream_episodes", "memory", "baseline")  # what makes rows of several sweeps the same one


def mean(values_S: Sequence[float]) -> Estimate:
  """Returns the mean of one figure of each sweep with its t-interval."""
  count = len(values_S)
  half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values_S, ddof=1) / math.sqrt(count)
  return Estimate(float(np.mean(values_S)), float(np.mean(values_S) - half), float(np.mean(values_S) + half), count)


def rows(sweeps: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
  """Returns a row per method over all sweeps, by their `overall` rows; rows that a sweep lacks are left out.

  Errors: Pi0RagError where sweeps have other places, of which a mean would be one of other things.
  """
  by_sweep = [{tuple(row[name] for name in _ROW): row for row in found} for found in sweeps.values()]
  found = []
  for key in (key for key in by_sweep[0] if all(key in there for there in by_sweep)):
    same = [there[key] for there in by_sweep]
    places = [row["places"] for row in same]
    if len(set(places)) > 1:
      raise Pi0RagError(f"'{key[0]}' after {key[1]} episodes has {dict(zip(sweeps, places))} places: a mean is only of "
                        "sweeps with the same ones")
    row: dict[str, Any] = {**dict(zip(_ROW, key)), "sweeps": len(same), "places": places[0]}
    for name in FIGURES:
      values = [row[name] for row in same]
      if None not in values:
        estimate = mean(values)
        row |= {name: estimate.value, f"{name}_interval_95": bounds(estimate), f"{name}_of_each": values}
    row["p_value"] = _p_value([row["difference"] for row in same])
    found.append(row)
  for baseline in {row["baseline"] for row in found}:
    family = [row for row in found if row["baseline"] == baseline]
    for row, p in zip(family, anytime.holm([row["p_value"] for row in family])):
      row["p_holm"] = p
  return found


def _p_value(differences_S: Sequence[float]) -> float:
  """Returns the p-value of "no difference on average over trainings"; 1 where all are the same."""
  if np.ptp(differences_S) == 0:
    return 1.0
  return number(float(stats.ttest_1samp(differences_S, 0.0).pvalue)) or 0.0


def main(_) -> None:
  """Reads the sweeps' summaries, writes the means and prints them."""
  with cli.user_errors(COMMAND):
    values = flags.FLAGS
    if len(set(values.sweep)) < 2:
      raise Pi0RagError(f"--sweep is {values.sweep}; allowed: two folders or more, of policies of other training "
                        "seeds")
    read = {folder: schema.read(pathlib.Path(folder) / "summary.json", dict[str, Any]) for folder in values.sweep}
    found = rows({folder: summary["overall"] for folder, summary in read.items()})
    files.write_json(pathlib.Path(values.out), {"rows": found, "provenance": {
      pathlib.Path(folder).name: summary["provenance"] for folder, summary in read.items()}})
  for row in found:
    print(json.dumps({name: row[name] for name in (*_ROW, "difference", "difference_interval_95", "p_holm")}))


if __name__ == "__main__":
  flags.DEFINE_multi_string("sweep", [], "Folder of a sweep's results; once for each trained policy.")
  flags.DEFINE_string("out", None, "JSON file of the means.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
