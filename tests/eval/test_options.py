"""The benchmark of options: a warm start goes on from the last chunk, and an episode's first decision from zero."""

import json

import numpy as np
import pytest

from eval import bench
from eval.benchmarks import options
from eval.benchmarks.options import WarmStarted
from pi0rag_jax.policy import directory
from pi0rag_jax.worlds.episode import Job, Step, Trace


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


def test_rows_without_a_last_chunk_take_all_steps_from_zero_and_others_the_last(policy, observations):
  chunk_BTA = np.stack([np.full(policy.chunk_shape, np.nan), np.full(policy.chunk_shape, 0.01)])
  _, encoded = policy.encode((), policy.prepare(observations[:1] * 2))
  first_TA, resumed_TA = np.asarray(WarmStarted(policy, 1).decode(encoded, chunk_BTA))
  own_BTA = np.asarray(policy.decode(encoded))
  np.testing.assert_array_equal(first_TA, own_BTA[0])
  assert np.abs(resumed_TA - own_BTA[1]).max() > 1e-4


def test_a_warm_start_is_on_the_straight_way_to_the_chunk(policy, observations):
  _, encoded = policy.encode((), policy.prepare(observations[:1]))
  # All steps: that way begins at zero, whatever the chunk.
  warm = WarmStarted(policy, policy.spec.denoising_steps)
  resumed_BTA = warm.decode(encoded, np.full((1, *policy.chunk_shape), 0.01))
  np.testing.assert_allclose(resumed_BTA, policy.decode(encoded), atol=1e-6)


def test_what_is_left_of_a_chunk_is_held_at_its_end(policy):
  horizon, width = policy.chunk_shape
  warm, trace = WarmStarted(policy, 1), Trace(Job(0, 0))
  assert np.isnan(warm.last_chunk(trace)).all()
  chunk_TA = np.repeat(np.arange(horizon, dtype=np.float32)[:, None], width, axis=1)
  nobody_K = np.zeros(0, int)
  trace.steps.append(Step(0, None, np.zeros(1), chunk_TA, chunk_TA, 0, nobody_K, nobody_K.astype(float)))
  left = [*range(policy.spec.execute_steps, horizon), *[horizon - 1] * policy.spec.execute_steps]
  np.testing.assert_array_equal(warm.last_chunk(trace)[:, 0], left)


@pytest.fixture
def flags(tiny_policy_dir, tmp_path):
  given = ["options", f"--policy={tiny_policy_dir}", "--episodes=1", "--slots=1", "--repeats=1", "--options=5 steps"]
  return [*given, f"--out={tmp_path / 'out.json'}"]


def test_each_option_meets_the_same_seeds_in_each_place(flags, tmp_path, monkeypatch):
  monkeypatch.setattr(options, "PROCESSES", 0)
  assert bench.main([*flags, "--places=pick_and_place/camera_shift,pick_and_place/dim_warm_light"]) == 0
  rows = json.loads((tmp_path / "out.json").read_text())["rows"]
  assert [(row["condition"], row["option"], row["episodes"]) for row in rows] == [
    (condition, option, 1) for condition in ("camera_shift", "dim_warm_light") for option in ("10 steps", "5 steps")]
  assert all(row["world"] == "panda" and row["fixed"] - row["regressed"] == row["success"] - reference["success"]
             for row, reference in zip(rows, [rows[0], rows[0], rows[2], rows[2]], strict=True))


@pytest.mark.parametrize(("given", "message"), [
  ("--places=pick_and_place/dark_side", "unknown condition 'dark_side'"),
  ("--places=nominal", "unknown task ''"), ("--world=moon", "unknown world 'moon'"),
  ("--options=half a step", "unknown option 'half a step'")])
def test_a_place_or_an_option_that_is_none_is_one_line(flags, given, message, capsys):
  assert bench.main([*flags, given]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
