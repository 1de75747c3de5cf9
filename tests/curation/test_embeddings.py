"""Embeddings: those of the policy's own prefix, computed once, and plain words for what is missing."""

import shutil

import numpy as np
import pytest

from pi0rag_jax.curation import embeddings, inputs
from pi0rag_jax.data.dataset import Fields
from pi0rag_jax.data.episodes import Episode, episode_path, write_episodes
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import embedding
from pi0rag_jax.policy import directory

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
LENGTHS = (5, 4)
PROMPT = "pick up the red cube and place it on the white pad"


def write(folder, *, prompt=PROMPT, cameras=CAMERAS):
  for seed, frames in enumerate(LENGTHS):
    rng = np.random.default_rng(seed)
    write_episodes(episode_path(folder, seed), [Episode(
      images={name: rng.integers(0, 256, (frames, 64, 64, 3), np.uint8) for name in cameras},
      state=rng.normal(size=(frames, 10)).astype(np.float32), actions=np.zeros((frames, 5), np.float32) + seed,
      action_chunks=np.zeros((frames, 16, 5), np.float32), privileged={}, prompt=prompt, task="pick_and_place",
      condition="nominal", renderer="raycast", seed=seed, success=bool(seed))])
  return open_dataset(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return write(tmp_path_factory.mktemp("episodes"))


@pytest.fixture(scope="module")
def extractor(tiny_policy_dir):
  return embeddings.policy_extractor(tiny_policy_dir)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def found(dataset, extractor, root):
  return embeddings.build(dataset, extractor, root, every=2, batch_size=4)


def test_they_are_the_policys_prefix_of_every_second_frame(dataset, found, tiny_policy_dir):
  assert [len(found.episode(i)) for i in range(2)] == [3, 2] and found.computed == 5
  policy = directory.load(tiny_policy_dir)
  data = dataset.read_episode(1)
  observation = {"image": {name: frames[2] for name, frames in data.images.items()}, "state": data.state[2],
                 "prompt": PROMPT}
  prefix = policy.encode(policy.start(1), policy.prepare([observation]))[1].context
  expected = embedding.pool_prefix(prefix.hidden_BSD, prefix.mask_BS)[0]
  np.testing.assert_allclose(found.episode(1)[1], expected, atol=1e-5)


def test_nothing_is_computed_twice(dataset, extractor, root, found, monkeypatch):
  monkeypatch.setattr(type(extractor), "encode", lambda *_: pytest.fail("computed again"))
  again = embeddings.build(dataset, extractor, root, every=2, batch_size=4)
  assert again.computed == 0 and again.frames_per_s == 0
  np.testing.assert_array_equal(embeddings.load(dataset, extractor, root, every=2).episode(0), found.episode(0))
  with pytest.raises(Pi0RagError, match=r"no features of these weights, .*build them; there are 1 others"):
    embeddings.load(dataset, extractor, root, every=1)


def test_other_weights_are_another_cache(dataset, extractor, root, found, monkeypatch):
  monkeypatch.setattr(extractor, "weights", "those of another policy")
  with pytest.raises(Pi0RagError, match="no features of these weights"):
    embeddings.load(dataset, extractor, root, every=2)


def test_tokens_are_kept_as_a_sequence_with_zeros_for_padding(dataset, tiny_policy_dir, tmp_path, found):
  extractor = embeddings.policy_extractor(tiny_policy_dir, pool="tokens")
  count = extractor.backbone.pooled_tokens
  tokens_TSD = embeddings.build(dataset, extractor, tmp_path, every=2, batch_size=4).episode(0).reshape(3, count, -1)
  valid_TS = (tokens_TSD != 0).any(-1)
  assert count == 2 * 4 + 16 and 8 < valid_TS[0].sum() < count
  np.testing.assert_allclose(tokens_TSD.sum(1) / valid_TS.sum(1)[:, None], found.episode(0), atol=1e-5)


def test_what_is_missing_is_said_plainly(tmp_path, extractor, root):
  blind = write(tmp_path / "blind", cameras=CAMERAS[:1])
  with pytest.raises(Pi0RagError, match=r"no pictures of left_wrist_0_rgb.*\(cameras: base_0_rgb\): map the names"):
    embeddings.build(blind, extractor, root)
  silent = write(tmp_path / "silent", prompt=" ")
  with pytest.raises(Pi0RagError, match=r"episode.* has no prompt: name the field with fields.prompt"):
    embeddings.build(silent, extractor, root)
  write(tmp_path / "partly")
  episode_path(tmp_path / "partly", 1).unlink()
  shutil.copy(episode_path(tmp_path / "blind", 1), tmp_path / "partly")
  partly = open_dataset(tmp_path / "partly")
  with pytest.raises(Pi0RagError, match=r"episode 1 .* has no whole pictures of base_0_rgb, left_wrist_0_rgb, which"):
    embeddings.build(partly, extractor, tmp_path / "root")
  dark = open_dataset(tmp_path / "silent", fields=Fields(cameras={}))
  with pytest.raises(Pi0RagError, match=r"\(cameras: none\)"):
    embeddings.build(dark, extractor, root)


def test_inputs_are_put_side_by_side(dataset, found):
  episodes = inputs.read(dataset, ("actions", "state", "embeddings"), success_J=[0, 1], every=2, embeddings=found)
  assert episodes.width == 5 + 10 + 16 and [len(v) for v in episodes.values] == [3, 2]
  np.testing.assert_array_equal(episodes.values[1][:, :5], np.ones((2, 5)))
  np.testing.assert_array_equal(episodes.values[0][1, 5:15], dataset.read_episode(0, images=False).state[2])
  np.testing.assert_array_equal(episodes.values[0][:, 15:], found.episode(0))
  values, mask = episodes.padded()
  assert values.shape == (2, 3, 31) and mask.tolist() == [[True] * 3, [True, True, False]]
  assert not values[1, 2].any()
  assert episodes.as_steps().success_J.tolist() == [0, 0, 0, 1, 1]


def test_inputs_that_cannot_be_are_refused(dataset, found):
  with pytest.raises(Pi0RagError, match="unknown input of a classifier 'embedding'"):
    inputs.read(dataset, ("embedding",), success_J=[0, 1])
  with pytest.raises(Pi0RagError, match=r"embeddings of every 1-th frame .*there are those of every 2-th"):
    inputs.read(dataset, ("embeddings",), success_J=[0, 1], embeddings=found)
