"""The in-memory pipeline: order, splits and batches that depend on (seed, step) alone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pi0rag_jax.data import episodes, pipeline
from pi0rag_jax.errors import Pi0RagError

_SPEC = importlib.util.spec_from_file_location("episode_examples", Path(__file__).with_name("test_episodes.py"))
_EXAMPLES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_EXAMPLES)
make_episode = _EXAMPLES.make_episode


def test_failures_are_left_out_and_frames_keep_their_episode(tmp_path):
  for seed in range(4):
    episode = make_episode(seed, frames=seed + 2, prompt=f"prompt {seed}")
    episodes.write_episodes(episodes.episode_path(tmp_path, seed), [episode])
  frames = pipeline.load_frames(tmp_path)  # even seeds succeed
  assert frames.seeds.tolist() == [0, 0, 2, 2, 2, 2]
  assert [frames.prompts[i] for i in frames.prompt_index] == ["prompt 0"] * 2 + ["prompt 2"] * 4
  np.testing.assert_array_equal(frames.state[2:], make_episode(2, frames=4).state)
  assert len(pipeline.load_frames(tmp_path, successes_only=False)) == 2 + 3 + 4 + 5


def test_folders_of_several_tasks_are_one_data_set(tmp_path):
  for task in ("stacking", "pouring"):
    for seed in (0, 2):
      episodes.write_episodes(
        episodes.episode_path(tmp_path / task, seed), [make_episode(seed, frames=3, task=task, prompt=f"do {task}")])
  frames = pipeline.load_frames(tmp_path)
  assert frames.tasks == ("pouring", "stacking") and frames.task_index.tolist() == [0] * 6 + [1] * 6
  assert frames.seeds.tolist() == [0, 0, 0, 2, 2, 2] * 2
  for row, seed in ((0, 0), (4, 2)):
    expected = make_episode(seed, frames=3, task="pouring").images
    for camera, images in frames.images.items():
      np.testing.assert_array_equal(images[row], expected[camera][row % 3])


def test_renderers_are_not_mixed():
  with pytest.raises(Pi0RagError, match="one renderer, seen: opengl, raycast"):
    pipeline.join_episodes([make_episode(0), make_episode(1, renderer="opengl")])


def test_episodes_with_other_arrays_are_refused():
  with pytest.raises(Pi0RagError, match="differ in their arrays"):
    pipeline.join_episodes([make_episode(0), make_episode(1, privileged={})])


def test_a_split_keeps_episodes_whole_and_repeats_itself():
  frames = pipeline.join_episodes([make_episode(seed) for seed in range(10)])
  train, validation = pipeline.split_by_episode(frames, fraction=0.2, seed=1)
  assert len(np.unique(frames.seeds[validation])) == 2
  assert not set(frames.seeds[train]) & set(frames.seeds[validation])
  assert sorted([*train, *validation]) == list(range(len(frames)))
  again, _ = pipeline.split_by_episode(frames, fraction=0.2, seed=1)
  np.testing.assert_array_equal(train, again)
  with pytest.raises(Pi0RagError, match="two episodes"):
    pipeline.split_by_episode(pipeline.join_episodes([make_episode(0)]), fraction=0.5, seed=0)


def test_an_epoch_shows_every_row_once_and_the_next_one_in_another_order():
  first = [pipeline.batch_rows(10, 3, seed=0, step=step) for step in range(3)]
  assert len(set(np.concatenate(first).tolist())) == 9
  assert np.concatenate(first).tolist() != np.concatenate(
    [pipeline.batch_rows(10, 3, seed=0, step=step) for step in range(3, 6)]).tolist()
  np.testing.assert_array_equal(first[1], pipeline.batch_rows(10, 3, seed=0, step=1))
  assert first[0].tolist() != pipeline.batch_rows(10, 3, seed=1, step=0).tolist()
  with pytest.raises(Pi0RagError, match="2 frames make no batch of 3"):
    pipeline.batch_rows(2, 3, seed=0, step=0)
