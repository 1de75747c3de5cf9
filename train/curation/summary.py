"""What a curation came to, as `summary.json` holds it and as the table of the page shows it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0rag_jax import schema
from pi0rag_jax.curation import baselines, metrics, selection
from pi0rag_jax.curation.saved import SavedClassifier
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.typing import Config
from train import metrics as train_metrics
from train.curation.embed import EMBED_NAME
from train.curation.retrain import EVALUATION_NAME
from train.curation.scores import check_scored, read_scores, recipes
from train.curation.sources import Source, Sources

BASELINES = {baselines.LENGTH_ONLY: "length alone", baselines.PACE_ONLY: "pace alone"}
_NONE = "-"


def summarize(config: Config, workdir: Path, sources: Sources, members: Mapping[str, SavedClassifier],
              kept: Sequence[Selection]) -> dict[str, Any]:
  """Returns the results of all stages that there are; an AUROC comes with its 95 % interval and number of episodes."""
  scored = read_scores(workdir)
  check_scored(scored, recipes(config, sources, members))
  aurocs = {path: each["auroc"] for path, each in scored["demonstrations"].items()}
  at_equal_pace = lambda name: {  # noqa: E731
    path: each["auroc_at_equal_pace"].get(name) for path, each in scored["demonstrations"].items()}
  rollouts = {checkpoint: rollout_baselines(config, sources, source) for checkpoint, source in sources.rollouts.items()}
  return {
    "config": json.loads(config.to_json_best_effort()),
    "classifiers": {name: {
      "kind": member.kind, "inputs": list(member.inputs), "auroc_demonstrations": _of(name, aurocs),
      "auroc_at_equal_pace": at_equal_pace(name), **rollout_results(members[name])}
      for name, member in config.classifiers.items()},
    "scorers": {name: {"kind": member.kind, "inputs": list(member.inputs), "auroc_demonstrations": _of(name, aurocs),
                       "auroc_at_equal_pace": at_equal_pace(name)}
                for name, member in config.scorers.items()},
    "baselines": {name: {
      "auroc_demonstrations": _of(name, aurocs),
      "auroc_rollouts": {checkpoint: each[name] for checkpoint, each in rollouts.items() if each}}
      for name in BASELINES},
    "selection": {each.path: {"kept": int(each.kept_J.sum()), "of": len(each.kept_J), "rule": each.rule,
                              "threshold": each.threshold, "scorers": list(config.select.scorers)}
                  for each in kept},
    "embeddings": _read(workdir / EMBED_NAME), "policies": read_evaluation(workdir, kept)}


def rollout_results(member: SavedClassifier) -> dict[str, Any]:
  """Returns how a classifier did on the rollouts that it was validated on."""
  scores = member.rollouts
  return {"auroc_validation_rollouts": _auroc(scores.validation_J, scores.validation_success_J),
          "validated_on": member.trained.validated_on, "validation_loss": member.trained.validation_loss,
          "epoch": member.trained.epoch, "losses": dict(member.losses)}


def rollout_baselines(config: Config, sources: Sources, source: Source) -> dict[str, dict[str, Any]]:
  """Returns baseline -> AUROC over whole rollouts, and over them as classifiers see them; {} if all ended the same."""
  success_J = sources.success(source)
  if not metrics.both_classes(success_J):
    return {}
  whole, cut = (baselines.scores(source.dataset, tool_dims=config.tool_dims, frames=frames)
                for frames in (None, sources.frames(source)))
  auroc = lambda values_J: _auroc(metrics.either_way(values_J, success_J), success_J)  # noqa: E731
  return {name: {"whole": auroc(whole[name]), "cut": auroc(cut[name])} for name in BASELINES}


def read_evaluation(workdir: Path, kept: Sequence[Selection]) -> dict[str, Any] | None:
  """Returns the success of the policies trained on this selection; None where there are no such."""
  found = _read(workdir / EVALUATION_NAME)
  if found and found["selection"] != selection.fingerprint(kept):
    train_metrics.log.warning("the policies in '%s' were trained on another selection and are left out: run "
                              "--stages=retrain", workdir / EVALUATION_NAME)
    return None
  return found


def rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
  """Returns the table of the page: a row per scorer, and one per baseline; columns by flaw where any is known."""
  everyone = {**summary["classifiers"], **summary["scorers"], **summary["baselines"]}
  flaws = list(dict.fromkeys(
    flaw for each in everyone.values() for told in each["auroc_demonstrations"].values() for flaw in told))
  columns = lambda each: {  # noqa: E731
    **{f"AUROC, {flaw}": _texts(told.get(flaw) for told in each["auroc_demonstrations"].values()) for flaw in flaws},
    **({"AUROC at equal pace": ", ".join(map(_paired, each.get("auroc_at_equal_pace", {}).values())) or _NONE}
       if flaws else {})}
  found = [{"scorer": name, "kind": each["kind"], "reads": " + ".join(each["inputs"]), **columns(each),
            "AUROC, validation rollouts": _text(each["auroc_validation_rollouts"]),
            "validation loss": f"{each['validation_loss']:.4f}"} for name, each in summary["classifiers"].items()]
  validated_on = dict.fromkeys(each["validated_on"] for each in summary["classifiers"].values())
  blank = dict.fromkeys(found[0], _NONE)
  found += [{**blank, "scorer": name, "kind": each["kind"], "reads": " + ".join(each["inputs"]), **columns(each)}
            for name, each in summary["scorers"].items()]
  return found + [
    {**blank, "scorer": BASELINES[name], **columns(each),
     "AUROC, validation rollouts": _texts(each["auroc_rollouts"][checkpoint]["cut"] for checkpoint in validated_on)}
    for name, each in summary["baselines"].items()]


def facts(summary: Mapping[str, Any]) -> dict[str, str]:
  """Returns the success of the policies, for the top of the page."""
  compared = (summary["policies"] or {}).get("success", {})
  return {f"success, trained on {name}": f"{100 * each['rate']:.0f} % ({100 * each['interval'][0]:.0f} to "
          f"{100 * each['interval'][1]:.0f})" for name, each in compared.items() if each["rate"] is not None}


def _of(name: str, aurocs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
  """Returns path -> flaw -> AUROC of one that scores; nothing where no flaws are known."""
  return {path: {flaw: told[name] for flaw, told in each.items()} for path, each in aurocs.items()}


def _auroc(scores_J, positive_J) -> dict[str, float]:
  return dataclasses.asdict(metrics.auroc_estimate(scores_J, positive_J))


def _texts(estimates: Iterable[Mapping[str, float] | None]) -> str:
  return ", ".join(_NONE if each is None else _text(each) for each in estimates)


def _paired(told: Mapping[str, float | None] | None) -> str:
  return _NONE if told is None or told["value"] is None else f"{told['value']:.3f} ({told['pairs']} pairs)"


def _text(estimate: Mapping[str, float]) -> str:
  return f"{estimate['value']:.3f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _read(file: Path) -> Any:
  return schema.read(file, dict[str, Any]) if file.is_file() else None
