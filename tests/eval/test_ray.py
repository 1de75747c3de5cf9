"""A tiny sweep on a Ray cluster of this machine's own, whose actors are killed in the middle."""

import os
import pathlib
import signal

import pytest

from configs import quickstart
from eval import experiment, ray_durability, sweep
from eval.worker import Ended
from pi0rag_jax.cluster import Machines

CHANGES = {"conditions": ("camera_shift",), "slots": 3, "processes": 0, "stream.episodes": 3, "stream.corrected_max": 2,
           "evaluation.episodes": 2, "evaluation.latency_episodes": 0, "evaluation.clips": 0, "evaluation.policies": (
             {"name": "base_z0", "start": "zero"}, {"name": "memory", "steering": "residual"})}


def actors() -> list[int]:
  """Returns the processes of this test's actors."""
  ours = [process for process in ray_durability.descendants(os.getpid())
          if pathlib.Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::_Hand")]
  return ours


def test_a_sweep_whose_actors_are_killed_comes_to_the_same_as_one_without_ray(tiny_policy_dir, tmp_path, monkeypatch):
  pytest.importorskip("ray", reason="the extra `ray` is not installed")
  config = quickstart.get_config()
  config.update_from_flattened_dict({"policy": str(tiny_policy_dir), **CHANGES})
  whole, out, killed = tmp_path / "whole", tmp_path / "ray", []
  sweep.sweep(config, whole)
  book = experiment._Sweep._book

  def kill_and_book(self, result, node):
    if isinstance(result, Ended) and result.record.phase == "stream" and not killed:
      killed.extend(actors())
      for process in killed:
        os.kill(process, signal.SIGKILL)
    book(self, result, node)

  monkeypatch.setattr(experiment._Sweep, "_book", kill_and_book)
  sweep.sweep(config, out, machines=Machines("local", cpus=2))
  assert killed and ray_durability.differences(out, whole) == []
  assert not list(out.glob(".ray*"))
