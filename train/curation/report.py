"""The last stage of curation: `summary.json` and the page `report.html`, of what the other stages left."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.curation import report, selection, verdicts
from pi0rag_jax.curation.figures import Embedded, Scored
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.curation.saved import SavedClassifier
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.curation.views import EpisodesView
from pi0rag_jax.typing import Config
from train.curation import summary
from train.curation.classify import load_members
from train.curation.scores import SELECTION_NAME
from train.curation.sources import Sources

SUMMARY_NAME = "summary.json"
DEMONSTRATION_CLASSES = ("flawed", "clean")


def write(config: Config, workdir: Path) -> None:
  """Writes the summary and the page."""
  sources, kept = Sources(config, workdir), selection.read_json(workdir / SELECTION_NAME)
  members = load_members(config, sources, workdir)
  found = summary.summarize(config, workdir, sources, members, kept)
  files.write_json(workdir / SUMMARY_NAME, found)
  datasets = [sources.demonstrations[each.path].dataset for each in kept]
  scored = [_scored(dataset, each) for dataset, each in zip(datasets, kept)]
  clips = [clip for dataset, each, shown in zip(datasets, kept, scored) if dataset.cameras
           for clip in report.demonstration_clips(dataset.source, shown, each.kept_J, notes=_flaws(dataset))]
  report.write_report(workdir, report.Curation(
    kept, scored, _rollouts(config, sources, members), _embedded(config, sources), summary.rows(found),
    summary.facts(found), clips))


def _scored(dataset: EpisodesView, chosen: Selection) -> Scored:
  """Returns the scores of all episodes that a selection numbers."""
  return Scored(Path(chosen.path).name, chosen.scores_J, verdicts.clean(_flaws(dataset)), dataset.source.lengths,
                DEMONSTRATION_CLASSES, chosen.threshold)


def _flaws(dataset: EpisodesView) -> list[str]:
  return verdicts.flaws_of(dataset.source)


def _rollouts(config: Config, sources: Sources, members: Mapping[str, SavedClassifier]) -> list[Scored]:
  """Returns the validation rollouts of each classifier that selects, with its scores."""
  chosen = {name: members[name] for name in config.select.scorers if name in members}
  return [Scored(f"{name}, rollouts of {each.trained.validated_on}", each.rollouts.validation_J,
                 each.rollouts.validation_success_J, sources.rollouts[each.trained.validated_on].dataset.lengths)
          for name, each in chosen.items()]


def _embedded(config: Config, sources: Sources) -> list[Embedded]:
  """Returns the mean embedding of every episode, by the policy of the first scorer that selects and reads any."""
  scorers = {**config.classifiers, **config.scorers}
  reading = [scorers[name] for name in config.select.scorers if EMBEDDINGS in scorers[name].inputs]
  if not reading:
    return []
  mean = lambda source: np.stack([  # noqa: E731
    episode.mean(axis=0) for episode in sources.embeddings_of(source, reading[0].policy)])
  found = []
  for name, source in sources.demonstrations.items():
    clean_J = verdicts.clean(verdicts.flaws_of(source.dataset))
    found.append(Embedded(Path(name).name, mean(source), clean_J, DEMONSTRATION_CLASSES))
  for name, source in sources.rollouts.items():
    found.append(Embedded(f"rollouts of {name}", mean(source), sources.success(source)))
  return found
