"""A small policy of each kind, all of ALOHA, and what its robot sees."""

import dataclasses

import jax
import numpy as np
import pytest

from pi0rag_jax.models import registry
from pi0rag_jax.models.backbones import PaliGemmaBackbone
from pi0rag_jax.models.heads import base
from pi0rag_jax.models.heads import registry as heads
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.openpi.named_configs import ALOHA_DELTA
from pi0rag_jax.policy import head, keys
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.head import HeadPolicy, HeadUnits
from pi0rag_jax.policy.network import FlowPolicy, TokensPolicy
from pi0rag_jax.policy.spec import HEAD, PolicySpec
from pi0rag_jax.robots.action_tokens import ActionTokenizer, BinningCodec
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.pipeline import policy_transforms
from pi0rag_jax.robots.registry import make_robot

DIM = 14
SIZES = {"pi0": "dummy", "pi05": "dummy", "pi0_fast": "dummy_fast"}


def small_sizes(family):
  """Returns sizes that run in a moment."""
  sizes = dataclasses.replace(registry.model(SIZES[family]), dtype="float32", action_dim=16, action_horizon=8,
                              max_token_len=160, vocab_size=1024, image_size=(28, 28), image_keys=OPENPI_CAMERAS)
  towers = {"siglip": 1, "paligemma": 2, **({} if family == "pi0_fast" else {"expert": 2})}
  sizes = dataclasses.replace(sizes, **{name: dataclasses.replace(getattr(sizes, name), depth=depth)
                                        for name, depth in towers.items()})
  return sizes if family == "pi0_fast" else dataclasses.replace(sizes, pi05=family == "pi05")


def random_like(shapes, scale=0.1):
  """Returns random parameters, large enough for noise and pictures to matter."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(scale=scale, size=x.shape).astype(np.float32), shapes)


def spread_stats():
  """Actions stay well within the robot's limits, which steered chunks keep."""
  zero_D = np.zeros(DIM)
  return {name: NormStats(zero_D, zero_D + spread, zero_D - 2 * spread, zero_D + 2 * spread)
          for name, spread in (("state", 0.5), ("actions", 0.1))}


def network_policy(family, text_tokenizer):
  sizes = small_sizes(family)
  data = DataConfig(robot="aloha", asset_id="aloha", delta_mask=ALOHA_DELTA)
  spec = PolicySpec(name=family, model=ModelConfig(family=family), sizes=sizes, data=data, control_hz=50.0,
                    execute_steps=4, start="zero" if family == "pi0_fast" else "draw:3", denoising_steps=2,
                    decoding_steps=6)
  params = random_like(jax.eval_shape(lambda key: registry.init(sizes, key), jax.random.key(0)))
  stats = spread_stats()
  group = policy_transforms(data, spec.model, sizes, stats, text_tokenizer=text_tokenizer, action_codec=BinningCodec())
  kind = TokensPolicy if family == "pi0_fast" else FlowPolicy
  return kind(spec, params, robot=make_robot(data, family), group=group, stats=stats,
              key_stats=keys.KeyStats.uncalibrated(sizes))


def head_policy(kind, text_tokenizer):
  """An LSTM on the prefix of a small pi0."""
  backbone = PaliGemmaBackbone(small_sizes("pi0"))
  config = heads.head_config(kind, feature_dim=backbone.hidden_size, state_dim=DIM, action_dim=DIM, gripper_dims=(),
                             chunk=8, window=4, hidden=16, layers=1)
  stats, data = spread_stats(), DataConfig(robot="aloha", asset_id="aloha")
  extractor = FeatureExtractor(
    backbone, random_like(jax.eval_shape(backbone.init, jax.random.key(0))), stats["state"], tokenizer=text_tokenizer,
    robot=make_robot(data, HEAD))
  units = HeadUnits(config, stats["actions"])
  spec = PolicySpec(
    name=kind, model=ModelConfig(), sizes=None, data=data, control_hz=50.0, execute_steps=4,
    head=head.description(extractor, units, backbone={"name": "paligemma"}, image_size=[28, 28], fields={},
                          state_in_prompt=False))
  params = random_like(jax.eval_shape(lambda key: base.init(heads.make(config), key), jax.random.key(0)), scale=1.0)
  return HeadPolicy(spec, params, extractor=extractor, units=units)


# By name: what makes the policy.
MAKERS = {**{family: network_policy for family in SIZES}, "lstm": head_policy}


@pytest.fixture(scope="session")
def make_policy(text_tokenizer):
  """Returns a function of a kind's name: its policy, made once."""
  made = {}

  def policy(kind):
    if kind not in made:
      made[kind] = MAKERS[kind](kind, text_tokenizer)
    return made[kind]

  return policy


@pytest.fixture(scope="module", autouse=True)
def tokens_are_actions():
  """Random parameters write no actions in words: here these are the tokens' own numbers."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ActionTokenizer, "extract_actions",
                  lambda self, tokens_M, horizon, dim: np.resize(tokens_M / 1024, (horizon, dim)))
    yield


@pytest.fixture(scope="session")
def seen():
  """Three observations of ALOHA; they differ in cameras and prompt too, and the last one is far from the others."""
  rng, found = np.random.default_rng(0), []
  for i, prompt in enumerate(("fold the towel", "fold the large towel and put it away", "open the drawer")):
    cameras = ("cam_high", "cam_left_wrist", "cam_right_wrist")[: 3 - i % 2]
    found.append({"images": {name: rng.integers(0, 256, (3, 40, 56), np.uint8) for name in cameras},
                  "state": 0.2 * rng.standard_normal(DIM) + (i == 2), "prompt": prompt})
  return found
