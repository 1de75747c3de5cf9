"""The stage of curation that trains classifiers of success, and what later stages load of it."""

from pathlib import Path
from typing import Any

from pi0rag_jax.curation import cross_validation, inputs, saved, scoring, thresholds
from pi0rag_jax.curation import training as training_lib
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.curation.saved import SavedClassifier
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.feature_cache import fingerprint
from pi0rag_jax.typing import Config
from train import metrics
from train.curation.sources import Sources


def classify(config: Config, workdir: Path) -> None:
  """Trains every classifier, those whose rollouts, labels or settings are not what they were."""
  sources = Sources(config, workdir)
  for name, member in config.classifiers.items():
    folder, recipe = member_folder(workdir, name), member_recipe(config, sources, member)
    if (folder / saved.FILE_NAME).exists() and saved.load(folder).recipe == recipe:
      continue
    found = train_member(config, sources, member, recipe)
    found.save(folder)
    metrics.log.info("classifier %s: %s -> %s, epoch %d, validation loss %.4f", name, found.trained.trained_on,
                     found.trained.validated_on, found.trained.epoch, found.trained.validation_loss)


def load_members(config: Config, sources: Sources, workdir: Path) -> dict[str, SavedClassifier]:
  """Returns the classifiers by name.

  Raises:
    Pi0RagError: one is missing, or is not made of these rollouts, labels, settings and embeddings.
  """
  found = {name: saved.load(member_folder(workdir, name)) for name in config.classifiers}
  for name, member in config.classifiers.items():
    if found[name].recipe != member_recipe(config, sources, member):
      raise Pi0RagError(f"the classifier '{name}' was trained on other rollouts, labels, settings or embeddings: run "
                        "--stages=classify again")
  return found


def member_folder(workdir: Path, name: str) -> Path:
  """Returns where a classifier lies."""
  return workdir / "classifiers" / name


def member_recipe(config: Config, sources: Sources, member: Config) -> str:
  """Returns a fingerprint of all that a classifier is made of."""
  rollouts = {name: [source.dataset.fingerprint(), sources.success(source)]
              for name, source in sources.experience.items()}
  extractor = sources.extractor(member.policy) if EMBEDDINGS in member.inputs else None
  settings = [member.to_json_best_effort(), config.classify.to_json_best_effort(), config.rollouts.every,
              config.rollouts.cut]
  return fingerprint({"rollouts": rollouts, "settings": settings,
                      "embeddings": [extractor.weights, extractor.preprocessing] if extractor else None})


def train_member(config: Config, sources: Sources, member: Config, recipe: str) -> SavedClassifier:
  """Returns a classifier, cross-validated, and trained on with the rollouts that came in since."""
  c = config.classify
  settings = training_lib.TrainingConfig(
    epochs=c.epochs, batch_size=c.batch_size, learning_rate=c.learning_rate, weight_decay=c.weight_decay, seed=c.seed)
  rollouts = {name: sources.labelled(source, member) for name, source in sources.rollouts.items()}
  trained, losses = cross_validation.cross_validate(
    member.kind, member_options(config, sources, member), rollouts, settings, pairs=c.pairs)
  training, validation = rollouts[trained.trained_on], rollouts[trained.validated_on]
  if sources.updates:
    training = inputs.join([training, *[sources.labelled(source, member) for source in sources.updates.values()]])
    trained = training_lib.update(trained, training, validation, settings)
  scores = thresholds.RolloutScores(
    scoring.episode_scores(trained, training), training.success_J,
    scoring.episode_scores(trained, validation), validation.success_J)
  return SavedClassifier(trained, scores, recipe, losses)


def member_options(config: Config, sources: Sources, member: Config) -> dict[str, Any]:
  """Returns the options of a member's classifier; the number of tokens comes from what embeds."""
  options = {name: tuple(value) if isinstance(value, (list, tuple)) else value
             for name, value in member.options.to_dict().items()}
  if member.kind == "prefix" and tuple(member.inputs) == (EMBEDDINGS,) and config.embed.pool == "tokens":
    options.setdefault("tokens", sources.extractor(member.policy).backbone.pooled_tokens)
  return options
