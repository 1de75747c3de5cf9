"""What the experiment came to: success of the retrained policies, and how well scorers tell clean demonstrations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.curation.evaluation import EPISODES
from eval.curation.experiment import ALL, SCORED, TRIED
from pi0rag_jax import files, schema, statistics

RANDOM = "random"


def mixture_summary(folder: Path, training_seeds: Sequence[int]) -> dict[str, Any]:
  """Returns the results of a mixture: a cell per selection, and what its scores say."""
  scored = schema.read(folder / SCORED, dict[str, Any])
  outcomes: dict[str, dict[int, dict[int, bool]]] = {}
  for line in files.whole_lines(folder / EPISODES):
    entry = json.loads(line)
    name, _, seed = entry["run"].rpartition(" ")
    outcomes.setdefault(name, {}).setdefault(int(seed), {})[entry["seed"]] = bool(entry["success"])
  outcomes = {name: outcomes[run] for name, run in scored["trained_as"].items() if run in outcomes}
  cells = {name: cell(name, scored, outcomes, training_seeds) for name in outcomes}
  chosen = scored["tried"]["chosen"]
  if chosen in cells:
    cells[TRIED] = cells[chosen] | {"chosen": chosen, "trial_success": scored["tried"]["success"]}
  clean = [flaw == "clean" for flaw in scored["flaws"]]
  return {"demonstrations": len(clean), "clean": sum(clean), "rollout_success": scored["rollout_success"],
          "auroc": scored["auroc"], "classifiers": scored["classifiers"], "thresholds": scored["thresholds"],
          "silent": scored["silent"],
          "cells": cells}


def cell(name: str, scored: Mapping[str, Any], outcomes: Mapping[str, Mapping[int, Mapping[int, bool]]],
         training_seeds: Sequence[int]) -> dict[str, Any]:
  """Returns what the policies of a selection came to, paired with those of a random one and of all."""
  own = _successes(outcomes[name], training_seeds)
  rate = statistics.success_rate(np.array(list(own.values()), bool))
  found: dict[str, Any] = {
    "kept": len(scored["kept"][name]), "precision": scored["precision"][name], "n": rate.n,
    "success": statistics.number(rate.value), "interval_95": statistics.bounds(rate),
    "by_training_seed": {str(seed): _mean([each for (run, _), each in own.items() if run == seed])
                         for seed in training_seeds}}
  for other in (RANDOM, ALL):
    if other in outcomes and other != name:
      theirs = _successes(outcomes[other], training_seeds)
      both = [key for key in own if key in theirs]
      pair = statistics.paired_comparison(
        np.array([theirs[key] for key in both], bool), np.array([own[key] for key in both], bool),
        np.random.default_rng(0))
      found[f"against_{other}"] = statistics.pair_to_json(pair)
  return found


def _successes(by_run: Mapping[int, Mapping[int, bool]], training_seeds: Sequence[int]) -> dict[tuple[int, int], bool]:
  """Returns (seed of the training, seed of the episode) -> success, of episodes that every training has."""
  shared = set.intersection(*(set(by_run.get(run, {})) for run in training_seeds))
  return {(run, seed): by_run[run][seed] for run in training_seeds for seed in sorted(shared)}


def _mean(values: Sequence[bool]) -> float | None:
  return float(np.mean(values)) if values else None


def table(found: Mapping[str, Any]) -> str:
  """Returns a mixture as a table of Markdown, the best selections first."""
  lines = ["| kept by | AUROC | clean of the kept | success in % | by training seed | n |", "|---|---|---|---|---|---|"]
  cells = found["cells"]
  for name in sorted(cells, key=lambda name: -(cells[name]["success"] or 0)):
    each = cells[name]
    auroc = found["auroc"].get(name)
    low, high = (100 * bound for bound in each["interval_95"])
    seeds = ", ".join("-" if value is None else f"{100 * value:.0f}" for value in each["by_training_seed"].values())
    told = "-" if auroc is None else f"{auroc['value']:.2f}"
    lines.append(f"| {name} | {told} | {100 * each['precision']:.0f} % | "
                 f"{100 * each['success']:.0f} ({low:.0f} to {high:.0f}) | {seeds} | {each['n']} |")
  return "\n".join(lines)
