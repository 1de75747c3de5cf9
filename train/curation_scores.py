"""The stages of curation between rollouts and selection: embeddings, classifiers, scores and what is kept."""

import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.curation import classifiers, inputs, labels, metrics, saved, scoring, selection, thresholds
from pi0rag_jax.curation import training as training_lib
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.curation.saved import SavedClassifier
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.feature_cache import fingerprint
from pi0rag_jax.typing import Config
from train import metrics as train_metrics
from train.curation_policies import SELECTION_NAME
from train.curation_sources import Sources

EMBED_NAME, SCORES_NAME, TEXT_NAME = "embed.json", "scores.json", "selection.txt"
LENGTH_ONLY = "length_only"


def embed(config: Config, workdir: Path) -> None:
  """Computes the embeddings that some classifier reads; writes down what that took when they were not there."""
  sources = Sources(config, workdir)
  used = {member.policy for member in config.classifiers.values() if EMBEDDINGS in member.inputs}
  before = json.loads((workdir / EMBED_NAME).read_text(encoding="utf8")) if (workdir / EMBED_NAME).is_file() else {}
  report: dict[str, Any] = {}
  for policy in [name for name in config.embed.policies if name in used]:
    for name, source in sources.all.items():
      found = sources.embed(source, policy, progress=lambda done, rows, name=name: train_metrics.log.info(
        "%s: %d of %d frames embedded", name, done, rows))
      key = f"{policy or 'last'}: {name}"
      took = {"computed": found.computed, "seconds": round(found.seconds, 2),
              "frames_per_s": round(found.frames_per_s, 1)} if found.computed else before.get(key, {})
      report[key] = {**took, "frames": len(found.cache), "cached": len(found.cache) - found.computed}
  report["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
  if left_out := sorted(used - set(config.embed.policies)):
    raise Pi0RagError(f"classifiers read embeddings of {', '.join(map(repr, left_out))}, embed.policies has "
                      f"{', '.join(map(repr, config.embed.policies))}: name them there")
  write_json(workdir / EMBED_NAME, report)


def classify(config: Config, workdir: Path) -> None:
  """Trains every classifier, those whose rollouts or settings are not what they were."""
  sources = Sources(config, workdir)
  for name, member in config.classifiers.items():
    folder, recipe = workdir / "classifiers" / name, member_recipe(config, sources, member)
    if (folder / saved.FILE_NAME).exists() and saved.load(folder).recipe == recipe:
      continue
    found = train_member(config, sources, member, recipe)
    found.save(folder)
    train_metrics.log.info("classifier %s: %s, epoch %d, validation loss %.4f", name,
                           f"{found.trained.trained_on} -> {found.trained.validated_on}", found.trained.epoch,
                           found.trained.validation_loss)


def member_recipe(config: Config, sources: Sources, member: Config) -> str:
  """Returns a fingerprint of all that a classifier is made of."""
  parts = {name: source.dataset.fingerprint() for name, source in sources.experience.items()}
  embedded = EMBEDDINGS in member.inputs
  extractor = sources.extractor(member.policy) if embedded else None
  settings = [member.to_json_best_effort(), config.classify.to_json_best_effort(),
              config.rollouts.success.to_json_best_effort(), config.rollouts.every]
  return fingerprint({"rollouts": parts, "settings": settings,
                      "embeddings": [extractor.weights, extractor.preprocessing] if extractor else None})


def train_member(config: Config, sources: Sources, member: Config, recipe: str) -> SavedClassifier:
  """Returns a classifier, cross-validated, and trained on with the rollouts that came in since."""
  c = config.classify
  settings = training_lib.TrainingConfig(
    epochs=c.epochs, batch_size=c.batch_size, learning_rate=c.learning_rate, weight_decay=c.weight_decay,
    success_weight=c.success_weight, seed=c.seed)
  rollouts = {name: sources.labelled(source, member) for name, source in sources.rollouts.items()}
  trained, losses = training_lib.cross_validate(
    member.kind, member_options(config, sources, member), rollouts, settings, pairs=c.pairs)
  training, validation = rollouts[trained.trained_on], rollouts[trained.validated_on]
  if sources.updates:
    training = inputs.join([training, *[sources.labelled(source, member) for source in sources.updates.values()]])
    trained = training_lib.update(trained, training, validation, settings)
  scores = thresholds.RolloutScores(
    scoring.episode_scores(trained, training), training.success_E,
    scoring.episode_scores(trained, validation), validation.success_E)
  return SavedClassifier(trained, scores, recipe, losses)


def member_options(config: Config, sources: Sources, member: Config) -> dict[str, Any]:
  """Returns the options of a member's classifier; the number of tokens comes from what embeds."""
  options = {name: tuple(value) if isinstance(value, (list, tuple)) else value
             for name, value in member.options.to_dict().items()}
  if member.kind == "prefix" and tuple(member.inputs) == (EMBEDDINGS,) and config.embed.pool == "tokens":
    options.setdefault("tokens", sources.extractor(member.policy).backbone.pooled_tokens)
  return options


def score(config: Config, workdir: Path) -> None:
  """Writes every classifier's score of every demonstration, and how well they tell flawed ones where that is known."""
  sources = Sources(config, workdir)
  found: dict[str, Any] = {}
  for path, source in sources.demonstrations.items():
    unknown_E = np.full(source.dataset.num_episodes, np.nan)
    scores = {name: scoring.episode_scores(saved.load(workdir / "classifiers" / name).trained,
                                           sources.read(source, member, unknown_E)).tolist()
              for name, member in config.classifiers.items()}
    told = aurocs(source.dataset, scores)
    found[path] = {"lengths": source.dataset.lengths.tolist(), "scores": scores, "auroc": told}
    for name, value in told.items():
      train_metrics.log.info("%s: AUROC of %s: %.3f", path, name, value)
  write_json(workdir / SCORES_NAME, found)


def aurocs(dataset: Dataset, scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Returns how well scores tell clean from flawed demonstrations, beside their lengths alone; {} if none is judged.

  The lengths may tell either way, so theirs is the better of both.
  """
  try:
    clean_E = labels.clean_of(dataset)
  except Pi0RagError:
    return {}
  shorter = metrics.auroc(-dataset.lengths, clean_E)
  return {**{name: metrics.auroc(each, clean_E) for name, each in scores.items()},
          LENGTH_ONLY: max(shorter, 1 - shorter)}


def select(config: Config, workdir: Path) -> None:
  """Writes which demonstrations are kept, as text and as JSON."""
  c, scored = config.select, read_scores(workdir)
  members = {name: saved.load(workdir / "classifiers" / name) for name in c.classifiers}
  if not members:
    raise Pi0RagError("select.classifiers names none")
  rule = c.rule or classifiers.default_rule(next(iter(members.values())).trained.name)
  value = None if c.value < 0 else c.value
  by_path = {path: scoring.ensemble_scores([_scores_of(path, each, name) for name in members])
             for path, each in scored.items()}
  all_E = np.concatenate(list(by_path.values()))
  border = thresholds.threshold(rule, value=value, scores_E=all_E, rollouts=[m.rollouts for m in members.values()])
  kept_E = thresholds.kept(rule, border, all_E, value=value)
  parts = np.split(kept_E, np.cumsum([len(each) for each in by_path.values()])[:-1])
  details = {"classifiers": {name: {**dict(m.losses), "epoch": m.trained.epoch} for name, m in members.items()}}
  found = [Selection(path, scores_E, part_E, border, rule, details)
           for (path, scores_E), part_E in zip(by_path.items(), parts)]
  if not kept_E.any():
    raise Pi0RagError(f"no demonstration scores {border:.3f} or more (rule '{rule}'; the best has {all_E.max():.3f}): "
                      "choose another rule, as --config.select.rule=fraction --config.select.value=0.5")
  selection.write_text(workdir / TEXT_NAME, found)
  selection.write_json(workdir / SELECTION_NAME, found)
  train_metrics.log.info("%d of %d demonstrations are kept: score %.3f or more, rule '%s'", int(kept_E.sum()),
                         len(kept_E), border, rule)


def _scores_of(path: str, scored: Mapping[str, Any], name: str) -> np.ndarray:
  if name not in scored["scores"]:
    raise Pi0RagError(f"'{path}' has no scores by the classifier '{name}': run --stages=score")
  return np.asarray(scored["scores"][name], float)


def read_scores(workdir: Path) -> dict[str, Any]:
  """Returns what `score` wrote: {path: lengths, scores by classifier, auroc by classifier}."""
  file = workdir / SCORES_NAME
  if not file.is_file():
    raise Pi0RagError(f"no scores in '{workdir}': run --stages=score")
  return json.loads(file.read_text(encoding="utf8"))


def write_json(file: Path, values: Any) -> None:
  """Writes a file, all or nothing."""
  draft = file.with_suffix(".tmp")
  draft.write_text(json.dumps(values, indent=1) + "\n", encoding="utf8")
  draft.replace(file)
