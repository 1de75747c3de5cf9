"""Predictions over a data set: what is written, and that a killed run goes on as it would have."""

import h5py
import numpy as np
import pytest

from pi0rag_jax.data.episodes import FORMAT_NAME
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import predict
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.policy import __main__ as command
from pi0rag_jax.policy import directory
from pi0rag_jax.steering.agent import Agent
from tests.learning.test_interventions import CAMERAS, FRAMES, actions
from tests.steering.conftest import make_policy  # noqa: F401

EPISODES = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A data set of the Panda's, of EPISODES episodes."""
  path, rng = tmp_path_factory.mktemp("data") / "a.hdf5", np.random.default_rng(0)
  with h5py.File(path, "w") as file:
    file.attrs.update({"format": FORMAT_NAME, "version": 2})
    for episode in range(EPISODES):
      group = file.create_group(f"episode_{episode}")
      group.attrs.update({"prompt": "pick up the red cube", "fps": 20.0, "success": True})
      group["state"], group["actions"] = rng.standard_normal((FRAMES, 10)).astype(np.float32), actions()
      for camera in CAMERAS:
        group[f"image/{camera}"] = rng.integers(0, 256, (FRAMES, 64, 64, 3), np.uint8)
  return path


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir, start="new")


def read(folder):
  return {path.name: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}


def assert_same(found, wanted):
  assert found.keys() == wanted.keys() and len(found) == EPISODES
  for name, arrays in wanted.items():
    for key, array in arrays.items():
      np.testing.assert_array_equal(found[name][key], array)


def test_a_killed_run_goes_on_as_it_would_have(data, policy, tmp_path):
  agent, dataset = Agent(policy), open_dataset(data)
  predict.predict(agent, dataset, tmp_path / "whole", stride=10)
  whole = read(tmp_path / "whole")
  assert whole["episode_000001.npz"]["frames"].tolist() == [0, 10, 20]
  assert whole["episode_000001.npz"]["actions"].shape == (3, 16, 5)
  told = []

  def killed(*progress):
    told.append(progress[:2])
    if len(told) == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    predict.predict(agent, dataset, tmp_path / "cut", stride=10, progress=killed)
  assert told == [(1, 3), (2, 3)] and len(read(tmp_path / "cut")) == 2
  counts = predict.predict(Agent(policy), dataset, tmp_path / "cut", stride=10)
  assert counts == predict.Counts(episodes=3, decisions=9, found=2)
  assert_same(read(tmp_path / "cut"), whole)
  with pytest.raises(Pi0RagError, match="holds predictions with stride 10, now it is 5: give another folder"):
    predict.predict(agent, dataset, tmp_path / "cut", stride=5)
  with pytest.raises(Pi0RagError, match=r"has no predict\.json: it is no folder of predictions"):
    predict.predict(agent, dataset, tmp_path)


def test_the_command_asks_with_a_memory_what_the_agent_answers(data, tiny_policy_dir, tmp_path, capsys):
  policy, dataset = directory.load(tiny_policy_dir), open_dataset(data)
  pictures, episode = dataset.read_frames(1, [10]), dataset.read_episode(1, images=False)
  seen = {"image": {name: pictures[name][0] for name in CAMERAS}, "state": episode.state[10],
          "prompt": episode.prompts[10]}
  _, base = Agent(policy).answer(seen)
  with Memory.open(tmp_path / "memory", **policy.memory_header()) as memory:
    memory.add([Record(base.key_BE[0], base.base_BTA[0], base.base_BTA[0] + 0.002, kind="correction",
                       outcome="success", provenance={"source": "expert", "seed": 0})])
  arguments = ["predict", f"--policy={tiny_policy_dir}", f"--data={data}", f"--memory={tmp_path / 'memory'}",
               f"--out={tmp_path / 'out'}", "--stride=10", "--batch=2"]
  assert command.main(arguments) == 0
  said = capsys.readouterr()
  assert said.out == f"9 decisions in 3 episodes are in {tmp_path / 'out'}\n" and "episode 3 of 3" in said.err
  found = read(tmp_path / "out")["episode_000001.npz"]
  assert found["used"][1] == 1 and found["ids"][1, 0] == 1
  np.testing.assert_allclose(found["base"][1], base.base_BTA[0], atol=1e-5)
  assert np.abs(found["actions"][1] - found["base"][1]).max() > 1e-3
  assert command.main(arguments) == 0
  assert capsys.readouterr().out.endswith(", 3 episodes were there already\n")
  assert command.main([*arguments, "--rule=textbook"]) == 2
  assert capsys.readouterr().err.startswith(f"error: '{tmp_path / 'out'}' holds predictions with memory {{'rule'")


def test_what_remembers_decides_at_its_own_pace(data, make_policy, tmp_path):  # noqa: F811
  with pytest.raises(Pi0RagError, match="'lstm' remembers what it saw, and decides every 4 frames; --stride is 3"):
    predict.predict(Agent(make_policy("lstm")), open_dataset(data), tmp_path, stride=3)
