"""The policy of a backbone and a head, on a backbone whose features are known: the mean colour of one camera."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import base as backbones
from pi0rag_jax.models.heads import base, registry
from pi0rag_jax.policy import features, head_policy
from pi0rag_jax.policy.head_policy import HeadPolicy, HeadUnits
from pi0rag_jax.policy.head_windows import window_rows
from pi0rag_jax.robots import normalize

STATE = normalize.NormStats(np.full(2, 3.0), np.full(2, 2.0))
ACTIONS = normalize.NormStats(np.array([1.0, -1.0, 9.0]), np.array([0.1, 10.0, 9.0]))


@dataclasses.dataclass(frozen=True)
class Colour(backbones.Backbone):
  hidden_size, image_keys, image_size, max_token_len = 3, ("front",), (4, 4), 0

  def init(self, rng):
    return {"gain": np.float32(1.0)}

  def vision_tower(self, params, image_BHWC):
    return params["gain"] * image_BHWC.reshape(len(image_BHWC), -1, 3)

  def word_embedding(self, params, tokens_BL):
    raise NotImplementedError

  text_tower = word_embedding

  def encode(self, params, obs):
    return self.vision_tower(params, obs.images["front"]).mean(axis=1)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  monkeypatch.setattr(backbones, "BACKBONES", backbones.BACKBONES | {"colour": Colour})


def make_extractor(gain=1.0):
  return features.FeatureExtractor(Colour(), {"gain": np.float32(gain)}, STATE)


def make_policy(state_dim=2, **units):
  config = registry.head_config("lstm", feature_dim=3, state_dim=state_dim, action_dim=3, chunk=2, window=3, hidden=4,
                                layers=2)
  head = registry.make(config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(functools.partial(base.init, head), jax.random.key(0))
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  return HeadPolicy(make_extractor(), HeadUnits(config, ACTIONS, **units), params)


def observe(steps):
  rng = np.random.default_rng(1)
  return [{"image": {"front": rng.integers(0, 256, (4, 4, 3), np.uint8)}, "state": rng.normal(size=2)}
          for _ in range(steps)]


def test_every_answer_is_that_of_its_window_from_the_first_on():
  policy, seen = make_policy(), observe(5)
  rows_FD = np.concatenate([policy.extractor.encode(seen), policy.extractor.normalized_state(seen)], axis=-1)
  windows = window_rows([0] * 5, window=3)
  run = jax.jit(base.apply, static_argnums=0)
  wanted = run(registry.make(policy.units.config), policy.params, rows_FD[windows.history_FW], windows.history_mask_FW)
  for t, observation in enumerate(seen):
    answer = policy.infer(observation)
    assert answer["actions"].shape == (2, 3) and answer["policy_timing"]["infer_ms"] > 0
    last = jax.tree.map(lambda x, t=t: np.asarray(x[t, -1]), wanted)
    np.testing.assert_allclose(answer["actions"], policy.units.actions(last), atol=1e-4)


def test_a_reset_forgets_and_a_bad_observation_changes_nothing():
  policy, seen = make_policy(), observe(2)
  first = [policy.infer(o)["actions"] for o in seen]
  with pytest.raises(Pi0RagError, match="state has 3 dims"):
    policy.infer(seen[0] | {"state": np.zeros(3)})
  third = policy.infer(seen[0])["actions"]
  policy.reset()
  again = [policy.infer(o)["actions"] for o in seen]
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(policy.infer(seen[0])["actions"], third)
  assert not np.allclose(first[0], third)


def test_units_by_hand():
  units = make_policy(closed=255.0, open=-1.0).units
  labels = units.labels([[1.1, -11.0, 255.0], [0.9, -1.0, 0.0]])
  np.testing.assert_allclose(labels, [[1, -1, 0], [-1, 0, 1]], atol=1e-4)
  output = base.HeadOutput(np.array([[1.0, -1.0], [-1.0, 0.0]]), np.array([[-0.1], [0.1]]))
  np.testing.assert_allclose(units.actions(output), [[1.1, -11.0, 255.0], [0.9, -1.0, -1.0]], atol=1e-4)
  with pytest.raises(Pi0RagError, match=r"open at 1.0 and closed at 1.0"):
    make_policy(closed=1.0)
  with pytest.raises(Pi0RagError, match="the norm stats have 2 action dims, the head 3"):
    HeadUnits(units.config, STATE)


def test_a_saved_policy_answers_the_same(tmp_path):
  policy, seen = make_policy(closed=255.0, open=-1.0), observe(1)
  policy.save(tmp_path / "head")
  loaded = HeadPolicy.load(tmp_path / "head", make_extractor())
  np.testing.assert_array_equal(loaded.infer(seen[0])["actions"], policy.infer(seen[0])["actions"])
  with pytest.raises(Pi0RagError, match="trained with other weights of the backbone"):
    HeadPolicy.load(tmp_path / "head", make_extractor(gain=2.0))
  with pytest.raises(Pi0RagError, match=f"no {head_policy.FILE_NAME} in"):
    HeadPolicy.load(tmp_path, make_extractor())


def test_a_head_of_another_backbone_or_robot_is_refused():
  policy = make_policy()
  config = dataclasses.replace(policy.units.config, feature_dim=4)
  with pytest.raises(Pi0RagError, match="the head reads 4 features, the backbone gives 3"):
    HeadPolicy(policy.extractor, HeadUnits(config, ACTIONS), policy.params)
  with pytest.raises(Pi0RagError, match="the head reads 1 dims of state, the robot has 2"):
    make_policy(state_dim=1)
