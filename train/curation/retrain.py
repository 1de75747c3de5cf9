"""The stage of curation that says what a selection is worth: policies trained on it, on all, on as many at random."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pi0rag_jax import files, statistics
from pi0rag_jax.curation import rollouts, selection
from pi0rag_jax.curation.outcomes import OutcomeLog
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.policy.directory import load
from pi0rag_jax.typing import Config
from train import loop, metrics
from train.checkpoint import CheckpointStore
from train.curation.policies import POLICY_FOLDER, TRAIN_FOLDER, check_kind, export_checkpoint, rollout_config
from train.curation.scores import SELECTION_NAME

EVALUATION_NAME, RETRAINED_FOLDER, LAST_FOLDER = "evaluation.json", "retrained", "last"
ALL, RANDOM, KEPT = "all", "random", "kept"


def retrain(config: Config, workdir: Path) -> None:
  """Trains on what is kept and on as many random demonstrations, and compares with the policy trained on all."""
  check_kind(config)
  kept = selection.read_json(workdir / SELECTION_NAME)
  found = {name: train_on(config.training, chosen, workdir / RETRAINED_FOLDER, name)
           for name, chosen in ((RANDOM, random_like(kept, config.retrain.seed)), (KEPT, kept))}
  found[ALL] = train_to_the_end(
    config.training, workdir / (Path(RETRAINED_FOLDER, ALL) if config.policies else TRAIN_FOLDER))
  outcomes = {name: evaluate(config, directory, workdir / "evaluation" / f"{name}.jsonl")
              for name, directory in found.items()}
  result = {"selection": selection.fingerprint(kept), **compare(outcomes)}
  files.write_json(workdir / EVALUATION_NAME, result)
  metrics.log.info("%s", result)


def train_on(training: Config, chosen: list[Selection], root: Path, name: str) -> Path:
  """Returns the policy trained on what selections keep, in a folder of that choice alone: another is another run."""
  folder = root / f"{name}-{selection.fingerprint(chosen)}"
  file = folder / SELECTION_NAME
  if not file.exists():
    selection.write_json(file, chosen)
  changed = training.copy_and_resolve_references().unlock()
  changed.data = tuple({**entry, "selection": str(file)} for entry in training.data)
  return train_to_the_end(changed.lock(), folder)


def train_to_the_end(training: Config, folder: Path) -> Path:
  """Returns the policy after the last step, trained in a folder or there already.

  Not the best one: validations on different selections would choose it, and so compare more than these.
  """
  target = folder / LAST_FOLDER
  if target.exists():
    return target
  store = CheckpointStore(folder, asset_id=training.asset_id)
  if training.steps not in store.steps():
    loop.train_and_evaluate(training, folder)
  export_checkpoint(store.folder(max(store.steps())), folder / POLICY_FOLDER, target)
  return target


def random_like(kept: Iterable[Selection], seed: int) -> list[Selection]:
  """Returns selections that keep as many episodes of each data set, drawn at random from those that have a score."""
  rng = np.random.default_rng(seed)
  found = []
  for each in kept:
    chosen = rng.permutation(np.flatnonzero(np.isfinite(each.scores_E)))[: int(each.kept_E.sum())]
    kept_E = np.isin(np.arange(len(each.kept_E)), chosen)
    found.append(Selection(each.path, each.scores_E, kept_E, each.threshold, RANDOM, {"seed": seed}))
  return found


def evaluate(config: Config, directory: Path, log: Path) -> dict[int, str]:
  """Returns seed -> outcome of a policy; episodes that the log has of the same policy and place are not run again."""
  seeds = range(config.retrain.first_seed, config.retrain.first_seed + config.retrain.episodes)
  policy = load(directory)
  place = dataclasses.replace(rollout_config(config), stochastic=config.retrain.stochastic)
  with OutcomeLog(log, rollouts.facts(policy, place)) as found:
    missing = [seed for seed in seeds if seed not in found.outcomes]
    for trace in rollouts.run(policy, missing, place) if missing else ():
      found.append(trace.job.seed, trace.outcome, ticks=trace.ticks)
    return {seed: found.outcomes[seed] for seed in seeds}


def compare(outcomes: Mapping[str, Mapping[int, str]]) -> dict:
  """Returns success rates with intervals, and what is kept against the others on the seeds where none crashed."""
  good = [seed for seed in outcomes[KEPT] if all(each[seed] != rollouts.CRASHED for each in outcomes.values())]
  successes = {name: np.array([each[seed] == "success" for seed in good]) for name, each in outcomes.items()}
  rates = {name: statistics.success_rate(each_N) for name, each_N in successes.items()}
  result: dict = {"seeds": len(good), "crashed": len(outcomes[KEPT]) - len(good), "success": {
    name: {"rate": statistics.number(rate.value), "interval": statistics.bounds(rate)} for name, rate in rates.items()}}
  for other in (ALL, RANDOM):
    pair = statistics.paired_comparison(successes[other], successes[KEPT], np.random.default_rng(0))
    result[f"{KEPT} against {other}"] = statistics.pair_to_json(pair)
  return result
