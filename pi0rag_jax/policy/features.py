"""From raw observations to a frozen backbone's features: the same way while a cache is built and while a robot runs."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models.backbones.base import Backbone
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.policy.feature_cache import CacheKey, fingerprint
from pi0rag_jax.policy.policy import stacked
from pi0rag_jax.robots import checks, normalize, plain, transforms
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Params

# Counts up when the same observation comes to give other model inputs: caches of older ones are then left alone.
PREPROCESSING_VERSION = 1
BACKBONE_KEYS = ("image", "image_mask", "state", "tokenized_prompt", "tokenized_prompt_mask")


class FeatureExtractor:
  """A backbone with its parameters, tokenizer, the robot and the statistics of its state.

  Pictures are brought to the backbone's size in their own aspect ratio.
  """

  def __init__(self, backbone: Backbone, params: Params, state_stats: normalize.NormStats, *,
               tokenizer: SentencePieceTokenizer | None = None, quantile: bool = False, state_in_prompt: bool = False,
               robot: Robot | None = None, default_prompt: str | None = None):
    """Takes the parts.

    Args:
      params: of the backbone.
      state_stats: of the robot's proprioception.
      tokenizer: of prompts; None where the backbone reads none.
      quantile: normalizes the state by quantiles instead of z-scores.
      state_in_prompt: writes the state into the prompt, as pi0.5 does.
      robot: whose observations it takes; None is a plain one, see robots.plain.
      default_prompt: where an observation has none.
    """
    if bool(backbone.max_token_len) != (tokenizer is not None):
      raise errors.Pi0RagError(f"the backbone reads {backbone.max_token_len} tokens of a prompt: it takes "
                               f"{'a' if backbone.max_token_len else 'no'} tokenizer")
    if state_in_prompt and tokenizer is None:
      raise errors.Pi0RagError("state_in_prompt needs a backbone that reads a prompt")
    self.backbone, self.params = backbone, jax.device_put(params)
    self.robot = robot or make_robot(DataConfig(robot=plain.NAME), "")
    self.state_stats, self.quantile = state_stats, quantile
    self._tokenizer, self._state_in_prompt = tokenizer, state_in_prompt
    prompt = () if tokenizer is None else (
      transforms.TokenizePrompt(tokenizer, backbone.max_token_len, state_in_prompt),)
    # A raw observation to one sample of the backbone's input: `image`, `image_mask`, `state`, `tokenized_prompt`, ...
    self.model_input = transforms.compose((
      transforms.InjectDefaultPrompt(default_prompt), self.robot.inputs, checks.CheckEntries(backbone.image_keys),
      self._cameras, transforms.Normalize({"state": state_stats}, quantile, padded_dim=0),
      transforms.ResizeImages(*backbone.image_size), *prompt))

  @functools.cached_property
  def weights(self) -> str:
    """The fingerprint of the backbone's parameters."""
    return fingerprint(self.params)

  @functools.cached_property
  def preprocessing(self) -> str:
    """The fingerprint of all else that decides a frame's features."""
    tokenizer = self._tokenizer
    return fingerprint({
      "version": PREPROCESSING_VERSION, "backbone": _plain(self.backbone.describe()),
      "tokenizer": None if tokenizer is None else _plain(tokenizer_probe(tokenizer)),
      "state": [self.quantile, _plain(self.state_stats.to_dict())] if self._state_in_prompt else None})

  def cache_key(self, dataset: str) -> CacheKey:
    """Returns the key of the features of a data set with this fingerprint."""
    return CacheKey(self.weights, self.preprocessing, dataset)

  def batch(self, samples: Sequence[Mapping]) -> dict:
    """Returns the arrays of samples that `model_input` made, one after the other."""
    return stacked([{key: sample[key] for key in BACKBONE_KEYS if key in sample} for sample in samples])

  def encode(self, observations: Sequence[dict]) -> jax.Array:
    """Returns the features float32[B, D] of a batch of raw observations (asynchronous); one program per batch size."""
    inputs = self.batch([self.model_input(o) for o in observations])
    return encode(self.backbone, self.params, Observation.from_dict(inputs))

  def _cameras(self, data: dict) -> dict:
    """Returns the sample with the backbone's cameras alone; one without a mask is there."""
    masks = data.get("image_mask", {})
    return {**data, "image": {name: data["image"][name] for name in self.backbone.image_keys},
            "image_mask": {name: np.bool_(masks.get(name, True)) for name in self.backbone.image_keys}}


@functools.partial(jax.jit, static_argnums=0)
def encode(backbone: Backbone, params: Params, obs: Observation):
  """Returns the features float32[B, D]; compiled."""
  return backbone.encode(params, obs)


def tokenizer_probe(tokenizer: SentencePieceTokenizer) -> dict:
  """Returns what tells tokenizers apart: the size, and every piece as text."""
  return {"size": tokenizer.vocab_size, "pieces": [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]}


def _plain(values):
  """Returns nested values with dataclasses and tuples as dicts and lists, which `fingerprint` takes."""
  if dataclasses.is_dataclass(values) and not isinstance(values, type):
    values = dataclasses.asdict(values)
  if isinstance(values, Mapping):
    return {key: _plain(value) for key, value in values.items()}
  if isinstance(values, (list, tuple)):
    return [_plain(value) for value in values]
  return values
