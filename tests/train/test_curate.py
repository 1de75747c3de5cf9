"""The command's stages on tiny data, from the checkpoints to the report, each alone; and what comes of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from configs import curation_panda, curation_stacking
from pi0rag_jax.cluster import Machines
from pi0rag_jax.curation import selection
from pi0rag_jax.data.episodes import episode_path, write_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from train import curate
from train.curation import classify, policies, scores, summary

AGREEMENT = {"state_agreement", "prefix_agreement"}
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
  config.select.scorers, config.select.rule, config.select.value = ("prefix",), "fraction", 0.5
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
    patch.setattr(policies.loop, "train_and_evaluate", trained)
    curate.curate(config, folder / "run")
  return config, folder / "run"


def test_every_checkpoint_is_a_policy(run, observations):
  found = policies.policies(*run)
  assert list(found) == ["0000002", "0000004"]
  assert json.loads((found["0000004"] / "record.json").read_text()) == {"step": 4}
  policy = directory.load(found["0000002"])
  _, encoded = policy.encode(policy.start(2), policy.prepare(observations))
  assert encoded.key_BE.shape[0] == 2


def test_the_stages_leave_a_selection_that_training_reads(run):
  config, folder = run
  found = selection.read_json(folder / scores.SELECTION_NAME)
  assert len(found) == 1 and found[0].kept_J.sum() == 3 and np.isfinite(found[0].scores_J).all()
  kept = ",".join(map(str, np.flatnonzero(found[0].kept_J)))
  assert (folder / "selection.txt").read_text() == f"{config.training.data[0]['path']} {kept}\n"


def test_scores_stand_beside_those_of_length_and_pace(run):
  scored = json.loads((run[1] / "scores.json").read_text())
  (of,) = scored["demonstrations"].values()
  assert of["lengths"] == [6, 7, 8, 6, 7, 8] and set(scored["recipes"]) == {"state", "prefix", *AGREEMENT}
  assert list(of["auroc"]) == ["all flaws", "detour"]
  assert all(set(told) == {"state", "prefix", *AGREEMENT, "length_only", "pace_only"} for told in of["auroc"].values())
  length = of["auroc"]["detour"]["length_only"]  # 6, 8, 7 against 7, 6, 8
  assert length["value"] == pytest.approx(0.5) and 0 < length["low"] < 0.5 < length["high"] < 1 and length["n"] == 6
  assert all(0 < score <= 1 for scores in of["scores"].values() for score in scores)


def test_the_summary_and_the_page_tell_all(run):
  config, folder = run
  told = json.loads((folder / "summary.json").read_text())
  assert set(told["classifiers"]) == {"state", "prefix"} and told["policies"] is None
  assert set(told["scorers"]) == AGREEMENT and told["config"]["select"]["scorers"] == ["prefix"]
  assert told["selection"][config.training.data[0]["path"]] | {"threshold": 0} == {
    "kept": 3, "of": 6, "rule": "fraction", "threshold": 0, "scorers": ["prefix"]}
  found = told["baselines"]["length_only"]
  assert set(found["auroc_rollouts"]) == {"early", "late"} and set(found["auroc_rollouts"]["late"]) == {"whole", "cut"}
  assert found["auroc_rollouts"]["late"]["whole"]["value"] >= 0.5
  page = (folder / "report.html").read_text()
  assert "3 of 6 demonstrations are kept" in page and "length alone" in page and "pace alone" in page
  assert "AUROC, all flaws" in page and "AUROC, detour" in page
  rate = {"rate": 0.5, "interval": [0.25, 0.75]}
  assert summary.facts({"policies": {"success": {"kept": rate}}}) == {
    "success, trained on kept": "50 % (25 to 75)"}


def test_what_was_done_is_not_done_again(run, monkeypatch):
  config, folder = run
  before = (folder / "scores.json").read_text()
  monkeypatch.setattr(classify, "train_member", lambda *_: pytest.fail("trained again"))
  curate.curate(config, folder, ["embed", "classify", "score"])
  report = json.loads((folder / "embed.json").read_text())
  assert {(entry["frames"], entry["cached"]) for name, entry in report.items() if "rollouts" in name} == {(22, 22)}
  for entry in report.values():
    assert entry["computed"] == entry["cached"] and entry["frames_per_s"] > 0 and entry["peak_growth_mb"] >= 0
  assert (folder / "scores.json").read_text() == before


def test_embeddings_are_computed_on_a_cluster_too(run, tmp_path, made_up_ray):
  config, folder = run
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "embeddings")
  made_up_ray(one=2)
  curate.curate(config, tmp_path, ["embed"], machines=Machines("local"))
  files = [path.relative_to(folder) for path in (folder / "embeddings").rglob("*.npy")]
  assert files
  for path in files:
    assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_what_is_stale_is_said(run, tmp_path):
  config, folder = run
  config = config.copy_and_resolve_references().unlock()
  config.rollouts.cut = 3
  for stage in ("score", "report"):
    with pytest.raises(Pi0RagError, match=r"was trained on other rollouts, labels, .*run --stages=classify again"):
      curate.curate(config, folder, [stage])
  copy = shutil.copytree(folder, tmp_path / "run")
  scored = json.loads((copy / "scores.json").read_text())
  (copy / "scores.json").write_text(json.dumps(scored | {"recipes": {"prefix": "of before"}}))
  with pytest.raises(Pi0RagError, match="no scores by 'prefix' as it is now: run --stages=score"):
    curate.curate(run[0], copy, ["select"])
  config.embed.pool = "camera"
  with pytest.raises(Pi0RagError, match=r"the embeddings of '.*early' are missing: run --stages=embed \(no features"):
    curate.curate(config, copy, ["classify"])


def test_agreements_select_without_rollouts(run, tmp_path):
  config, folder = run
  config, copy = config.copy_and_resolve_references().unlock(), shutil.copytree(folder, tmp_path / "run")
  config.select.scorers = ("prefix_agreement",)
  curate.curate(config, copy, ["select", "report"])
  (found,) = selection.read_json(copy / scores.SELECTION_NAME)
  scored = json.loads((copy / "scores.json").read_text())["demonstrations"].values()
  assert found.scores_J.tolist() == next(iter(scored))["scores"]["prefix_agreement"] and found.kept_J.sum() == 3
  config.select.rule = "roc"
  with pytest.raises(Pi0RagError, match=r"the rule 'roc' takes its threshold from rollouts, of which prefix_agreement"):
    curate.curate(config, copy, ["select"])
  config.select.scorers = ("perfix",)
  with pytest.raises(Pi0RagError, match=r"scorer 'perfix'"):
    curate.curate(config, copy, ["select"])
  config.select.scorers, config.scorers.prefix_agreement.horizon = ("prefix",), 3
  with pytest.raises(Pi0RagError, match="no scores by 'prefix_agreement' as it is now: run --stages=score"):
    curate.curate(config, copy, ["report"])


def test_stages_alone_say_what_is_missing(run, tmp_path):
  config, _ = run
  for stage, message in (("score", "no classifier in .*--stages=classify"), ("select", "run --stages=score"),
                         ("embed", "no policies in .*--stages=train")):
    with pytest.raises(Pi0RagError, match=message):
      curate.curate(config.copy_and_resolve_references(), tmp_path, [stage])
  config = config.copy_and_resolve_references().unlock()
  config.embed.policies = ("late",)
  with pytest.raises(Pi0RagError, match=r"scorers read embeddings of '', embed.policies has 'late': name them"):
    curate.curate(config, tmp_path, ["embed"])
  config.rollouts.given = ()
  with pytest.raises(Pi0RagError, match=r"no rollouts in .*--stages=rollout, or give recorded ones"):
    curate.curate(config, tmp_path, ["classify"])
  with pytest.raises(Pi0RagError, match=r"unknown stage 'embeds'. Did you mean 'embed'"):
    curate.curate(config, tmp_path, ["embeds"])


def test_the_configuration_has_the_entries_that_it_should():
  for name in (curation_panda, curation_stacking):
    curate.check(name.get_config())
  config = curation_stacking.get_config().unlock()
  assert config.rollouts.task == "stacking" and "--task=stacking --flaw=all" in config.training.make_data
  assert config.training.make_data.endswith(f"--out={config.training.data[0]['path']}")
  guide = (Path(__file__).parents[2] / "docs/training.md").read_text("utf8")
  for name in (curation_panda, curation_stacking):
    assert f"--out={name.get_config().training.data[0]['path']}" in guide
  del config.rollouts.cut
  with pytest.raises(Pi0RagError, match=r"the configuration lacks rollouts.cut; configs/curation_panda.py explains"):
    curate.check(config)
  config = curation_panda.get_config().unlock()
  config.classify.success_weight = 4.0
  with pytest.raises(Pi0RagError, match=r"unknown entry of the configuration: 'classify.success_weight'"):
    curate.check(config)
