"""One way to load a policy: shipped ones, directories new and old, openpi's configurations, files of your own."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from small import FLOW, droid_observation, fresh, stats

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import directory, keys
from pi0rag_jax.policy.directory import ASSETS, build, describe, load, load_stats, shipped
from pi0rag_jax.policy.spec import FILE_NAME, ROBOT_FILE, TOKENIZER_NAME, PolicySpec
from pi0rag_jax.steering.agent import Agent

TOKENIZER = pathlib.Path(__file__).parents[1] / "robots/recorded/tokenizer/tiny_paligemma_like.model"


def test_shipped_policies_say_what_they_are():
  assert shipped() == ["aloha_small", "calvin_small", "libero_small", "metaworld_arena", "metaworld_small",
                       "mobile_small", "panda_small", "panda_tasks", "widowx_small"]
  spec, directory = describe("panda_tasks")
  assert spec.tasks == ("insertion", "pick_and_place", "pouring", "stacking") and spec.renderer == "raycast"
  assert (spec.family, spec.start, spec.horizon, spec.control_hz) == ("pi0", "zero", 16, 20.0)
  assert load_stats(spec, directory)["state"].dim == 10


@pytest.mark.parametrize(("name", "fingerprint"), [
  ("panda_small", "panda_small-3aeabbc574ab7176"), ("panda_tasks", "panda_tasks-98cf61326bc10a16")])
def test_memories_of_shipped_policies_stay_theirs(name, fingerprint):
  assert load(name).fingerprint == fingerprint


def test_a_spec_comes_back(tmp_path):
  for name in ("panda_small", "pi05_droid_jointpos_polaris", "pi0_fast_droid_jointpos_polaris"):
    spec, _ = describe(name)
    spec.save(tmp_path)
    found = PolicySpec.load(tmp_path)
    assert dataclasses.replace(found, model=spec.model, data=spec.data) == spec
    for field in ("family", "discrete_state_input", "action_tokenizer", "use_quantile_norm"):
      assert getattr(found.model, field) == getattr(spec.model, field)
    for field in ("robot", "delta_mask", "default_prompt", "stats_id"):
      assert getattr(found.data, field) == getattr(spec.data, field)


def test_a_directory_of_version_1_is_read(tmp_path):
  """As c3326bc wrote it."""
  sizes = PolicySpec.load(ASSETS / "panda_small").network
  old = {"name": "old", "model": sizes.to_dict(), "state_dim": 10, "asset_id": "panda_sim", "renderer": "raycast",
         "task": "insertion+stacking", "image_size": 64, "control_hz": 20.0, "execute_steps": 4, "denoising_steps": 10,
         "action_layout": {"position": [0, 1, 2], "rotation": [3], "gripper": [4],
                           "low": [-0.015, -0.015, -0.015, -0.075, 0.0], "high": [0.015, 0.015, 0.015, 0.075, 1.0]}}
  (tmp_path / FILE_NAME).write_text(json.dumps(old))
  spec, _ = describe(tmp_path)
  assert spec.tasks == ("insertion", "stacking") and spec.data.robot == "panda" and spec.network == sizes
  old["action_layout"]["high"][0] = 1.0
  (tmp_path / FILE_NAME).write_text(json.dumps(old))
  with pytest.raises(Pi0RagError, match="for another robot than the simulated Panda: train or export it anew"):
    describe(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """openpi's layout, in a folder that has the configuration's name."""
  directory = tmp_path_factory.mktemp("checkpoints") / "pi05_droid" / "mine" / "20000"
  checkpoints.save_checkpoint(directory, fresh(FLOW), {"droid": {"state": stats(8), "actions": stats(8)}})
  return directory


@pytest.fixture
def fine_tuned(checkpoint, tmp_path, text_tokenizer):
  """A directory as train.launch makes it of a fine-tune, with sizes and a tokenizer of its own."""
  directory = shutil.copytree(checkpoint, tmp_path / "policy")
  spec, _ = describe("pi05_droid", checkpoint)
  dataclasses.replace(spec, sizes=FLOW, denoising_steps=2, start="zero").save(directory)
  shutil.copyfile(text_tokenizer.path, directory / TOKENIZER_NAME)
  return directory


def test_a_directory_says_all_that_it_takes(fine_tuned):
  policy = load(fine_tuned)
  assert policy.robot.name == "droid" and policy.network.packed and policy.unit_distance is None
  assert policy.key_name == "values+state1-uncalibrated"
  first, again = (Agent(policy).infer(droid_observation())["actions"] for _ in range(2))
  np.testing.assert_array_equal(first, again)
  # Named as a configuration's checkpoint, the sizes and the tokenizer there count all the same.
  by_name = load("pi05_droid", checkpoint=fine_tuned, start="zero", denoising_steps=2)
  np.testing.assert_array_equal(Agent(by_name).infer(droid_observation())["actions"], first)


def test_a_fine_tune_of_before_policy_json_is_read_by_its_record(fine_tuned):
  (fine_tuned / FILE_NAME).unlink()
  (fine_tuned / "record.json").write_text(json.dumps({"openpi": "pi05_droid", "model": FLOW.to_dict()}))
  spec, _ = describe(fine_tuned)
  assert (spec.name, spec.network) == ("pi05_droid", FLOW)
  assert describe("pi05_droid", fine_tuned)[0].network == FLOW


def test_an_openpi_checkpoint_is_known_by_its_folders_name(checkpoint, tmp_path, monkeypatch):
  assert describe(checkpoint)[0].name == "pi05_droid"
  copy = shutil.copytree(checkpoint, tmp_path / "anonymous")
  with pytest.raises(Pi0RagError, match="--policy=NAME --checkpoint="):
    describe(copy)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert describe("pi05_droid", "~/anonymous")[1] == copy


def test_a_file_of_your_own_is_a_policy(checkpoint, tmp_path):
  """Its robot goes with the policy directory."""
  file = tmp_path / "mine.py"
  file.write_text("from configs.my_robot import *")
  spec, directory = describe(file, checkpoint)
  assert spec.name == "my_robot" and callable(spec.data.robot) and directory == checkpoint
  with pytest.raises(Pi0RagError, match="the robot is a function: say which file it is from"):
    spec.save(tmp_path)
  spec.save(tmp_path, robot_file=file)
  found = PolicySpec.load(tmp_path)
  assert found.data.robot(found.data, "pi05").name == "my_robot"
  for text, message in (("x = 1", r"robot\.py has no function robot\(data, family\)"),
                        ("import nowhere", r"cannot read .*robot\.py: No module named 'nowhere'"),
                        ("def robot(:", r"cannot read .*robot\.py: invalid syntax")):
    (tmp_path / ROBOT_FILE).write_text(text)
    with pytest.raises(Pi0RagError, match=message):
      PolicySpec.load(tmp_path)


def test_keys_have_names(fine_tuned):
  width = keys.feature_width(keys.KeyRecipe("values"), FLOW)
  keys.KeyStats.identity(keys.KeyRecipe("values"), width, unit_distance=3.0).save(fine_tuned, "mine")
  policy = load(fine_tuned, key_name="mine")
  assert (policy.unit_distance, policy.key_name, policy.key_dim) == (3.0, "values+state1", width + 8)
  with pytest.raises(Pi0RagError, match=r"no key_stats\.yours\.json .* \(there are: mine\)"):
    load(fine_tuned, key_name="yours")


@pytest.mark.parametrize(("text", "message"), [
  ("{", "input data was truncated"), ("[1]", "expected `object`, got `array`"),
  ("{}", "version 1: object missing required field `name`"),
  ('{"version": 9}', "version 9; this code reads versions 1 and 2"),
  ('{"version": 2, "name": "a", "robot": 3}', "version 2: expected `str`, got `int` - at `$.robot`"),
])
def test_a_damaged_spec_is_named(tmp_path, text, message):
  (tmp_path / FILE_NAME).write_text(text)
  with pytest.raises(Pi0RagError, match=rf"{FILE_NAME}.*{re.escape(message)}"):
    describe(tmp_path)


@pytest.mark.parametrize(("policy", "message"), [
  ("panda_smal", "unknown policy .*Did you mean 'panda_small'"),
  ("pi0_libero", "no checkpoint of 'pi0_libero' is released: give the directory"),
  ("nothing.py", "no configuration file nothing.py"),
  ("runs/nothing/policy", "no policy directory 'runs/nothing/policy'$"),
])
def test_what_is_no_policy_is_refused(policy, message):
  with pytest.raises(Pi0RagError, match=message):
    load(policy)


def test_a_training_that_has_not_finished_says_so(tmp_path, fine_tuned):
  """Wherever the configurations of openpi's names may lie above it."""
  workdir = tmp_path / "debug" / "mine"
  checkpoint = workdir / "checkpoints" / "500"
  checkpoint.mkdir(parents=True)
  (workdir / "config.json").write_text("{}")
  for part in (workdir, workdir / "policy", checkpoint):
    with pytest.raises(Pi0RagError, match=r"the training in .*mine has not finished: .* writes .*/policy$"):
      load(part)
  shutil.copytree(fine_tuned, workdir / "policy")
  with pytest.raises(Pi0RagError, match=r"its policy is .*/mine/policy$"):
    load(workdir)
  assert describe(workdir / "policy")[1] == workdir / "policy"


@pytest.mark.parametrize("name", ["panda_small", "directory"])
def test_a_policy_with_parameters_takes_no_checkpoint(fine_tuned, name):
  with pytest.raises(Pi0RagError, match="has parameters of its own: leave out the checkpoint 'mine'"):
    load(fine_tuned if name == "directory" else name, checkpoint="mine")


def test_a_tokenizer_of_another_network_is_refused(tmp_path):
  """Its tokens would be read from beyond the embedding's last row."""
  spec, shipped = describe("panda_small")
  path = shutil.copy(TOKENIZER, tmp_path / TOKENIZER_NAME)
  with pytest.raises(Pi0RagError, match=rf"the tokenizer is {path}, of \d+ tokens; the network has \d+: copy"):
    directory.tokenizer_of(tmp_path, spec.network)
  assert directory.tokenizer_of(shipped, spec.network).vocab_size <= spec.network.vocab_size


def test_a_policy_without_statistics_or_parameters_says_so(fine_tuned, tmp_path):
  spec, _ = describe(fine_tuned)
  shutil.rmtree(fine_tuned / "assets")
  with pytest.raises(Pi0RagError, match="has no assets/"):
    build(spec, fine_tuned)


def test_damaged_specs_are_one_line(fine_tuned):
  """Bytes of the file changed or cut off: another policy, or refused by name."""
  path = fine_tuned / FILE_NAME
  whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
  for at in rng.choice(len(whole), 300, replace=False).tolist():
    path.write_bytes(whole[:at] if rng.random() < 0.3 else whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :])
    try:
      describe(fine_tuned)
    except Pi0RagError as error:
      refused += 1
      assert FILE_NAME in str(error) and "\n" not in str(error)
  assert refused > 100
