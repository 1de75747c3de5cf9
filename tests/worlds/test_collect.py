"""Demonstrations from a world with an expert: labels of the expert beside what was executed, the same every time."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.lerobot_writer import WrittenEpisode
from pi0rag_jax.robots.aloha import ACTIONS as ALOHA
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.sim.calvin import symbols
from pi0rag_jax.sim.tasks.pick_and_place import PickAndPlace, PickAndPlaceConfig
from pi0rag_jax.sim.world import PandaWorld
from pi0rag_jax.worlds import collect
from pi0rag_jax.worlds.collect import Collection, Disturbance
from pi0rag_jax.worlds.world import WorldConfig
from train.policy_data import facts_of

SHORT = PickAndPlace(PickAndPlaceConfig(time_limit=30))


def record(disturbance, image_size=16):
  collection = Collection("panda", {}, "nominal", image_size, "raycast", ACTIONS, 0.05, "", {"pick_and_place": 30},
                          disturbance)
  return collect.record_episode(PandaWorld(WorldConfig(SHORT, image_size=16)), 3, collection, 30)


def test_an_undisturbed_expert_does_what_it_says():
  episode = record(None)
  assert len(episode.state) == 30 and episode.images["base_0_rgb"].shape == (30, 16, 16, 3)
  np.testing.assert_array_equal(episode.actions, episode.extras["executed"])


def test_pictures_of_a_world_that_makes_larger_ones_are_kept_as_small_as_asked_for():
  assert record(None, image_size=8).images["base_0_rgb"].shape == (30, 8, 8, 3)


def test_bursts_are_executed_and_labels_stay_the_experts():
  always = Disturbance(share=1.0, per_100_ticks=20.0)
  one, other = record(always), record(always)
  np.testing.assert_array_equal(one.extras["executed"], other.extras["executed"])
  disturbed_F = (one.actions != one.extras["executed"]).any(axis=1)
  assert 2 < disturbed_F.sum() < 30
  np.testing.assert_array_equal(one.actions[:, 4], one.extras["executed"][:, 4])  # the gripper is left alone
  assert (one.extras["executed"] <= np.float32(ACTIONS.high)).all()


def test_a_burst_leads_places_astray_by_no_more_than_its_whole_way():
  burst = Disturbance(share=1.0, per_100_ticks=1.0)
  motions = burst.bursts(np.random.default_rng(1), ALOHA, 100, 0.02)
  assert 5 <= len(motions) <= 20 and list(motions) == list(range(min(motions), min(motions) + len(motions)))
  executed_A = np.zeros(14)
  for motion_A in motions.values():  # an expert that would stay wherever it is
    executed_A = burst.apply(executed_A, motion_A, ALOHA, executed_A)
  assert 0.1 < np.abs(executed_A * ALOHA.cost).max() <= burst.astray + 1e-6


def test_on_a_cluster_the_same_episodes_are_recorded(tmp_path, made_up_ray):
  found = []
  for folder, machines in ((tmp_path / "here", HERE), (tmp_path / "ray", Machines("local"))):
    made_up_ray(one=1, two=1)
    collection = Collection("panda", {}, "nominal", 16, "raycast", ACTIONS, 0.05, str(folder), {"pick_and_place": 30},
                            None)
    (folder / collect.PARTS).mkdir(parents=True)
    told = list(collect.collect(collection, [("pick_and_place", 3)], processes=0, machines=machines))
    (part,) = (folder / collect.PARTS).iterdir()
    with np.load(part) as arrays:
      found.append((told, {name: arrays[name].tobytes() for name in arrays.files}))
  assert found[0] == found[1]


def run(tmp_path, *flags):
  command = [sys.executable, "-m", "pi0rag_jax.worlds.collect", f"--out={tmp_path / 'data'}", "--processes=0", *flags]
  return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_a_data_set_and_does_it_once(tmp_path):
  flags = ("--tasks=pick_and_place", "--episodes=1", "--image_size=16", "--failures", "--pictures=images")
  first = run(tmp_path, *flags)
  assert first.returncode == 0, first.stderr
  assert "1 of 1 succeeded" in first.stdout and "1 episodes" in first.stdout
  dataset = open_dataset(tmp_path / "data")
  assert facts_of(dataset)["renderer"] == "raycast"
  things_F5 = dataset.read_episode(0).extras[collect.THINGS]
  assert things_F5.shape[1] == 5 and 0.0 < things_F5[0, 2] < 0.05  # the cube lies on the table
  assert len(list(dataset.iterate())) == 1 and dataset.fps == 20 and not (tmp_path / "data" / ".parts").exists()
  assert "nothing to do" in run(tmp_path, *flags).stdout


def test_a_chain_is_recorded_as_an_episode_of_each_task(tmp_path):
  done = run(tmp_path, "--world=calvin", "--tasks=chain", "--seed=4", "--episodes=1", "--image_size=16",
             "--pictures=images")
  assert done.returncode == 0 and "5 episodes" in done.stdout, done.stdout + done.stderr
  dataset = open_dataset(tmp_path / "data")
  episodes = [dataset.read_episode(number) for number in range(5)]
  asked = [symbols.TASKS[task].prompt for task in symbols.draw_chain(4)[1]]
  assert [set(episode.prompts) for episode in episodes] == [{prompt} for prompt in asked] and len(set(asked)) == 5
  for before, after in itertools.pairwise(episodes):
    assert np.abs(after.state[0] - before.state[-1]).max() < 0.1 < np.abs(after.state[0] - episodes[0].state[0]).max()


def test_where_a_prompt_changes_what_was_done_before_has_succeeded():
  prompts = ["a", "a", "b", "c", "c"]
  episode = WrittenEpisode({"front": np.arange(5)}, np.arange(5), np.arange(5), prompts, False, {"x": np.arange(5)})
  parts = list(collect.by_prompt(episode))
  assert [(part.prompt, part.success, part.state.tolist(), part.images["front"].tolist(), part.extras["x"].tolist())
          for part in parts] == [("a", True, *[[0, 1]] * 3), ("b", True, *[[2]] * 3), ("c", False, *[[3, 4]] * 3)]


@pytest.mark.parametrize(("flags", "message"), [
  (("--tasks=pick_and_plac",), "Did you mean 'pick_and_place'"),
  (("--tasks=stacking", "--condition=dark"), "unknown condition 'dark'"),
  (("--world=gym_none/X-v0", "--options={\"robot\": \"aloha\"}"), "has no expert"),
  (("--tasks=stacking", "--seed=99999", "--episodes=2"), "seeds 0..99999"),
  (("--tasks=stacking", "--options={"), "--options"),
  (("--tasks=stacking", "--renderer=plain"), "unknown renderer of the world 'panda' 'plain'"),
])
def test_a_mistake_ends_in_one_line(tmp_path, flags, message):
  done = run(tmp_path, *flags)
  assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
