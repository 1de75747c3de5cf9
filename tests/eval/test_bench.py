"""The command of benchmarks: its flags, what it imports, and its statistics. No speed is judged here."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from eval import bench
from eval.benchmarks import models, peak, timing


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


def test_a_device_that_is_full_is_said_in_one_line(tmp_path, capsys, monkeypatch):
  def full(flags):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore of it")

  monkeypatch.setattr(peak, "peak", full)
  assert bench.main(["peak", f"--out={tmp_path / 'out.json'}"]) == 2
  error = capsys.readouterr().err
  assert "too little memory" in error and "allocating 9 bytes" in error and error.count("\n") == 1


def test_the_flag_of_sizes_names_the_models_there_are():
  assert set(bench.SIZES) == set(models.SIZES)


def test_only_what_measures_a_simulator_imports_one():
  with_simulator = {"eval.benchmarks.sweep", "eval.benchmarks.options"}
  modules = sorted({f"eval.benchmarks.{module}" for module, _ in bench.BENCHMARKS.values()} - with_simulator)
  models_alone = ["eval.benchmarks.peak", "eval.benchmarks.latency"]
  code = (f"import importlib, sys; [importlib.import_module(name) for name in {models_alone}]\n"
          "assert not {'faiss', 'sentencepiece', 'mujoco'} & set(sys.modules)\n"
          f"[importlib.import_module(name) for name in {modules}]\n"
          "assert not {'mujoco', 'gymnasium', 'pi0rag_jax.sim'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_that_is_stopped_keeps_its_rows(tmp_path, monkeypatch):
  def stopped(flags):
    yield {"what": "first"}
    raise KeyboardInterrupt

  monkeypatch.setattr(peak, "peak", stopped)
  out = tmp_path / "out.json"
  with pytest.raises(KeyboardInterrupt):
    bench.main(["peak", f"--out={out}"])
  assert not out.exists() and json.loads((tmp_path / "out.json.part").read_text())["rows"] == [{"what": "first"}]
  monkeypatch.setattr(peak, "peak", lambda flags: [{"what": "second"}])
  assert bench.main(["peak", f"--out={out}"]) == 0
  assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
  assert json.loads(out.read_text())["rows"] == [{"what": "second"}]


@pytest.mark.parametrize("name", ["latency", "ablate"])
def test_an_attention_that_this_device_lacks_is_one_line(name, tmp_path, capsys):
  assert bench.main([name, "--size=dummy", "--kernel=cudnn", f"--out={tmp_path / 'out.json'}"]) == 2
  error = capsys.readouterr().err
  assert "needs a GPU of compute capability 8.0 or more, this is no NVIDIA GPU" in error and error.count("\n") == 1
