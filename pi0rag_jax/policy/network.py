"""Policies with a vision-language network of their own, between openpi's transforms: pi0, pi0.5 and pi0-FAST."""

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import packing, pi0, pi0_fast
from pi0rag_jax.models.flow import Guide, Ode
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.policy import compiling, keys
from pi0rag_jax.policy.policy import PROMPT_BUCKET, Carry, Encoded, Policy, params_digest, stacked
from pi0rag_jax.policy.realtime import Lead
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.robots.normalize import EPSILON, NormStats, affine
from pi0rag_jax.robots.robot import ActionMap, ActionSpace, Robot
from pi0rag_jax.robots.transforms import TransformGroup, compose
from pi0rag_jax.typing import Array, Params

OBSERVATION_KEYS = ("image", "image_mask", "state", "tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask",
                    "token_loss_mask")
_PROMPT = ("tokenized_prompt", "tokenized_prompt_mask")


class NetworkPolicy(Policy):
  """What policies with a network share."""

  def __init__(self, spec: PolicySpec, params: Params, *, robot: Robot, group: TransformGroup,
               stats: Mapping[str, NormStats], key_stats: keys.KeyStats, weights: str | None = None, seed: int = 0):
    """Takes the parts.

    Args:
      params: in openpi's tree, adapters merged or not, of the spec's sizes.
      group: all transforms between the robot's dictionaries and the model's, see `robots.pipeline`.
      stats: of `state` and `actions`; empty for data that need none.
      weights: how the matrices of a pi0 or pi0.5 are stored, see `packing.pack`.
    """
    self.key_stats, self._key_dims = key_stats, _state_dim(spec, stats)
    self.transforms, self._inputs, self._outputs = group, compose(group.inputs), compose(group.outputs)
    digest = functools.partial(params_digest, params)
    params, self.network = self.laid_out(params, spec.network, weights)
    space = robot.actions or ActionSpace.of_stats(_plain_stats(stats, "actions", spec))
    super().__init__(
      spec, robot, space, jax.device_put({"model": params, "keys": key_stats.params}, jax.devices()[0]), digest=digest,
      key_name=key_stats.name, key_dim=key_stats.key_dim(self._key_dims), unit_distance=key_stats.unit_distance,
      seed=seed)

  @staticmethod
  def laid_out(params: Params, sizes: PaliGemmaConfig, weights: str | None) -> tuple[Params, PaliGemmaConfig]:
    """Returns parameters and sizes as the programs take them."""
    if weights is not None:
      raise Pi0RagError(f"weights '{weights}' of a pi0-FAST; allowed: None, since only pi0 and pi0.5 are packed")
    return params, sizes

  def model_input(self, raw: Mapping) -> dict:
    if not isinstance(raw, Mapping):
      raise Pi0RagError(f"the observation is {type(raw).__name__}; allowed: a robot's dictionary")
    return self._inputs(dict(raw))

  def batch(self, samples: Sequence[Mapping]) -> dict:
    return stacked([{key: sample[key] for key in OBSERVATION_KEYS if key in sample} for sample in samples])

  def network_of(self, inputs: dict) -> PaliGemmaConfig:
    """Returns the sizes of the network that sees these cameras, in its own order of them."""
    return dataclasses.replace(self.network, image_keys=tuple(self.cameras_of(inputs)))

  def cameras_of(self, inputs: dict) -> Sequence[str]:
    """Returns the cameras of some inputs as the network orders them."""
    return [name for name in self.network.image_keys if name in inputs["image"]]

  def read(self, outputs, state_BP) -> np.ndarray:
    """Returns chunks float32[B, T, A] in the robot's units of what the model answered (host)."""
    outputs, state_BP = np.asarray(outputs), np.asarray(state_BP, np.float32)
    rows = [self._outputs({"state": state_P, "actions": output})["actions"]
            for output, state_P in zip(outputs, state_BP)]
    return np.stack(rows).astype(np.float32)[..., : self.space.dim]

  def key_of(self, params: Params, prefix: pi0.PrefixOutput, observation: Observation, seen: PaliGemmaConfig) -> Array:
    """Returns the keys float32[B, E] of a batch; pure."""
    recipe = self.key_stats.recipe
    pooled_BD = keys.features(prefix, observation, recipe, self.network, params["keys"], seen=seen.image_keys)
    return keys.make_key(pooled_BD, observation.state[:, : self._key_dims], self.key_stats, params["keys"])


class FlowPolicy(NetworkPolicy):
  """pi0 or pi0.5: a chunk is where the flow ends that starts at noise."""

  def __init__(self, spec: PolicySpec, params: Params, *, robot: Robot, stats: Mapping[str, NormStats], **parts):
    # What turns normalized actions into the robot's units on the device; a robot that mixes them does so on the host.
    self._units: Units | None = None
    try:
      self._units = Units(spec, robot, stats)
    except Pi0RagError as error:
      self._mixed = error
    self._prompts = _Repeated()
    super().__init__(spec, params, robot=robot, stats=stats, **parts)

  @property
  def has_flow(self) -> bool:
    return self._units is not None

  @staticmethod
  def laid_out(params: Params, sizes: PaliGemmaConfig, weights: str | None) -> tuple[Params, PaliGemmaConfig]:
    compiling.check_layout(sizes, weights)
    # What is converted layer by layer keeps openpi's layout.
    return (params, sizes) if weights is None and compiling.converts(params) else packing.pack(
      params, sizes, weights=weights, aligned=compiling.aligns())

  @property
  def noise_shape(self) -> tuple[int, ...]:
    return self.spec.network.action_horizon, self.spec.network.action_dim

  def batch(self, samples: Sequence[Mapping]) -> dict:
    """See Policy.batch; without what the masks of all rows hide: absent cameras and padding tokens.

    Masked tokens are seen by no other and count no position, so nothing changes but the work. Prompts keep a length
    that is a multiple of PROMPT_BUCKET: one executable for each, and for each set of cameras.
    """
    inputs = super().batch(samples)
    masks = inputs.pop("image_mask", {})
    present = [name for name in self.network.image_keys if name not in masks or masks[name].any()]
    present = present or list(self.network.image_keys[:1])
    inputs["image"] = {name: inputs["image"][name] for name in present}
    if not all(masks[name].all() for name in present if name in masks):
      inputs["image_mask"] = {name: masks[name] if name in masks else np.ones(len(samples), bool) for name in present}
    count = max(int(inputs["tokenized_prompt_mask"].sum(axis=-1).max()), 1)
    kept = -(-count // PROMPT_BUCKET) * PROMPT_BUCKET
    return inputs | self._prompts.on_device({name: inputs[name][:, :kept] for name in _PROMPT})

  def encode_fn(self, params: Params, carry: Carry, inputs: dict) -> tuple[Carry, Encoded]:
    observation, seen = Observation.from_dict(inputs), self.network_of(inputs)
    prefix = pi0.encode_prefix(pi0.Pi0(cast(pi0.Pi0Config, seen)), params["model"], observation,
                               keys_only=self.key_stats.recipe.source != "hidden")
    return carry, Encoded(prefix, observation.state, self.key_of(params, prefix, observation, seen))

  def decode_fn(self, params: Params, encoded: Encoded, start_BTX) -> Array:
    return self._finished(self._run(params, encoded)(start_BTX), encoded.state_BP)

  def decode(self, encoded: Encoded, noise_BTX=None) -> Array:
    chunk = super().decode(encoded, noise_BTX)
    return chunk if self._units else self.read(chunk, encoded.state_BP)

  def sample(self, carry: Carry, inputs: dict, noise_BTX=None) -> tuple[Carry, Array]:
    carry, chunk = super().sample(carry, inputs, noise_BTX)
    return carry, chunk if self._units else self.read(chunk, inputs["state"])

  def sample_fn(self, params: Params, carry: Carry, inputs: dict, start_BTX) -> tuple[Carry, Array]:
    observation = Observation.from_dict(inputs)
    model = pi0.Pi0(cast(pi0.Pi0Config, self.network_of(inputs)))
    normalized_BTX = pi0.sample_actions(model, params["model"], observation, start_BTX,
                                        num_steps=self.spec.denoising_steps)
    return carry, self._finished(normalized_BTX, observation.state)

  def _run(self, params: Params, encoded: Encoded) -> Callable[..., Array]:
    model = pi0.Pi0(cast(pi0.Pi0Config, self.network))
    return functools.partial(pi0.denoise, model, params["model"], encoded.context, encoded.state_BP,
                             num_steps=self.spec.denoising_steps)

  def _finished(self, chunk_BTX, state_BP) -> Array:
    """Returns a chunk in the robot's units; normalized still where only the host can convert it."""
    return self._units.to_robot(chunk_BTX, state_BP) if self._units else chunk_BTX

  def in_one(self, query, steer, *, runs_again: bool):
    if self._units is None:
      raise self._mixed
    return super().in_one(query, steer, runs_again=runs_again)

  def flow_fn(self, params: Params, encoded: Encoded, start_BTX) -> Ode:
    if self._units is None:
      raise self._mixed
    return Ode(self._run(params, encoded), start_BTX, self.spec.denoising_steps,
               to_model=functools.partial(self._units.to_model, state_BP=encoded.state_BP),
               to_robot=functools.partial(self._units.to_robot, state_BP=encoded.state_BP))

  def go_on_fn(self, params: Params, encoded: Encoded, start_BTX, lead: Lead) -> Array:
    flow = self.flow_fn(params, encoded, start_BTX)
    target_BTX = flow.to_model(lead.previous_BTA)
    chunk_BTA = flow.to_robot(flow.run(start_BTX, guide=Guide(target_BTX, lead.weight_BT)))
    return jnp.where(lead.weight_BT[..., None] == 1, lead.previous_BTA, chunk_BTA)

  def invert_fn(self, params: Params, encoded: Encoded, chunk_BTA, *, iterations: int) -> Array:
    if self._units is None:
      raise self._mixed
    return pi0.invert(pi0.Pi0(cast(pi0.Pi0Config, self.network)), params["model"], encoded.context, encoded.state_BP,
                      self._units.to_model(chunk_BTA, encoded.state_BP), num_steps=self.spec.denoising_steps,
                      iterations=iterations)


class TokensPolicy(NetworkPolicy):
  """pi0-FAST: the language model writes tokens, which the host reads as a chunk."""

  @property
  def noise_shape(self) -> tuple[int, ...]:
    return ()

  def cameras_of(self, inputs: dict) -> Sequence[str]:
    return sorted(inputs["image"])  # as openpi: those that there are, in the order of their names

  def encode_fn(self, params: Params, carry: Carry, inputs: dict) -> tuple[Carry, Encoded]:
    observation, seen = Observation.from_dict(inputs), self.network_of(inputs)
    prefix = pi0_fast.encode_prefix(pi0_fast.Pi0Fast(cast(pi0_fast.Pi0FastConfig, seen)), params["model"], observation,
                                    reserve=self.spec.decoding_steps)
    return carry, Encoded(prefix, observation.state, self.key_of(params, prefix, observation, seen))

  def decode_fn(self, params: Params, encoded: Encoded, start_BTX) -> Array:
    """Returns the tokens int32[B, M]; `start_BTX` is a key, for a temperature above 0."""
    return pi0_fast.write_tokens(
      pi0_fast.Pi0Fast(cast(pi0_fast.Pi0FastConfig, self.network)), params["model"], encoded.context, start_BTX,
      max_decoding_steps=self.spec.decoding_steps, temperature=self.spec.temperature)

  def start_of_flow(self, batch: int, noise_BTX=None):
    super().start_of_flow(batch, noise_BTX)  # refuses noise
    self._rng, _, own = _split(self._rng)
    return own

  def decode(self, encoded: Encoded, noise_BTX=None) -> np.ndarray:
    """See Policy.decode; waits for the device, since the host reads the tokens."""
    tokens_BM = self._decode(encoded, self.start_of_flow(len(encoded.key_BE), noise_BTX))
    return self.read(tokens_BM, encoded.state_BP)

  def sample(self, carry: Carry, inputs: dict, noise_BTX=None) -> tuple[Carry, np.ndarray]:
    carry, tokens_BM = self._sample(carry, inputs, self.start_of_flow(len(inputs["state"]), noise_BTX))
    return carry, self.read(tokens_BM, inputs["state"])

  def in_one(self, query, steer, *, runs_again: bool):
    raise Pi0RagError("feeding 'callback' needs a chunk that is computed on the device; a pi0-FAST's is read from its "
                      "tokens on the host: use 'overlap'")



class _Repeated:
  """Arrays that robots repeat, such as prompts: those that come again are kept on the device."""

  KEPT = 64

  def __init__(self):
    self._kept: collections.OrderedDict[tuple, dict | None] = collections.OrderedDict()
    self._lock = threading.Lock()

  def on_device(self, arrays: dict) -> dict:
    """Returns the same arrays, where the device may have them already."""
    # With their shapes: two rows of four numbers have the bytes of one row of eight.
    content = tuple((array.shape, array.tobytes()) for array in arrays.values())
    with self._lock:
      if content not in self._kept:  # a state may be written into a prompt, which then never comes again
        self._kept[content] = None
        if len(self._kept) > self.KEPT:
          self._kept.popitem(last=False)
        return arrays
      self._kept.move_to_end(content)
      found = self._kept[content]
      if found is None:
        # Uncommitted, as arrays of the host are: the same program takes both.
        found = self._kept[content] = jax.device_put(arrays)
      return found


class Units:
  """Normalized actions and the robot's own, by arithmetic that runs on the device."""

  def __init__(self, spec: PolicySpec, robot: Robot, stats: Mapping[str, NormStats]):
    self._dim, quantile = spec.network.action_dim, spec.model.use_quantile_norm
    self._actions = affine(_plain_stats(stats, "actions", spec), quantile=quantile)
    self._state = affine(_plain_stats(stats, "state", spec), quantile=quantile)
    self._map: ActionMap = robot.action_map(self._dim)

  def to_robot(self, chunk_BTX, state_BP):
    """Returns float32[..., T, A] of normalized, padded actions."""
    mean_D, scale_D = self._actions
    model_BTD = chunk_BTX[..., : len(mean_D)].astype(jnp.float32) * scale_D + mean_D
    return self._map.to_robot(model_BTD, self._reference(state_BP))

  def to_model(self, chunk_BTA, state_BP):
    """Returns float32[..., T, X], what `to_robot` takes, zero where the robot has no entry."""
    mean_D, scale_D = self._actions
    model_BTD = self._map.to_model(chunk_BTA, self._reference(state_BP))
    width = model_BTD.shape[-1]
    padding = [(0, 0)] * (model_BTD.ndim - 1) + [(0, self._dim - width)]
    return jnp.pad((model_BTD - mean_D[:width]) / scale_D[:width], padding)

  def _reference(self, state_BP):
    """Returns the state as the model has it before normalization, float32[B, P]."""
    mean_P, scale_P = self._state
    return state_BP[..., : len(mean_P)] * scale_P + mean_P if any(self._map.relative) else None


def _plain_stats(stats: Mapping[str, NormStats], name: str, spec: PolicySpec) -> NormStats:
  """Returns the statistics of a name; those that change nothing where a policy has none."""
  if stats:
    return stats[name]
  width = spec.network.action_dim if name == "actions" else spec.network.state_size
  one_D = np.ones(width)
  plain = NormStats(0 * one_D, one_D - EPSILON, -one_D, one_D - EPSILON)
  return plain


def _state_dim(spec: PolicySpec, stats: Mapping[str, NormStats]) -> int:
  """Returns how many numbers of the model's state are the robot's."""
  return min(_plain_stats(stats, "state", spec).dim, spec.network.state_size)


@jax.jit
def _split(rng):
  """Returns the key of the next draw, nothing, and the key of this one: as the draws of noise have it."""
  rng, own = jax.random.split(rng)
  return rng, None, own
