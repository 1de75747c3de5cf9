"""Benchmarks: the yardstick computes what we do, and every row says what it measured. No speed is judged here."""

import functools
import json

import jax
import numpy as np
import pytest

from eval import bench, naive
from eval.benchmarks import models, timing
from pi0rag_jax.models import packing, pi0


@pytest.mark.parametrize(("size", "cameras"), [("dummy", 1), ("dummy", 3), ("pi05_dummy", 2)])
def test_the_naive_structure_samples_the_same_chunk(size, cameras):
  config = models.SIZES[size]
  params, noise_BTA = models.params(config), models.chunk(config, batch=2)
  obs = models.observation(config, batch=2, cameras=cameras)
  wanted_BTA = jax.jit(functools.partial(naive.sample_actions, pi0.Pi0(config), num_steps=3))(params, obs, noise_BTA)
  packed, packed_config = packing.pack(params, config)
  alone_config, alone = models.with_cameras(packed_config, obs, cameras)
  ours = jax.jit(functools.partial(pi0.sample_actions, pi0.Pi0(alone_config), num_steps=3))
  np.testing.assert_allclose(ours(packed, alone, noise_BTA), wanted_BTA, atol=2e-5)


def test_a_loop_counts_what_came_late(tmp_path):
  out = tmp_path / "loop.json"
  arguments = ["--size=dummy", "--cameras=1", "--rates=5,100000", "--cycles=5", "--records=100", f"--out={out}"]
  assert bench.main(["loop", *arguments]) == 0
  slow, impossible = json.loads(out.read_text())["rows"]
  assert impossible["missed"] == 5 and slow["achieved_hz"] < impossible["achieved_hz"]
  assert {"prefix_p50_ms", "retrieval_p50_ms", "denoise_p50_ms", "steer_p50_ms"} <= set(slow)


def test_ratios_are_of_medians_and_hold_the_truth_in_their_interval():
  found = timing.ratio(np.array([4.0, 4.2, 3.9, 4.1]), np.array([2.0, 2.1, 2.2, 1.9]))
  assert found["ratio"] == pytest.approx(4.05 / 2.05, abs=1e-3)
  assert found["low"] <= found["ratio"] <= found["high"]


@pytest.mark.parametrize("arguments", [
  ["speed"], ["latency", "--size=huge"], ["latency", "--batches=one"], ["latency", "--steps=10,0"],
  ["loop", "--cameras=4"], ["train", "--variants=lora,all"], ["peak", "--repeats=0"]])
def test_wrong_flags_are_answered_with_one_line(arguments, tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    bench.main([*arguments, f"--out={tmp_path / 'out.json'}"])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and "invalid" in error and error.count("\n") == 1


def test_the_flag_of_sizes_names_the_models_there_are():
  assert set(bench.SIZES) == set(models.SIZES)
