"""A tiny sweep on a Ray cluster, a made-up one and one of this machine's own, whose actors die in the middle."""

import json
import os
import shutil
import signal

import pytest

from configs import quickstart
from eval import experiment, ray_durability, sweep
from eval.worker import Ended
from pi0rag_jax.cluster import Machines

CHANGES = {"conditions": ("camera_shift",), "slots": 2, "processes": 0, "stream.episodes": 2, "stream.corrected_max": 2,
           "evaluation.episodes": 3, "evaluation.latency_episodes": 0, "evaluation.clips": 0, "evaluation.policies": (
             {"name": "base_z0", "start": "zero"}, {"name": "memory", "steering": "residual"})}


@pytest.fixture(scope="module")
def whole(tiny_policy_dir, tmp_path_factory):
  """A sweep that ran in this process: (its configuration, its folder)."""
  config, out = quickstart.get_config(), tmp_path_factory.mktemp("sweep")
  config.update_from_flattened_dict({"policy": str(tiny_policy_dir), **CHANGES})
  sweep.sweep(config, out)
  return config, out


def test_a_sweep_comes_to_the_same_whichever_actors_die_and_in_whatever_groups_seeds_run(
    whole, tmp_path, made_up_ray, monkeypatch):
  config, out = whole
  ray = made_up_ray(one=1, two=1)
  ray.dying = [False, True, False, True, False, False, True]
  monkeypatch.setattr(experiment, "SEEDS_PER_SLOT", 1)
  sweep.sweep(config, tmp_path, machines=Machines("local"))
  assert len(ray.taken) >= 4 and ray_durability.differences(tmp_path, out) == []
  sizes = (tmp_path / "memory_bytes.json").read_text()
  assert sizes == (out / "memory_bytes.json").read_text()


def test_the_comparison_sees_a_difference(whole, tmp_path):
  out = whole[1]
  shutil.copytree(out, tmp_path, dirs_exist_ok=True)
  lines = (out / "records.jsonl").read_text().splitlines()
  first = json.loads(lines[0])
  changed = [json.dumps(first | {"steps": first["steps"] + 1}), *lines[1:], lines[1]]
  (tmp_path / "records.jsonl").write_text("".join(f"{line}\n" for line in changed))
  assert ray_durability.differences(tmp_path, out) == ["1 records", "1 episodes are in the log twice"]


@pytest.mark.slow  # Ray's processes alone take 10 s; .ci/run asks for it
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # nothing of jax runs in what is forked
def test_a_sweep_whose_actors_are_killed_comes_to_the_same_as_one_without_ray(whole, tmp_path, monkeypatch):
  pytest.importorskip("ray", reason="the extra `ray` is not installed")
  (config, out), killed, book = whole, [], experiment._Sweep._book

  def kill_and_book(self, result, node):
    if isinstance(result, Ended) and result.record.phase == "stream" and not killed:
      killed.extend(ray_durability.actors(os.getpid()))
      for process in killed:
        os.kill(process, signal.SIGKILL)
    book(self, result, node)

  monkeypatch.setattr(experiment._Sweep, "_book", kill_and_book)
  sweep.sweep(config, tmp_path, machines=Machines("local", cpus=2))
  assert killed and ray_durability.differences(tmp_path, out) == []
  assert not list(tmp_path.glob(".ray*"))
