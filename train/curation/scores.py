"""The stages of curation that score demonstrations, say how well the scores tell flawed ones, and choose those kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax import files, schema, statistics
from pi0rag_jax.curation import baselines, classifiers, metrics, saved, scoring, selection, thresholds, verdicts
from pi0rag_jax.curation.saved import SavedClassifier
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.typing import Config
from train import metrics as train_metrics
from train.curation import scorers
from train.curation.classify import load_members, member_folder
from train.curation.sources import Source, Sources

SCORES_NAME, TEXT_NAME, SELECTION_NAME = "scores.json", "selection.txt", "selection.json"
# A larger share that is kept hardly leaves anything out.
NEARLY_ALL = 0.95
FRACTION = "fraction"


class _Scored(msgspec.Struct):
  """The scores of one data set."""

  lengths: list[int]
  scores: dict[str, list[float | None]]
  auroc: dict[str, dict[str, dict[str, float]]]
  auroc_at_equal_pace: dict[str, dict[str, float | None]]


class _Scores(msgspec.Struct):
  recipes: dict[str, str]
  demonstrations: dict[str, _Scored]


def score(config: Config, workdir: Path) -> None:
  """Writes every classifier's score of every demonstration, and how well they tell flawed ones where that is known."""
  sources = Sources(config, workdir)
  members = load_members(config, sources, workdir)
  found = {path: score_source(config, sources, source, members) for path, source in sources.demonstrations.items()}
  for path, each in found.items():
    for name, told in each["auroc"].get(verdicts.ALL_FLAWS, {}).items():
      train_metrics.log.info("%s: AUROC of %s: %.3f (%.3f to %.3f)", path, name, told["value"], told["low"],
                             told["high"])
  files.write_json(workdir / SCORES_NAME, {"recipes": recipes(config, sources, members), "demonstrations": found})


def recipes(config: Config, sources: Sources, members: Mapping[str, SavedClassifier]) -> dict[str, str]:
  """Returns what every scorer is made of."""
  return {**{name: member.recipe for name, member in members.items()},
          **{name: scorers.recipe(config, sources, member) for name, member in config.scorers.items()}}


def score_source(config: Config, sources: Sources, source: Source, members: Mapping[str, SavedClassifier]
                 ) -> dict[str, Any]:
  """Returns lengths and scores of all episodes of a data set, None for those that are not curated, and AUROCs."""
  dataset = source.dataset
  unknown_J = np.full(dataset.num_episodes, np.nan)
  scores = {name: scoring.episode_scores(members[name].trained, sources.read(source, member, unknown_J))
            for name, member in config.classifiers.items()}
  scores |= scorers.scores(config, sources, source, scores)
  plain = baselines.scores(dataset, tool_dims=config.tool_dims)
  told, at_equal_pace = (measure(scores, plain, verdicts.flaws_of(dataset)) for measure in (aurocs, equal_pace))
  spread = {name: [statistics.number(value) for value in dataset.spread(each).tolist()]
            for name, each in scores.items()}
  return {"lengths": dataset.source.lengths.tolist(), "scores": spread, "auroc": told,
          "auroc_at_equal_pace": at_equal_pace}


def aurocs(scores: Mapping[str, np.ndarray], plain: Mapping[str, np.ndarray], flaws: Sequence[str]
           ) -> dict[str, dict[str, dict[str, float]]]:
  """Returns how well scores tell clean from flawed demonstrations: flaw -> who scores -> value, low, high and n.

  {} unless there are both. Baselines go the way that tells all flaws better, for every flaw the same.

  Args:
    scores: by scorer, float[J].
    plain: by baseline, likewise.
    flaws: of each episode, as `verdicts.flaws_of` returns them.
  """
  clean_J = verdicts.clean(flaws)
  if not metrics.both_classes(clean_J):
    return {}
  compared = {**scores, **{name: metrics.either_way(each, clean_J) for name, each in plain.items()}}
  return {flaw: {name: dataclasses.asdict(metrics.auroc_estimate(each, positive_J)) for name, each in compared.items()}
          for flaw, positive_J in verdicts.comparisons(flaws).items()}


def equal_pace(scores: Mapping[str, np.ndarray], plain: Mapping[str, np.ndarray], flaws: Sequence[str]
               ) -> dict[str, dict[str, float | None]]:
  """Returns how well scores tell a clean demonstration from a flawed one that is as fast: who scores -> value, pairs.

  Args: as of `aurocs`.
  """
  clean_J = verdicts.clean(flaws)
  if not metrics.both_classes(clean_J):
    return {}
  found = {}
  for name, each in scores.items():
    value, pairs = metrics.auroc_at_equal(each, clean_J, plain[baselines.PACE_ONLY])
    found[name] = {"value": statistics.number(value), "pairs": pairs}
  return found


def select(config: Config, workdir: Path) -> None:
  """Writes which demonstrations are kept, as text and as JSON."""
  c, scored = config.select, read_scores(workdir)
  check_scorers(config)
  members = {name: saved.load(member_folder(workdir, name)) for name in c.scorers if name in config.classifiers}
  check_scored(scored, {name: members[name].recipe if name in members else None for name in c.scorers})
  rule, value = rule_of(config, members), None if c.value < 0 else c.value
  by_path = {path: scoring.ensemble_scores([np.array(each["scores"][name], float) for name in c.scorers])
             for path, each in scored["demonstrations"].items()}
  all_J = np.concatenate(list(by_path.values()))
  border = thresholds.threshold(rule, value=value, scores_J=all_J, rollouts=[m.rollouts for m in members.values()])
  kept_J = thresholds.kept(rule, border, all_J, value=value)
  check_share(kept_J, all_J, rule, border)
  details = {"classifiers": {name: {**dict(m.losses), "epoch": m.trained.epoch} for name, m in members.items()}}
  parts = np.split(kept_J, np.cumsum([len(each) for each in by_path.values()])[:-1])
  found = [Selection(path, scores_J, part_J, border, rule, details)
           for (path, scores_J), part_J in zip(by_path.items(), parts)]
  selection.write_text(workdir / TEXT_NAME, found)
  selection.write_json(workdir / SELECTION_NAME, found)


def check_scorers(config: Config) -> None:
  """Raises Pi0RagError unless `select.scorers` names some, and those that there are."""
  allowed = [*config.classifiers, *config.scorers]
  if twice := sorted(set(config.classifiers) & set(config.scorers)):
    raise Pi0RagError(f"{', '.join(twice)}: the name of a classifier and of another scorer; give one another name")
  if not config.select.scorers:
    raise Pi0RagError(f"select.scorers names none; allowed: {', '.join(allowed)}")
  for name in config.select.scorers:
    if name not in allowed:
      raise unknown_name("scorer", name, allowed)


def rule_of(config: Config, members: Mapping[str, SavedClassifier]) -> str:
  """Returns the rule of the threshold: `select.rule`, or the one that goes with the first classifier.

  Raises:
    Pi0RagError: it is taken from rollouts, of which some scorer says nothing.
  """
  silent = [name for name in config.select.scorers if name not in members]
  rule = config.select.rule or (
    FRACTION if silent else classifiers.default_rule(next(iter(members.values())).trained.name))
  if silent and rule in thresholds.OF_ROLLOUTS:
    raise Pi0RagError(f"the rule '{rule}' takes its threshold from rollouts, of which {', '.join(silent)} says nothing"
                      ": choose another, as --config.select.rule=fraction --config.select.value=0.5")
  return rule


def check_scored(scored: Mapping[str, Any], made_of: Mapping[str, str | None]) -> None:
  """Raises Pi0RagError unless the scores are by these scorers: name -> recipe, None for any."""
  for name, recipe in made_of.items():
    found = scored.get("recipes", {}).get(name)
    if found is None or recipe not in (found, None):
      raise Pi0RagError(f"there are no scores by '{name}' as it is now: run --stages=score")


def check_share(kept_J: np.ndarray, scores_J: np.ndarray, rule: str, border: float) -> None:
  """Raises Pi0RagError where nothing is kept; warns where a threshold leaves out next to nothing."""
  kept, total = int(kept_J.sum()), int(np.isfinite(scores_J).sum())
  other = "choose another rule, as --config.select.rule=fraction --config.select.value=0.5"
  if not kept:
    raise Pi0RagError(f"no demonstration scores {border:.3f} or more (rule '{rule}'; the best has "
                      f"{np.nanmax(scores_J):.3f}): {other}")
  train_metrics.log.info("%d of %d demonstrations are kept: score %.3f or more, rule '%s'", kept, total, border, rule)
  if rule != FRACTION and kept > NEARLY_ALL * total:
    train_metrics.log.warning("the rule '%s' leaves out %d of %d demonstrations, next to nothing: %s", rule,
                              total - kept, total, other)


def read_scores(workdir: Path) -> dict[str, Any]:
  """Returns what `score` wrote: recipes of scorers, and lengths, scores and AUROC of `demonstrations` by path."""
  file = workdir / SCORES_NAME
  if not file.is_file():
    raise Pi0RagError(f"no scores in '{workdir}': run --stages=score")
  return msgspec.to_builtins(schema.read(file, _Scores))
