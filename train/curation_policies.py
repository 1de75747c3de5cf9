"""The stages of curation that train and run policies: at the start on all demonstrations, at the end on those kept."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pi0rag_jax.curation import rollouts, selection
from pi0rag_jax.curation.rollouts import RolloutConfig
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import statistics
from pi0rag_jax.policy import keys, shipped
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.typing import Config
from train import export, loop, metrics
from train.checkpoint import CheckpointStore

SELECTION_NAME, RANDOM_NAME = "selection.json", "random.json"
EVALUATION_NAME = "evaluation.json"
ALL, RANDOM, KEPT = "all", "random", "kept"


def train(config: Config, workdir: Path) -> None:
  """Trains the policy on all demonstrations and makes a policy of each checkpoint that is kept."""
  if config.policies:
    policies(config, workdir)
    return
  steps = checkpoint_steps(config)
  loop.train_and_evaluate(config.training, workdir / "train", keep=steps)
  store = CheckpointStore(workdir / "train", asset_id=config.training.asset_id)
  for step in steps:
    if step not in store.steps():
      raise Pi0RagError(f"the training in '{store.root.parent}' kept no checkpoint of step {step}: it was begun with "
                        "other `checkpoints`, or stopped before; use another --workdir")
    export_checkpoint(store.folder(step), workdir / "train" / "policy", workdir / "policies" / step_name(step))


def checkpoint_steps(config: Config) -> list[int]:
  """Returns the steps that are kept: evenly spaced validations, the last of all steps among them."""
  training, count = config.training, config.checkpoints
  total = -(-training.steps // training.validate_every)
  if not 2 <= count <= total:
    raise Pi0RagError(f"checkpoints is {count}; a training of {training.steps} steps with a validation every "
                      f"{training.validate_every} can keep 2 to {total}")
  return [min(round(total * (i + 1) / count) * training.validate_every, training.steps) for i in range(count)]


def step_name(step: int) -> str:
  """Returns the name of a checkpoint; they sort as the training went."""
  return f"{step:07d}"


def export_checkpoint(checkpoint: Path, policy: Path, target: Path) -> None:
  """Makes a policy directory of a checkpoint, with all that it shares with the run's policy."""
  if target.exists():
    return
  spec = PolicySpec.load(policy)
  draft = target.with_name(f"{target.name}.draft")
  export.export_policy(checkpoint, policy / TOKENIZER_NAME, draft, spec=spec, record={"step": int(checkpoint.name)})
  # No memory is beside these policies: where their keys lie does not matter.
  recipe = keys.KeyRecipe()
  keys.KeyStats.identity(recipe, keys.feature_width(recipe, spec.model)).save(draft)
  draft.rename(target)


def policies(config: Config, workdir: Path) -> dict[str, Path]:
  """Returns checkpoint -> policy directory, in the order of the training.

  Raises:
    Pi0RagError: there are none yet, or a given one is none.
  """
  if config.policies:
    found = {Path(str(each)).name: shipped.directory(str(each)) for each in config.policies}
    if len(found) != len(config.policies):
      raise Pi0RagError(f"policies {', '.join(map(str, config.policies))} share a name: their folders need different "
                        "ones")
    return found
  found = {path.name: path for path in sorted((workdir / "policies").glob("*")) if (path / "policy.json").is_file()}
  if not found:
    raise Pi0RagError(f"no policies in '{workdir / 'policies'}': train them with --stages=train, or give some with "
                      "config.policies")
  return found


def rollout(config: Config, workdir: Path) -> None:
  """Records the rollouts of every checkpoint, those that are missing."""
  if config.rollouts.given:
    return
  c = config.rollouts
  seeds = range(c.first_seed, c.first_seed + c.episodes)
  for name, directory in policies(config, workdir).items():
    folder = workdir / "rollouts" / name
    crashed = rollouts.record(
      Policy.load(directory), folder, seeds, rollout_config(config),
      progress=lambda done, name=name: metrics.log.info("checkpoint %s: %d of %d rollouts", name, done, len(seeds))
      if done % 10 == 0 else None)
    if crashed:
      metrics.log.warning("checkpoint %s: %d rollouts crashed and are left out: seeds %s", name, len(crashed), crashed)


def rollout_config(config: Config) -> RolloutConfig:
  """Returns where policies run."""
  c = config.rollouts
  return RolloutConfig(c.task, c.condition, stochastic=c.stochastic, slots=c.slots, processes=c.processes)


def retrain(config: Config, workdir: Path) -> None:
  """Trains on what is kept and on as many random demonstrations, and compares with the policy trained on all."""
  kept = selection.read_json(workdir / SELECTION_NAME)
  selection.write_json(workdir / RANDOM_NAME, random_like(kept, config.retrain.seed))
  files = {RANDOM: workdir / RANDOM_NAME, KEPT: workdir / SELECTION_NAME}
  found = {name: loop.train_and_evaluate(with_selection(config.training, file), workdir / "retrained" / name)
           for name, file in files.items()}
  if config.policies:
    found[ALL] = loop.train_and_evaluate(config.training, workdir / "retrained" / ALL)
  else:
    found[ALL] = workdir / "train" / "policy"
  outcomes = {name: evaluate(config, directory, workdir / "evaluation" / f"{name}.jsonl")
              for name, directory in found.items()}
  text = json.dumps(compare(outcomes), indent=1)
  (workdir / EVALUATION_NAME).write_text(f"{text}\n", encoding="utf8")
  metrics.log.info("%s", text)


def random_like(kept: Iterable[Selection], seed: int) -> list[Selection]:
  """Returns selections that keep as many episodes of each data set, drawn at random."""
  rng = np.random.default_rng(seed)
  found = []
  for each in kept:
    chosen = rng.permutation(len(each.kept_E))[: int(each.kept_E.sum())]
    kept_E = np.isin(np.arange(len(each.kept_E)), chosen)
    found.append(Selection(each.path, each.scores_E, kept_E, each.threshold, RANDOM, {"seed": seed}))
  return found


def with_selection(training: Config, file: Path) -> Config:
  """Returns the training's configuration with the episodes that a file of selections keeps."""
  changed = training.copy_and_resolve_references().unlock()
  if "data_dir" in changed:
    changed.selection = str(file)
  else:
    known = {str(Path(each.path).resolve()) for each in selection.read_json(file) if each.kept_E.any()}
    changed.data = tuple({**entry, "selection": str(file)} for entry in map(dict, training.data)
                         if str(Path(entry["path"]).resolve()) in known)
  return changed.lock()


def evaluate(config: Config, directory: Path, log: Path) -> dict[int, str]:
  """Returns seed -> outcome of a policy; episodes that the log has are not run again."""
  seeds = range(config.retrain.first_seed, config.retrain.first_seed + config.retrain.episodes)
  log.parent.mkdir(parents=True, exist_ok=True)
  policy = Policy.load(directory)
  found = read_outcomes(log, policy.fingerprint)
  missing = [seed for seed in seeds if seed not in found]
  place = dataclasses.replace(rollout_config(config), stochastic=config.retrain.stochastic)
  with log.open("a", encoding="utf8") as file:
    for trace in rollouts.run(policy, missing, place) if missing else ():
      found[trace.job.seed] = trace.outcome
      entry = {"policy": policy.fingerprint, "seed": trace.job.seed, "outcome": trace.outcome, "ticks": trace.ticks}
      print(json.dumps(entry), file=file, flush=True)
  return {seed: found[seed] for seed in seeds}


def read_outcomes(log: Path, policy: str) -> dict[int, str]:
  """Returns seed -> outcome of a policy in a log; a line that a kill cut off is removed."""
  text = log.read_text(encoding="utf8") if log.exists() else ""
  whole = text[: text.rfind("\n") + 1]
  if whole != text:
    log.write_text(whole, encoding="utf8")
  entries = map(json.loads, whole.splitlines())
  return {entry["seed"]: entry["outcome"] for entry in entries if entry["policy"] == policy}


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
