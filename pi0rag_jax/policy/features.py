"""From raw observations to a frozen backbone's features: the same way while a cache is built and while a robot runs."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models.backbones.base import Backbone
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.policy.feature_cache import CacheKey, fingerprint
from pi0rag_jax.robots import images, normalize
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Params

# Counts up when the same observation comes to give other model inputs: caches of older ones are then left alone.
PREPROCESSING_VERSION = 1


class FeatureExtractor:
  """A backbone with its parameters, tokenizer and the statistics of the robot's state.

  An observation is a dict with `image` {camera: uint8[H, W, 3], or floats in [0, 1]}, `state` float[P] and, for a
  backbone that reads one, `prompt`. Pictures are brought to the backbone's size in their own aspect ratio.
  """

  def __init__(self, backbone: Backbone, params: Params, state_stats: normalize.NormStats, *,
               tokenizer: SentencePieceTokenizer | None = None, quantile: bool = False, state_in_prompt: bool = False):
    """Takes the parts.

    Args:
      params: of the backbone.
      state_stats: of the robot's proprioception.
      tokenizer: of prompts; None where the backbone reads none.
      quantile: normalizes the state by quantiles instead of z-scores.
      state_in_prompt: writes the state into the prompt, as pi0.5 does.
    """
    if bool(backbone.max_token_len) != (tokenizer is not None):
      raise errors.Pi0RagError(f"the backbone reads {backbone.max_token_len} tokens of a prompt: it takes "
                               f"{'a' if backbone.max_token_len else 'no'} tokenizer")
    if state_in_prompt and tokenizer is None:
      raise errors.Pi0RagError("state_in_prompt needs a backbone that reads a prompt")
    self.backbone, self.params = backbone, jax.device_put(params)
    self.state_stats, self.quantile = state_stats, quantile
    self._tokenizer, self._state_in_prompt = tokenizer, state_in_prompt

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

  def normalized_state(self, observations: Sequence[Mapping]) -> np.ndarray:
    """Returns float32[B, P]. Errors: Pi0RagError when a state does not fit the statistics, or has NaN."""
    state_BP = np.stack([np.asarray(o["state"], np.float32) for o in observations])
    if state_BP.shape[-1] != self.state_stats.dim:
      raise errors.Pi0RagError(f"state has {state_BP.shape[-1]} dims, the norm stats have {self.state_stats.dim}")
    if not np.isfinite(state_BP).all():
      raise errors.Pi0RagError("state has NaN or infinity: the observation is not of a working robot")
    return normalize.normalize(state_BP, self.state_stats, quantile=self.quantile).astype(np.float32)

  def model_input(self, observations: Sequence[Mapping]) -> Observation:
    """Returns the backbone's input of a batch of raw observations."""
    state_BP = self.normalized_state(observations)
    data: dict[str, Any] = {
      "image": {name: self._camera(observations, name) for name in self.backbone.image_keys}, "state": state_BP}
    if self._tokenizer is not None:
      states = state_BP if self._state_in_prompt else [None] * len(observations)
      tokens, masks = zip(*[self._prompt(o, state_P) for o, state_P in zip(observations, states)])
      data |= {"tokenized_prompt": np.stack(tokens), "tokenized_prompt_mask": np.stack(masks)}
    return Observation.from_dict(data)

  def encode(self, observations: Sequence[Mapping]) -> jax.Array:
    """Returns the features float32[B, D] of a batch of raw observations (asynchronous); one program per batch size."""
    return encode(self.backbone, self.params, self.model_input(observations))

  def _camera(self, observations, name: str) -> np.ndarray:
    pictures = []
    for observation in observations:
      if name not in observation["image"]:
        raise errors.unknown_name("camera", name, observation["image"])
      picture_HWC = images.parse_image(observation["image"][name], f"camera {name}")
      pictures.append(images.resize_with_pad(picture_HWC, *self.backbone.image_size))
    return np.stack(pictures)

  def _prompt(self, observation: Mapping, state_P):
    if "prompt" not in observation:
      raise errors.Pi0RagError(f"the backbone reads a prompt, the observation has {', '.join(sorted(observation))}")
    assert self._tokenizer is not None
    return self._tokenizer.encode_prompt(str(observation["prompt"]), self.backbone.max_token_len, state=state_P)


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
