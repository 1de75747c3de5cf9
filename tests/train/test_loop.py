"""Training on a tiny model: it learns, resumes exactly, and exports what a policy needs."""

import contextlib
import gc
import json
import logging
import os
import threading

import jax
import numpy as np
import pytest
import tiny

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, norm_stats
from pi0rag_jax.policy.spec import PolicySpec
from train import loop
from train.checkpoint import CheckpointStore


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
  """Workdirs of a run of four steps, and of the same run killed before it saved the fourth."""
  straight = tmp_path_factory.mktemp("straight")
  killed = straight.with_name(f"{straight.name}_killed")
  tiny.train(tiny.make_config(data_dir), straight, killed=killed, at=4)
  return straight, killed


@pytest.fixture(scope="module")
def straight(runs):
  return runs[0]


def _leaves(workdir, step):
  with loop_checkpointer() as checkpointer:
    return checkpointer.restore(workdir / "checkpoints" / str(step) / "train_state")


def loop_checkpointer():
  import orbax.checkpoint as ocp

  return ocp.PyTreeCheckpointer()


@pytest.fixture
def nothing_left():
  """Fails a test of one more run in this process that leaves a file open, a thread, or a program of `pmap`'s."""
  before = _held()
  yield
  gc.collect()
  assert _held() - before == set()


def _held() -> set:
  files = set()
  for descriptor in os.listdir("/proc/self/fd"):
    with contextlib.suppress(FileNotFoundError):  # the listing's own
      files.add(os.readlink(f"/proc/self/fd/{descriptor}"))
  programs = {f"program {number} of pmap" for number in range(sum(
    program.hlo_modules()[0].name == "jit__fun" for program in jax.devices()[0].client.live_executables()))}
  return files | programs | {f"thread {thread.name}" for thread in threading.enumerate()}


@pytest.mark.usefixtures("nothing_left")
def test_two_steps_and_two_more_equal_four(data_dir, runs):
  straight, killed = runs
  assert CheckpointStore(killed, asset_id="panda_sim").steps() == [2]
  loop.train_and_evaluate(tiny.make_config(data_dir), killed)
  expected, resumed = _leaves(straight, 4), _leaves(killed, 4)
  assert expected.keys() == resumed.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(resumed[name], value, err_msg=name)
  for a, b in zip(*(jax.tree.leaves(checkpoints.load_params(w / "checkpoints" / "4")) for w in runs)):
    np.testing.assert_array_equal(a, b)


def test_the_policy_directory_is_complete(straight, data_dir):
  policy = straight / "policy"
  spec = PolicySpec.load(policy)
  assert (spec.renderer, spec.tasks, spec.data.robot, spec.start) == ("raycast", ("pick_and_place",), "panda", "zero")
  params = checkpoints.load_params(policy)
  assert "auxiliary" not in params and "PaliGemma" in params
  assert set(norm_stats.load_norm_stats(policy, spec.data.stats_id)) == {"state", "actions"}
  assert (policy / "tokenizer.model").is_file()
  record = json.loads((policy / "record.json").read_text())
  assert record["config"]["seed"] == 0
  task = record["tasks"]["pick_and_place"]
  assert sum(record["frames"].values()) == task["frames"] == 6 * tiny.FRAMES
  assert task["seeds"] == [0, task["episodes"] - 1]
  assert record["validation"]["path_error"] >= 0


def test_the_exported_weights_are_the_average(straight):
  """With decay 0.998 the average is near the start, and not the raw weights."""
  raw = _leaves(straight, 4)["params.policy.action_in_proj.kernel"]
  average = checkpoints.load_params(straight / "checkpoints" / "4")["action_in_proj"]["kernel"]
  assert np.abs(raw - average).max() > 0


def test_the_loss_falls(data_dir, tmp_path, caplog):
  config = tiny.make_config(
    data_dir, steps=150, log_every=50, validate_every=150, learning_rate=1e-2, auxiliary_weight=0.1)
  with caplog.at_level(logging.INFO, "train"):
    loop.train_and_evaluate(config, tmp_path)
  losses = [float(m.split("flow_loss ")[1].split()[0]) for m in caplog.messages if "  train  " in m]
  assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.usefixtures("nothing_left")
def test_mistakes_are_named(data_dir, straight, tmp_path):
  with pytest.raises(Pi0RagError, match=r"no data set at '/none'; make it with: python -m pi0rag_jax.sim"):
    loop.train_and_evaluate(tiny.make_config("/none"), tmp_path)
  with pytest.raises(Pi0RagError, match=r"unknown kind of training 'polisy'\. Did you mean 'policy'"):
    loop.train_and_evaluate(tiny.make_config(data_dir, kind="polisy"), tmp_path)
  with pytest.raises(Pi0RagError, match=r"column 'velocity', which is no camera of .*: unknown field"):
    loop.train_and_evaluate(tiny.make_config(data_dir, auxiliary_targets=("velocity",)), tmp_path)
  wider = tiny.make_config(data_dir)
  with wider.unlocked():
    wider.model.expert.width = 16
  with pytest.raises(Pi0RagError, match=r"workdir .* of another configuration: model differ \(model was"):
    loop.train_and_evaluate(wider, straight)
  with pytest.raises(Pi0RagError, match="does not fit the model"):
    loop.train_and_evaluate(_from(wider, straight), tmp_path)


def test_training_stops_when_validation_stops_improving(data_dir, tmp_path, caplog):
  # A learning rate of zero improves nothing after the first validation.
  config = tiny.make_config(data_dir, steps=40, validate_every=2, patience=2, learning_rate=0.0)
  with caplog.at_level(logging.INFO, "train"):
    loop.train_and_evaluate(config, tmp_path)
  assert any("no better path_error for 2 validations" in message for message in caplog.messages)
  assert CheckpointStore(tmp_path, asset_id="panda_sim").steps()[-1] < 12


def _from(config, workdir):
  """Returns the configuration that starts from a run's policy."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.init_checkpoint = str(workdir / "policy")
  return config
