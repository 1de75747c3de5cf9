"""Agreement of demonstrations: who does what nobody else does scores low, whatever the length, and by others alone."""

import judged
import numpy as np
import pytest

from pi0rag_jax.curation.scorers import Steps, neighbours, reading
from pi0rag_jax.curation.scorers.agreement import agreement, weighted_agreement, weighted_median
from pi0rag_jax.errors import Pi0RagError


def make_demonstrations(lengths, *, odd) -> Steps:
  """Returns demonstrations along a line: all do what belongs to the place, but for those that do the opposite."""
  places = [np.linspace(0, 1, length, dtype=np.float32)[:, None] for length in lengths]
  signs = np.where(np.isin(np.arange(len(lengths)), odd), -1.0, 1.0)
  chunks = [sign * np.repeat(np.sin(6 * place)[:, None], 2, axis=1) for sign, place in zip(signs, places)]
  return Steps(tuple(places), tuple(chunks), tuple(places), 0.1, np.full(len(lengths), np.nan))


@pytest.mark.parametrize("odd", range(3))
def test_who_does_otherwise_scores_least(odd):
  scores_J = agreement(make_demonstrations((20, 40, 30, 25, 35, 20), odd=odd), neighbours=4)
  others_J = np.delete(scores_J, odd)
  assert scores_J[odd] < 0.5 < others_J.min() and others_J.max() <= 1


def test_an_episode_has_no_say_of_itself():
  """As one of two, each is compared with the other alone, however many neighbours are wanted."""
  steps = make_demonstrations((30, 30), odd=1)
  chunks_N = steps.chunks_ND.reshape(60, -1)
  scores_J = agreement(steps, neighbours=1)
  distance = 2 * np.sqrt(np.square(chunks_N[:30] / chunks_N.std(axis=0)).mean(axis=-1)).mean()
  assert scores_J == pytest.approx([np.exp(-distance)] * 2, rel=1e-3)
  assert agreement(steps, neighbours=99).shape == (2,)


def test_it_follows_the_majority_unless_others_have_the_say():
  """Three of five do the opposite: they agree with one another, and lose where their votes count little."""
  steps = make_demonstrations((30,) * 5, odd=(0, 1, 2))
  scores_J = agreement(steps, neighbours=4)
  assert scores_J[:3].min() > scores_J[3:].max()
  mended_J = weighted_agreement(steps, np.array([0.1, 0.1, 0.1, 1.0, 1.0]), neighbours=4)
  assert mended_J[3:].min() > mended_J[:3].max()


def test_a_weighted_median_is_where_half_of_the_weight_lies_below():
  values_BKD = np.array([[[1.0], [5.0], [9.0]]] * 4)
  weight_BK = np.array([[1, 1, 1], [3, 1, 1], [1, 1, 2], [1, 0, 1]])
  assert weighted_median(values_BKD, weight_BK)[:, 0].tolist() == [5.0, 1.0, 7.0, 5.0]


def test_fewer_references_say_much_the_same(monkeypatch):
  demonstrations = make_demonstrations((60, 50, 70, 40), odd=2)
  whole_J = agreement(demonstrations, neighbours=4)
  monkeypatch.setattr(neighbours, "MOST_REFERENCES", 50)
  fewer_J = agreement(demonstrations, neighbours=4)
  assert fewer_J == pytest.approx(whole_J, abs=0.1) and fewer_J.argmin() == 2


def test_chunks_are_of_what_was_done_and_end_with_the_last(tmp_path):
  dataset = judged.write(tmp_path, episodes=2)
  actions_FA = dataset.read_episode(1, images=False).actions
  chunks = reading.read(dataset, every=2, horizon=3).chunks[1]
  assert chunks.shape == (3, 3, 2) and len(actions_FA) == 5
  assert np.array_equal(chunks[1], actions_FA[2:5]) and np.array_equal(chunks[2], actions_FA[[4, 4, 4]])


def test_of_rollouts_what_was_executed_of_every_chunk_counts(tmp_path):
  """A frame is a decision, whose first two actions are executed."""
  decided_FTA = np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
  dataset = judged.write(tmp_path, 1, state=np.zeros((3, 3), np.float32), actions=decided_FTA[:, 0],
                         action_chunks=decided_FTA, images={"base_0_rgb": np.zeros((3, 8, 8, 3), np.uint8)})
  (chunks,) = reading.read(dataset, horizon=3, ticks=2, success_J=np.ones(1)).chunks
  executed_KA = decided_FTA[:, :2].reshape(6, 2)
  assert np.array_equal(chunks, executed_KA[[[0, 1, 2], [2, 3, 4], [4, 5, 5]]])


def test_one_demonstration_agrees_with_nobody():
  with pytest.raises(Pi0RagError, match="1 demonstrations: whether they agree takes two or more"):
    agreement(make_demonstrations((9,), odd=0))
  with pytest.raises(Pi0RagError, match="neighbours 0; allowed: whole numbers from 1"):
    agreement(make_demonstrations((9, 9), odd=0), neighbours=0)
