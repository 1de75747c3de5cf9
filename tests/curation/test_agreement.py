"""Agreement of demonstrations: who does what nobody else does scores low, whatever the length, and by others alone."""

import numpy as np
import pytest

from pi0rag_jax.curation import agreement
from pi0rag_jax.curation.agreement import AgreementConfig
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.errors import Pi0RagError
from tests.curation import judged

CONFIG = AgreementConfig(neighbours=4, horizon=2)


def make_demonstrations(lengths, *, odd: int):
  """Returns (episodes, chunks): along a line all do what belongs to the place, but for one that does the opposite."""
  places = [np.linspace(0, 1, length)[:, None] for length in lengths]
  signs = np.where(np.arange(len(lengths)) == odd, -1.0, 1.0)
  chunks = [sign * np.repeat(np.sin(6 * place)[:, None], 2, axis=1) for sign, place in zip(signs, places)]
  return Episodes(tuple(place.astype(np.float32) for place in places), np.full(len(lengths), np.nan)), chunks


@pytest.mark.parametrize("odd", range(3))
def test_who_does_otherwise_scores_least(odd):
  scores_J = agreement.episode_scores(*make_demonstrations((20, 40, 30, 25, 35, 20), odd=odd), CONFIG)
  others_J = np.delete(scores_J, odd)
  assert scores_J[odd] < 0.5 < others_J.min() and others_J.max() <= 1


def test_an_episode_has_no_say_of_itself():
  """As one of two, each is compared with the other alone, however many neighbours are wanted."""
  episodes, chunks = make_demonstrations((30, 30), odd=1)
  chunks_N = np.concatenate([each.reshape(30, -1) for each in chunks])
  std_D = chunks_N.std(axis=0)
  scores_J = agreement.episode_scores(episodes, chunks, AgreementConfig(neighbours=1, horizon=2))
  distance = 2 * np.sqrt(np.square(chunks[0].reshape(30, -1) / std_D).mean(axis=-1)).mean()
  assert scores_J == pytest.approx([np.exp(-distance)] * 2, rel=1e-3)
  assert agreement.episode_scores(episodes, chunks, AgreementConfig(neighbours=99, horizon=2)).shape == (2,)


def test_fewer_references_say_much_the_same(monkeypatch):
  demonstrations = make_demonstrations((60, 50, 70, 40), odd=2)
  whole_J = agreement.episode_scores(*demonstrations, CONFIG)
  monkeypatch.setattr(agreement, "MOST_REFERENCES", 50)
  fewer_J = agreement.episode_scores(*demonstrations, CONFIG)
  assert fewer_J == pytest.approx(whole_J, abs=0.1) and fewer_J.argmin() == 2


def test_chunks_are_of_what_was_done_and_end_with_the_last(tmp_path):
  dataset = judged.write(tmp_path, episodes=2)
  actions_FA = dataset.read_episode(1, images=False).actions
  chunks = agreement.chunks_of(dataset, every=2, horizon=3)[1]
  assert chunks.shape == (3, 3, 2) and len(actions_FA) == 5
  assert np.array_equal(chunks[1], actions_FA[2:5]) and np.array_equal(chunks[2], actions_FA[[4, 4, 4]])


def test_one_demonstration_agrees_with_nobody():
  with pytest.raises(Pi0RagError, match="1 demonstrations: whether they agree takes two or more"):
    agreement.episode_scores(*make_demonstrations((9,), odd=0), CONFIG)
  with pytest.raises(Pi0RagError, match="neighbours 0, horizon 2; allowed: whole numbers from 1"):
    AgreementConfig(neighbours=0, horizon=2)
