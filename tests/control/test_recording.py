"""Recordings: what a robot saw and did comes back, whatever happens to the process."""

import numpy as np
import pytest

from pi0rag_jax.control.recording import UNDER_WAY, Recording
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError


def frame(number, size=64):
  picture = np.full((size, size, 3), 10 * number, np.uint8)
  return {"image": {"front": picture}, "state": np.array([number, 0.5], np.float32), "prompt": "go"}


def opened(folder, **changes):
  return Recording(folder, **{"fps": 10, "robot": "arm", "exact": True} | changes)


def test_episodes_come_back_with_who_acted(tmp_path):
  recording = opened(tmp_path / "data")
  for number, by in enumerate(["policy", "human", "policy"]):
    recording.frame(frame(number), np.array([number, 1, 2]), by)
  recording.end(success=True, failure="", told={"faults": ""})
  recording.frame(frame(9), np.zeros(3), "policy")
  recording.discard()
  recording.end(success=False, failure="timeout", told={})
  recording.close()
  dataset = open_dataset(tmp_path / "data")
  ((_, data),) = dataset.iterate()
  np.testing.assert_array_equal(data.state, [[0, 0.5], [1, 0.5], [2, 0.5]])
  np.testing.assert_array_equal(data.actions[:, 0], [0, 1, 2])
  np.testing.assert_array_equal(np.ravel(data.extras["intervention"]), [0, 1, 0])
  assert data.prompts[0] == "go" and dataset.read_frames(0, [2])["observation.images.front"][0, 0, 0, 0] == 20
  assert recording.columns == {"image": {"front": "observation.images.front"}, "state": "observation.state[0:2]",
                               "actions": "action"}


def test_a_kill_loses_nothing(tmp_path):
  recording = opened(tmp_path / "data")
  for number in range(4):
    recording.frame(frame(number), np.zeros(3), "policy")
  recording._waiting.join()  # and is killed, in the middle of a frame
  with open(tmp_path / "data" / UNDER_WAY / "0.rgb", "ab") as file:
    file.write(b"half")
  opened(tmp_path / "data").close()
  dataset = open_dataset(tmp_path / "data")
  ((_, data),) = dataset.iterate()
  assert len(data) == 4 and not data.extras["next.success"][-1] and not (tmp_path / "data" / UNDER_WAY).exists()


def test_frames_of_another_kind_are_told_at_the_end(tmp_path):
  recording = opened(tmp_path / "data")
  recording.frame(frame(0), np.zeros(3), "policy")
  recording.frame({"state": np.zeros(2), "image": {"side": np.zeros((8, 8, 3), np.uint8)}}, np.zeros(3), "policy")
  with pytest.raises(Pi0RagError, match=r"could not be recorded: a frame has the cameras \['side'\]"):
    recording.end(success=True, failure="", told={})
