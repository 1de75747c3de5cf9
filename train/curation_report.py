"""The last stage of curation: `summary.json` and the page `report.html`, of what the other stages left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.curation import labels, metrics, report, saved, selection
from pi0rag_jax.curation.figures import Embedded, Scored
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.curation.saved import SavedClassifier
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.typing import Config
from train.curation_policies import EVALUATION_NAME, SELECTION_NAME
from train.curation_scores import EMBED_NAME, read_scores, write_json
from train.curation_sources import Sources

SUMMARY_NAME = "summary.json"
DEMONSTRATION_CLASSES = ("flawed", "clean")


def write(config: Config, workdir: Path) -> None:
  """Writes the summary and the page."""
  sources, kept = Sources(config, workdir), selection.read_json(workdir / SELECTION_NAME)
  members = {name: saved.load(workdir / "classifiers" / name) for name in config.classifiers}
  summary = summarize(config, workdir, members, kept)
  write_json(workdir / SUMMARY_NAME, summary)
  datasets = [sources.demonstrations[each.path].dataset for each in kept]
  demonstrations = [_scored(dataset, each) for dataset, each in zip(datasets, kept)]
  clips = [clip for dataset, scored, each in zip(datasets, demonstrations, kept) if dataset.cameras
           for clip in report.demonstration_clips(dataset, scored, each.kept_E, notes=_flaws(dataset))]
  report.write_report(workdir, report.Curation(
    kept, demonstrations, _rollouts(config, sources, members), _embedded(config, sources), rows(summary),
    facts(summary), clips))


def summarize(config: Config, workdir: Path, members: Mapping[str, SavedClassifier],
              kept: Sequence[Selection]) -> dict[str, Any]:
  """Returns the results of all stages that there are."""
  scored = read_scores(workdir)
  classifiers = {name: {
    "kind": member.kind, "inputs": list(member.inputs),
    "auroc_demonstrations": {path: each["auroc"].get(name) for path, each in scored.items()},
    "auroc_validation_rollouts": metrics.auroc(members[name].rollouts.validation_E,
                                               members[name].rollouts.validation_success_E),
    "validation_loss": members[name].trained.validation_loss, "epoch": members[name].trained.epoch,
    "losses": dict(members[name].losses)} for name, member in config.classifiers.items()}
  return {
    "classifiers": classifiers,
    "length_only_auroc": {path: each["auroc"].get("length_only") for path, each in scored.items()},
    "selection": {each.path: {"kept": int(each.kept_E.sum()), "of": len(each.kept_E), "rule": each.rule,
                              "threshold": each.threshold, "classifiers": list(config.select.classifiers)}
                  for each in kept},
    "embeddings": _read(workdir / EMBED_NAME), "policies": _read(workdir / EVALUATION_NAME)}


def rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
  """Returns the table of the page: a row per classifier, and one of the lengths alone."""
  found = [{"classifier": name, "kind": each["kind"], "reads": " + ".join(each["inputs"]),
            "AUROC, demonstrations": _numbers(each["auroc_demonstrations"].values()),
            "AUROC, validation rollouts": f"{each['auroc_validation_rollouts']:.3f}",
            "validation loss": f"{each['validation_loss']:.4f}"} for name, each in summary["classifiers"].items()]
  lengths = _numbers(summary["length_only_auroc"].values())
  return [*found, {**dict.fromkeys(found[0], "-"), "classifier": "length alone", "AUROC, demonstrations": lengths}]


def facts(summary: Mapping[str, Any]) -> dict[str, str]:
  """Returns the success of the policies, for the top of the page."""
  compared = (summary["policies"] or {}).get("success", {})
  return {f"success, trained on {name}": f"{100 * each['rate']:.0f} % ({100 * each['interval'][0]:.0f} to "
          f"{100 * each['interval'][1]:.0f})" for name, each in compared.items() if each["rate"] is not None}


def _numbers(values) -> str:
  return ", ".join("-" if value is None else f"{value:.3f}" for value in values)


def _scored(dataset: Dataset, chosen: Selection) -> Scored:
  return Scored(Path(chosen.path).name, chosen.scores_E, labels.clean_of(dataset), np.asarray(dataset.lengths),
                DEMONSTRATION_CLASSES, chosen.threshold)


def _flaws(dataset: Dataset) -> list[str]:
  return [str(data.metadata.get("flaw", "")) for _, data in dataset.iterate()]


def _rollouts(config: Config, sources: Sources, members: Mapping[str, SavedClassifier]) -> list[Scored]:
  """Returns the validation rollouts of each classifier that selects, with its scores."""
  chosen = {name: members[name] for name in config.select.classifiers}
  return [Scored(f"{name}, rollouts of {each.trained.validated_on}", each.rollouts.validation_E,
                 each.rollouts.validation_success_E,
                 np.asarray(sources.rollouts[each.trained.validated_on].dataset.lengths))
          for name, each in chosen.items()]


def _embedded(config: Config, sources: Sources) -> list[Embedded]:
  """Returns the mean embedding of every episode, by the first classifier's policy that selects and reads any."""
  reading = [config.classifiers[name] for name in config.select.classifiers
             if EMBEDDINGS in config.classifiers[name].inputs]
  if not reading:
    return []
  mean = lambda source: np.stack([  # noqa: E731
    episode.mean(axis=0) for episode in sources.embeddings_of(source, reading[0].policy)])
  found = []
  for name, source in sources.demonstrations.items():
    found.append(Embedded(Path(name).name, mean(source), labels.clean_of(source.dataset), DEMONSTRATION_CLASSES))
  for name, source in sources.rollouts.items():
    found.append(Embedded(f"rollouts of {name}", mean(source), sources.success(source)))
  return found


def _read(file: Path) -> Any:
  return json.loads(file.read_text(encoding="utf8")) if file.is_file() else None
