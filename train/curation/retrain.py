"""The stage of curation that says what a selection is worth: policies trained on it, on all, on as many at random."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import files, statistics
from pi0rag_jax.curation import rollouts, selection, thresholds, verdicts
from pi0rag_jax.curation.outcomes import OutcomeLog
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.policy.directory import load
from pi0rag_jax.typing import Config
from train import loop, metrics
from train.checkpoint import CheckpointStore
from train.curation import data
from train.curation.policies import POLICY_FOLDER, TRAIN_FOLDER, check_kind, export_checkpoint, rollout_config
from train.curation.scores import SELECTION_NAME, read_scores

EVALUATION_NAME, RETRAINED_FOLDER, LAST_FOLDER = "evaluation.json", "retrained", "last"
# All demonstrations; as many at random; what the stage select kept; as many of those that are known to be clean.
ALL, RANDOM, KEPT, ORACLE = NAMED = ("all", "random", "kept", "oracle")
# Before a scorer's name: as many of those that it likes least. Agreement likes what most demonstrators do.
LEAST = "least "

Outcomes = Mapping[str, Mapping[int, Mapping[int, str]]]  # selection -> seed of its training -> seed -> outcome


def retrain(config: Config, workdir: Path) -> None:
  """Trains on every selection that is compared, with every seed, and writes how the policies did as each is done."""
  check_kind(config)
  kept = selection.read_json(workdir / SELECTION_NAME)
  chosen = {name: None if name == ALL else chosen_by(config, workdir, name, kept) for name in config.retrain.compared}
  found: dict[str, dict[int, dict[int, str]]] = {}
  for seed in config.retrain.training_seeds:
    for name, selections in chosen.items():
      policy = trained(config, workdir, name, selections, seed)
      log = workdir / "evaluation" / f"{run_name(config, name, seed)}.jsonl"
      found.setdefault(name, {})[seed] = evaluate(config, policy, log)
      result = {"selection": selection.fingerprint(kept), **compare(found)}
      files.write_json(workdir / EVALUATION_NAME, result)
      metrics.log.info("trained on %s with seed %d: %s", name, seed, result["success"][name])


def run_name(config: Config, name: str, seed: int) -> str:
  """Returns what tells the training of a selection with a seed from the others."""
  plain = name.replace(" ", "_")
  return plain if seed == config.training.seed else f"{plain}-seed{seed}"


def trained(config: Config, workdir: Path, name: str, selections: list[Selection] | None, seed: int) -> Path:
  """Returns the policy trained on selections with a seed; None: on all, which the stage train may have done."""
  training = config.training.copy_and_resolve_references().unlock()
  training.seed = seed
  run = run_name(config, name, seed)
  if selections is not None:
    return train_on(training.lock(), selections, workdir / RETRAINED_FOLDER, run)
  own = config.policies or run != ALL
  return train_to_the_end(training.lock(), workdir / (Path(RETRAINED_FOLDER, run) if own else TRAIN_FOLDER))


def chosen_by(config: Config, workdir: Path, name: str, kept: Sequence[Selection]) -> list[Selection]:
  """Returns selections of as many demonstrations as are kept, by a name of `retrain.compared`."""
  if name == KEPT:
    return list(kept)
  if name == RANDOM:
    return random_like(kept, config.retrain.seed)
  if name == ORACLE:
    datasets = data.demonstrations(config.training, workdir / TRAIN_FOLDER)
    return [_as_many(each, verdicts.clean(verdicts.flaws_of(datasets[each.path].source)), ORACLE) for each in kept]
  sign, scorer = (-1, name.removeprefix(LEAST)) if name.startswith(LEAST) else (1, name)
  scored = read_scores(workdir)["demonstrations"]
  allowed = {*NAMED, *(scorer for each in scored.values() for scorer in each["scores"])}
  if scorer not in allowed:
    raise unknown_name("entry of retrain.compared", scorer, allowed)
  return [_as_many(each, sign * np.array(scored[each.path]["scores"][scorer], float), name) for each in kept]


def _as_many(kept: Selection, scores_J: np.ndarray, name: str) -> Selection:
  """Returns as many of the scored episodes of a data set as are kept, those with the best scores."""
  scores_J = np.where(np.isfinite(kept.scores_J), scores_J, np.nan)
  known = int(np.isfinite(scores_J).sum())
  if not known:
    raise Pi0RagError(f"retrain.compared: '{name}' knows nothing of the demonstrations in '{kept.path}'")
  share = min(int(kept.kept_J.sum()) / known, 1.0)
  kept_J = thresholds.kept("fraction", np.nan, scores_J, value=share)
  return Selection(kept.path, scores_J, kept_J, float(np.nanmin(scores_J[kept_J])), "fraction", {"scorer": name})


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
    chosen = rng.permutation(np.flatnonzero(np.isfinite(each.scores_J)))[: int(each.kept_J.sum())]
    kept_J = np.isin(np.arange(len(each.kept_J)), chosen)
    found.append(Selection(each.path, each.scores_J, kept_J, each.threshold, RANDOM, {"seed": seed}))
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


def compare(outcomes: Outcomes) -> dict[str, Any]:
  """Returns success rates with intervals, over all trainings and by the seed of each, and paired comparisons.

  All are compared with a random selection and with all demonstrations, where there are such. Pairs are the same seed of
  an episode after trainings of the same seed; those where some policy crashed count nowhere.
  """
  runs = sorted({run for by_run in outcomes.values() for run in by_run})
  whole = {name: by_run for name, by_run in outcomes.items() if set(by_run) == set(runs)} or dict(outcomes)
  pairs = [(run, seed) for run in runs for seed in next(iter(outcomes.values()))[run]]
  good = [(run, seed) for run, seed in pairs
          if all(by_run[run][seed] != rollouts.CRASHED for by_run in outcomes.values() if run in by_run)]
  successes = {name: {run: np.array([by_run[run][seed] == "success" for r, seed in good if r == run], bool)
                      for run in runs if run in by_run} for name, by_run in outcomes.items()}
  result: dict[str, Any] = {
    "seeds": len(good) // max(len(runs), 1), "training_seeds": runs, "crashed": len(pairs) - len(good),
    "success": {name: _rates(by_run) for name, by_run in successes.items()}}
  for first in whole:
    for other in [name for name in (ALL, RANDOM) if name in whole and name != first and first not in (ALL, RANDOM)]:
      theirs, own = (np.concatenate([successes[name][run] for run in runs]) for name in (other, first))
      pair = statistics.paired_comparison(theirs, own, np.random.default_rng(0))
      result[f"{first} against {other}"] = statistics.pair_to_json(pair)
  return result


def _rates(by_run: Mapping[int, np.ndarray]) -> dict[str, Any]:
  """Returns the success over all trainings, and of each."""
  rate = statistics.success_rate(np.concatenate(list(by_run.values())))
  return {"rate": statistics.number(rate.value), "interval": statistics.bounds(rate), "n": rate.n,
          "by_training_seed": {str(run): statistics.number(float(each.mean())) for run, each in by_run.items()}}
