"""The command's stages on tiny data, from the checkpoints to the report, each alone; and what comes of it."""

import json
import shutil

import numpy as np
import pytest
import tiny

from configs import curation_panda
from pi0rag_jax.curation import selection
from pi0rag_jax.data.episodes import episode_path, write_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.policy import Policy
from train import curate, curation_policies, curation_report, curation_scores

PROMPT = "pick up the red cube and place it on the white pad"


def make_config(folder):
  config = curation_panda.get_config().copy_and_resolve_references().unlock()
  config.training = tiny.make_config(folder / "demonstrations").unlock()
  config.checkpoints = 2
  given = [(name, str(write(folder / name, 6, first))) for name, first in (("early", 10), ("late", 20))]
  config.rollouts.given = tuple(given)
  config.rollouts.every = 2
  config.classify.epochs = 3
  for name in set(config.classifiers) - {"state", "prefix"}:
    del config.classifiers[name]
  config.embed.batch_size = 8
  config.select.rule, config.select.value = "fraction", 0.5
  return config.lock()


def write(folder, episodes, first, **changes):
  """Returns the folder with episodes of 64 px of which every other one succeeded."""
  for seed in range(first, first + episodes):
    frames, rng = 6 + seed % 3, np.random.default_rng(seed)
    pictures = {name: rng.integers(0, 255, (frames, 64, 64, 3), np.uint8) for name in tiny.CAMERAS}
    changed = {"images": pictures, "success": bool(seed % 2), "prompt": PROMPT, **changes}
    if "success" in changes:
      changed["flaw"] = "clean" if seed % 2 else "detour"
    write_episodes(episode_path(folder, seed), [tiny.make_episode(seed, frames=frames, **changed)])
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_policy_dir):
  """A run up to the report, its training replaced by one that is over: (configuration, its folder)."""
  folder = tmp_path_factory.mktemp("curation")
  write(folder / "demonstrations", 6, 0, success=True)
  config = make_config(folder)

  def trained(training, workdir, *, keep):
    for step in keep:
      shutil.copytree(tiny_policy_dir, workdir / "checkpoints" / str(step))
    shutil.copytree(tiny_policy_dir, workdir / "policy")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(curation_policies.loop, "train_and_evaluate", trained)
    curate.curate(config, folder / "run")
  return config, folder / "run"


def test_every_checkpoint_is_a_policy(run, observations):
  found = curation_policies.policies(*run)
  assert list(found) == ["0000002", "0000004"]
  assert json.loads((found["0000004"] / "record.json").read_text()) == {"step": 4}
  assert Policy.load(found["0000002"]).encode(observations).key_BE.shape[0] == 2


def test_the_stages_leave_a_selection_that_training_reads(run):
  config, folder = run
  found = selection.read_json(folder / curation_policies.SELECTION_NAME)
  assert len(found) == 1 and found[0].kept_E.sum() == 3 and np.isfinite(found[0].scores_E).all()
  kept = ",".join(map(str, np.flatnonzero(found[0].kept_E)))
  assert (folder / "selection.txt").read_text() == f"{config.training.data_dir} {kept}\n"
  assert len(selection.kept_places(config.training.data_dir, folder / curation_policies.SELECTION_NAME)) == 3


def test_scores_stand_beside_those_of_the_length(run):
  scored = json.loads((run[1] / "scores.json").read_text())
  (of,) = scored.values()
  assert set(of["auroc"]) == {"state", "prefix", "length_only"} and of["lengths"] == [6, 7, 8, 6, 7, 8]
  assert of["auroc"]["length_only"] == pytest.approx(0.5)  # 6, 8, 7 against 7, 6, 8
  assert all(0 < score < 1 for scores in of["scores"].values() for score in scores)


def test_the_summary_and_the_page_tell_all(run):
  config, folder = run
  summary = json.loads((folder / "summary.json").read_text())
  assert set(summary["classifiers"]) == {"state", "prefix"} and summary["policies"] is None
  assert summary["selection"][config.training.data_dir] | {"threshold": 0} == {
    "kept": 3, "of": 6, "rule": "fraction", "threshold": 0, "classifiers": ["prefix"]}
  page = (folder / "report.html").read_text()
  assert "3 of 6 demonstrations are kept" in page and "length alone" in page
  rate = {"rate": 0.5, "interval": [0.25, 0.75]}
  assert curation_report.facts({"policies": {"success": {"kept": rate}}}) == {
    "success, trained on kept": "50 % (25 to 75)"}


def test_what_was_done_is_not_done_again(run, monkeypatch):
  config, folder = run
  before = (folder / "scores.json").read_text()
  monkeypatch.setattr(curation_scores, "train_member", lambda *_: pytest.fail("trained again"))
  curate.curate(config, folder, ["embed", "classify", "score"])
  report = json.loads((folder / "embed.json").read_text())
  assert report.pop("peak_memory_mb") > 0
  assert {(entry["frames"], entry["cached"]) for name, entry in report.items() if "rollouts" in name} == {(22, 22)}
  assert all(entry["computed"] == entry["cached"] and entry["frames_per_s"] > 0 for entry in report.values())
  assert (folder / "scores.json").read_text() == before


def test_a_random_selection_is_as_large(run):
  kept = selection.read_json(run[1] / "selection.json")
  drawn = curation_policies.random_like(kept, 0)
  assert drawn[0].kept_E.sum() == 3 and drawn[0].path == kept[0].path
  training = curation_policies.with_selection(run[0].training, run[1] / "selection.json")
  assert training.selection == str(run[1] / "selection.json") and run[0].training.selection is None


def test_stages_alone_say_what_is_missing(run, tmp_path):
  config, _ = run
  for stage, message in (("score", "no classifier in .*--stages=classify"), ("select", "run --stages=score"),
                         ("embed", "no policies in .*--stages=train")):
    with pytest.raises(Pi0RagError, match=message):
      curate.curate(config.copy_and_resolve_references(), tmp_path, [stage])
  config = config.copy_and_resolve_references().unlock()
  config.rollouts.given = ()
  with pytest.raises(Pi0RagError, match=r"no rollouts in .*--stages=rollout, or give recorded ones"):
    curate.curate(config, tmp_path, ["classify"])
  with pytest.raises(Pi0RagError, match=r"unknown stage 'embeds'. Did you mean 'embed'"):
    curate.curate(config, tmp_path, ["embeds"])


def test_the_comparison_counts_shared_seeds_alone():
  outcomes = {"all": {1: "success", 2: "failure", 3: "failure", 4: "success"},
              "random": {1: "success", 2: "failure", 3: "crashed", 4: "failure"},
              "kept": {1: "success", 2: "success", 3: "success", 4: "success"}}
  found = curation_policies.compare(outcomes)
  assert (found["seeds"], found["crashed"]) == (3, 1)
  assert {name: each["rate"] for name, each in found["success"].items()} == pytest.approx(
    {"all": 2 / 3, "random": 1 / 3, "kept": 1.0})
  assert (found["kept against all"]["fixed"], found["kept against random"]["fixed"]) == (1, 2)


def test_a_log_that_was_cut_off_is_mended(tmp_path):
  log = tmp_path / "kept.jsonl"
  entries = [{"policy": "p", "seed": 1, "outcome": "success"}, {"policy": "q", "seed": 2, "outcome": "failure"}]
  log.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries) + '{"pol')
  assert curation_policies.read_outcomes(log, "p") == {1: "success"}
  assert log.read_text().endswith('"failure"}\n')


@pytest.mark.parametrize(("steps", "every", "count", "found"), [
  (14_000, 500, 4, [3500, 7000, 10_500, 14_000]), (1000, 300, 2, [600, 1000]), (4, 2, 2, [2, 4])])
def test_checkpoints_are_evenly_spaced_validations(tmp_path, steps, every, count, found):
  config = curation_panda.get_config().unlock()
  config.training.steps, config.training.validate_every, config.checkpoints = steps, every, count
  assert curation_policies.checkpoint_steps(config) == found
  config.checkpoints = 100
  with pytest.raises(Pi0RagError, match="can keep 2 to "):
    curation_policies.checkpoint_steps(config)
