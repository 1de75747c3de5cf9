"""Order of samples: a pure function of (seed, step), every frame once an epoch, sources by weight, hosts apart."""

import itertools

import numpy as np
import pytest

from pi0rag_jax.data import arrays, sampling, splits
from pi0rag_jax.data.permutation import shuffled
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.errors import Pi0RagError


def make_dataset(lengths, *, value=0.0) -> arrays.ArrayDataset:
  """Returns a data set without pictures whose state is (value, row)."""
  frames = int(np.sum(lengths))
  state = np.stack([np.full(frames, value), np.arange(frames)], axis=1).astype(np.float32)
  lengths = np.asarray(lengths, np.int64)
  return arrays.ArrayDataset(
    "memory", images={}, state=state, actions=state[:, 1:], prompt_index=np.zeros(frames, np.int32), prompts=["go"],
    starts=np.cumsum(lengths) - lengths, lengths=lengths, fps=10.0)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_a_shuffle_has_every_number_once(size):
  first, second = (shuffled(np.arange(size), size, (0, epoch)) for epoch in range(2))
  assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(size))
  assert size < 16 or first.tolist() != second.tolist()
  np.testing.assert_array_equal(shuffled(np.arange(size)[::-1], size, (0, 0)), first[::-1])


def test_an_epoch_shows_every_frame_once_and_the_next_in_another_order():
  sampler = sampling.Sampler(sampling.Mixture(make_dataset([3, 5, 4])), batch_size=4, seed=7)
  rows = [sampler.rows(step) for step in range(6)]
  places = [list(zip(r.episode.tolist(), r.frame.tolist())) for r in rows]
  everything = {(e, f) for e, n in enumerate([3, 5, 4]) for f in range(n)}
  first, second = list(itertools.chain(*places[:3])), list(itertools.chain(*places[3:]))
  assert set(first) == set(second) == everything
  assert first != second
  other = sampling.Sampler(sampling.Mixture(make_dataset([3, 5, 4])), batch_size=4, seed=8)
  assert other.rows(0).frame.tolist() != rows[0].frame.tolist()


def test_any_step_is_the_same_without_those_before():
  mixture = sampling.Mixture([sampling.Source(make_dataset([30]), 2.0), sampling.Source(make_dataset([50, 9]), 1.0)])
  make = lambda: sampling.Sampler(mixture, batch_size=512, seed=3)  # noqa: E731
  through = make()
  rows = [through.rows(step) for step in range(70)]  # beyond a block of the mixture
  for step in (0, 31, 32, 69):
    for name in ("source", "episode", "frame"):
      np.testing.assert_array_equal(getattr(make().rows(step), name), getattr(rows[step], name))


def test_sources_get_their_shares_and_are_gone_through_before_they_repeat():
  mixture = sampling.Mixture([sampling.Source(make_dataset([4000]), 0.75), sampling.Source(make_dataset([5000]), 0.25)])
  sampler = sampling.Sampler(mixture, batch_size=sampling.BLOCK // 4, seed=0)
  rows = [sampler.rows(step) for step in range(4)]
  source = np.concatenate([r.source for r in rows])
  assert np.bincount(source).tolist() == [sampling.BLOCK * 3 // 4, sampling.BLOCK // 4]
  counts = np.bincount(np.concatenate([r.frame for r in rows])[source == 0])
  assert set(counts.tolist()) == {3, 4}  # 12288 samples of 4000 frames
  default = sampling.Mixture([sampling.Source(make_dataset([30])), sampling.Source(make_dataset([10]))])
  np.testing.assert_allclose(default.weights, [0.75, 0.25])


def test_hosts_share_out_the_batch():
  mixture = sampling.Mixture(make_dataset([40, 24]))
  whole = sampling.Sampler(mixture, batch_size=8, seed=0).rows(5)
  parts = [sampling.Sampler(mixture, batch_size=8, seed=0, process_index=i, process_count=4).rows(5) for i in range(4)]
  np.testing.assert_array_equal(np.concatenate([p.frame for p in parts]), whole.frame)
  with pytest.raises(Pi0RagError, match="a batch of 8 cannot be shared out among 3 hosts"):
    sampling.Sampler(mixture, batch_size=8, seed=0, process_count=3)


def test_only_chosen_episodes_are_drawn():
  mixture = sampling.Mixture([sampling.Source(make_dataset([3, 5, 4]), episodes=[2, 0])])
  rows = sampling.Sampler(mixture, batch_size=7, seed=0).rows(0)
  everything = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3)]
  assert sorted(zip(rows.episode.tolist(), rows.frame.tolist())) == everything


@pytest.mark.parametrize("sources, message", [
  ([], "one data set or more"),
  ([sampling.Source(make_dataset([3]), episodes=[1])], "has episodes 0 to 0"),
  ([sampling.Source(make_dataset([3]), -1.0)], "weights of a mixture are finite, 0 or more"),
  ([sampling.Source(make_dataset([3]), 1.0), sampling.Source(make_dataset([3]))], "a weight, or none"),
])
def test_mixtures_that_make_no_sense_are_refused(sources, message):
  with pytest.raises(Pi0RagError, match=message):
    sampling.Mixture(sources)


def test_chunks_repeat_the_last_action_and_mark_it():
  actions_FA = np.asarray([[1.0], [2.0], [3.0]])
  chunks_NTA, is_pad_NT = action_chunks(actions_FA, np.asarray([0, 2]), 4)
  assert chunks_NTA[..., 0].tolist() == [[1, 2, 3, 3], [3, 3, 3, 3]]
  assert is_pad_NT.tolist() == [[False, False, False, True], [False, True, True, True]]
  stored_FTA = np.arange(6.0).reshape(2, 3, 1)
  chunks_NTA, is_pad_NT = action_chunks(stored_FTA, np.asarray([1]), 2)
  assert (chunks_NTA[..., 0].tolist(), is_pad_NT.any()) == ([[3.0, 4.0]], False)
  with pytest.raises(Pi0RagError, match="have 3 steps, 4 are asked for"):
    action_chunks(stored_FTA, np.asarray([1]), 4)


def test_splits_are_disjoint_whole_and_kept(tmp_path):
  parts = splits.split_episodes(23, seed=1)
  assert sorted(itertools.chain(*parts.values())) == list(range(23))
  assert {name: len(part) for name, part in parts.items()} == {"train": 19, "validation": 2, "test": 2}
  assert parts == splits.split_episodes(23, seed=1) != splits.split_episodes(23, seed=2)
  assert splits.split_episodes(4, fractions=(0.9, 0.1, 0.0))["test"] == []
  splits.save_splits(tmp_path / splits.FILE_NAME, parts, num_episodes=23)
  assert splits.load_split(tmp_path, "test", num_episodes=23) == parts["test"]
  with pytest.raises(Pi0RagError, match="splits 23 episodes, the data set has 24"):
    splits.load_split(tmp_path, "test", num_episodes=24)
  with pytest.raises(Pi0RagError, match="three fractions that sum to 1"):
    splits.split_episodes(23, fractions=(0.8, 0.1, 0.2))
  with pytest.raises(Pi0RagError, match="2 episodes cannot be split into 3 parts"):
    splits.split_episodes(2)
