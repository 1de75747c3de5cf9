"""Views: they hold the chosen episodes and no others, and know their numbers in what they are views of."""

import judged
import numpy as np
import pytest

from pi0rag_jax.curation import views
from pi0rag_jax.data.cache import build_cache
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.own import OwnDataset
from pi0rag_jax.errors import Pi0RagError

KEPT = np.array([True, False, False, True, True])


def test_a_view_holds_the_kept_episodes_renumbered(tmp_path):
  dataset = judged.write(tmp_path)
  kept = views.view(dataset, KEPT)
  assert kept.lengths.tolist() == [4, 7, 8] and (kept.num_frames, kept.state_dim, kept.action_dim) == (19, 3, 2)
  for episode, seed in enumerate((0, 3, 4)):
    data = kept.read_episode(episode)
    assert data.metadata["seed"] == seed and (data.images["base_0_rgb"] == seed).all()
    assert f"episode_{seed:06d}" in kept.episode_name(episode)
  found = kept.read_samples(np.array([2, 0, 1]), np.array([7, 0, 2]), horizon=2)
  assert found["state"][:, 0].tolist() == [4, 0, 3] and found["actions_is_pad"].tolist()[0] == [False, True]
  with pytest.raises(Pi0RagError, match="episodes 0 to 2, asked for 3"):
    kept.read_episode(3)


def test_a_view_has_a_fingerprint_of_its_own_and_can_be_cached(tmp_path):
  dataset = judged.write(tmp_path / "data")
  kept = views.view(dataset, KEPT)
  others = [dataset, views.view(dataset, ~KEPT)]
  assert kept.fingerprint() not in [other.fingerprint() for other in others]
  assert kept.fingerprint() == views.view(dataset, KEPT).fingerprint()
  cached = build_cache(kept, tmp_path / "cache")
  assert cached.read_episode(1, images=False).state[0, 0] == 3


def test_a_view_has_the_rates_of_its_episodes(tmp_path, monkeypatch):
  dataset = judged.write(tmp_path)
  monkeypatch.setattr(dataset, "episode_fps", lambda episode: 10.0 + episode)
  kept = views.view(dataset, KEPT)
  assert [kept.episode_fps(episode) for episode in range(3)] == [10.0, 13.0, 14.0]
  with pytest.raises(Pi0RagError, match="episodes 0 to 2, asked for 3"):
    kept.episode_fps(3)


def test_a_view_of_a_view_knows_the_numbers_in_the_source(tmp_path):
  dataset = judged.write(tmp_path)
  inner = views.view(views.view(dataset, KEPT), np.array([False, True, True]))
  assert inner.source is dataset and inner.episodes.tolist() == [3, 4]
  np.testing.assert_array_equal(inner.spread([0.5, 1.0]), [np.nan, np.nan, np.nan, 0.5, 1.0])


def test_damaged_episodes_are_left_out_where_they_are_skipped(tmp_path, monkeypatch):
  judged.write(tmp_path)
  read = OwnDataset._read_arrays

  def damaged(self, episode):
    if episode == 1:
      raise OSError("bad sector")
    return read(self, episode)

  monkeypatch.setattr(OwnDataset, "_read_arrays", damaged)
  assert views.readable(open_dataset(tmp_path, skip_bad=True)).episodes.tolist() == [0, 2, 3, 4]
  assert views.readable(open_dataset(tmp_path)).num_episodes == 5


def test_what_fits_no_data_set_is_refused(tmp_path):
  dataset = judged.write(tmp_path / "data")
  with pytest.raises(Pi0RagError, match=r"of 2 episodes, '.*data' has 5: select again"):
    views.view(dataset, np.ones(2, bool))
  with pytest.raises(Pi0RagError, match=r"keeps no episode of '.*data'"):
    views.view(dataset, np.zeros(5, bool))
