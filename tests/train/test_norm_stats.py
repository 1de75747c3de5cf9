"""The command that computes statistics: openpi's file, equal to what training computes, and what does not fit."""

import io

import numpy as np
import pytest
import tiny
from absl import flags
from rich.console import Console

from configs import mobile_vla_lstm, pi0_libero_lora
from pi0rag_jax.data.running_stats import RunningStats
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import norm_stats as files
from pi0rag_jax.robots.normalize import NormStats
from train import head_data, norm_stats, policy_data
from train.named import filled, named_config, read_model


def _stats(**changes) -> dict[str, NormStats]:
  values = {"mean": [0.0, 1.0], "std": [1.0, 1.0], "q01": [-2.0, -1.0], "q99": [2.0, 3.0]} | changes
  return dict.fromkeys(("state", "actions"), NormStats.from_dict(values))


def test_fine_tunings_are_openpis_running_statistics(tmp_path):
  config = pi0_libero_lora.get_config("debug")
  screen = io.StringIO()
  console = Console(file=screen, force_terminal=True, width=100)
  found = norm_stats.compute(config, tmp_path, console, openpi_quantiles=True)
  (part,) = policy_data.open_parts(config, named_config(config), tmp_path)
  expected = RunningStats()
  for episode in part.splits["train"]:
    data = part.dataset.read_episode(int(episode), images=False)
    samples = [{"state": row, "actions": data.actions[:1], "prompt": ""} for row in data.state]
    expected.update(np.stack([part.columns(sample)["observation/state"] for sample in samples]))
  for name in ("mean", "std", "q01", "q99"):
    np.testing.assert_array_equal(getattr(found["state"], name), getattr(expected.result(), name), err_msg=name)
  assert "episodes, read twice" in screen.getvalue() and "100%" in screen.getvalue()


def test_those_of_the_small_policy_are_trainings(tmp_path):
  config = tiny.make_config(tiny.write_data(tmp_path / "data"))
  found = norm_stats.compute(config, tmp_path)
  config = filled(config)
  named = named_config(config)
  trained = policy_data.load_data(config, named, read_model(config, named), tmp_path).stats
  for name in ("state", "actions"):
    np.testing.assert_array_equal(found[name].mean, trained[name].mean)
    np.testing.assert_array_equal(found[name].std, trained[name].std)


def test_a_heads_have_its_datas_dimensions_and_exact_quantiles(tmp_path):
  config = mobile_vla_lstm.get_config("debug")
  found = norm_stats.compute(config, tmp_path)
  assert (found["state"].dim, found["actions"].dim) == (8, 7)
  (part,) = head_data.open_parts(config, tmp_path)
  rows_FP = part.state_FP[np.isin(part.episode_F, part.splits["train"])].astype(np.float64)
  np.testing.assert_allclose(found["state"].q01, np.quantile(rows_FP, 0.01, axis=0), rtol=1e-6)
  np.testing.assert_allclose(found["state"].std, rows_FP.std(0), rtol=1e-6)
  counted = norm_stats.compute(config, tmp_path, openpi_quantiles=True)
  assert (counted["state"].q01 != found["state"].q01).any()
  np.testing.assert_allclose(counted["state"].mean, found["state"].mean, atol=1e-6)


def test_statistics_that_fit_are_passed():
  assert not norm_stats.compare(_stats(), _stats(mean=[1.9, 1.0], q99=[9.9, 3.0]))
  padded = _stats(mean=[0.0, 1.0, 0.0], std=[1.0, 1.0, 0.0], q01=[-2.0, -1.0, 0.0], q99=[2.0, 3.0, 0.0])
  assert not norm_stats.compare(padded, _stats())
  constant = _stats(mean=[0.0, 1.0], std=[0.0, 1.0], q01=[-1e-10, -1.0], q99=[1e-10, 3.0])
  assert not norm_stats.compare(constant, _stats(std=[0.0, 1.0], q01=[0.0, -1.0], q99=[0.0, 3.0]))


@pytest.mark.parametrize(
  ("theirs", "ours", "message"),
  [
    ({}, {"mean": [2.5, 1.0]}, "state[0]: the data's mean 2.5 is outside the checkpoint's -2 to 2"),
    ({"q01": None, "q99": None}, {"mean": [0.0, 4.0]}, "state[1]: the data's mean 4 is outside the checkpoint's -1.3"),
    ({}, {"q99": [2.0, 12.0]}, "state[1]: the data's spread 13 is 3.25 times the checkpoint's 4; allowed: up to 3"),
    ({"q99": [14.0, 3.0]}, {}, "state[0]: the data's spread 4 is 0.25 times the checkpoint's 16"),
    ({"mean": [0.0], "std": [1.0], "q01": [-2.0], "q99": [2.0]}, {}, "state: the checkpoint's statistics have 1 dims"),
  ])
def test_misfits_are_told_with_their_numbers(theirs, ours, message):
  found = norm_stats.compare(_stats(**theirs), _stats(**ours))
  assert len(found) == 2  # the same of the actions
  assert found[0].startswith(message), found


def test_missing_groups_are_told():
  checkpoint = {"state": _stats()["state"]}
  assert norm_stats.compare(checkpoint, _stats()) == [
    "actions: the checkpoint has no statistics of it; there are state"]


def test_the_command_writes_and_warns_without_failing(tmp_path, monkeypatch, caplog):
  config = tiny.make_config(tiny.write_data(tmp_path / "data"))
  values = flags.FlagValues()
  for name, value in (("out", str(tmp_path / "out")), ("checkpoint", str(tmp_path)), ("checkpoint_asset", "other")):
    flags.DEFINE_string(name, value, "", flag_values=values)
  flags.DEFINE_bool("openpi_quantiles", False, "", flag_values=values)
  values.mark_as_parsed()
  monkeypatch.setattr(norm_stats.flags, "FLAGS", values)
  monkeypatch.setattr(norm_stats.cli, "read_config", lambda: config)
  plain = {name: {"mean": np.full(n, 9.0), "std": np.ones(n), "q01": np.full(n, 8.0), "q99": np.full(n, 10.0)}
           for name, n in (("state", 10), ("actions", 5))}
  files.save_norm_stats(tmp_path, "other", plain)
  norm_stats.main(["program"])
  assert set(files.load_norm_stats(tmp_path / "out", config.asset_id)) == {"state", "actions"}
  assert any("state[0]: the data's mean" in message for message in caplog.messages)
  assert any("compute its statistics anew" in message for message in caplog.messages)


def test_mistakes_are_named(tmp_path):
  with pytest.raises(Pi0RagError, match=r"unknown entry of the configuration: 'stepz'; did you mean 'steps'"):
    norm_stats.compute(tiny.make_config(tmp_path, stepz=1), tmp_path)
  with pytest.raises(Pi0RagError, match="no data set that we know"):
    norm_stats.compute(tiny.make_config(tmp_path), tmp_path)
