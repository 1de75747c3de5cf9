"""The base policy: from raw observations to an action chunk in the robot's units, in two jitted calls."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import pathlib
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models import packing, pi0
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.norm_stats import load_norm_stats
from pi0rag_jax.policy import compiling, keys
from pi0rag_jax.policy.flow import Flow
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.robots import normalize
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Encoded:
  """What one look at the world leaves on the device for denoising, and the key for the memory."""

  prefix: pi0.PrefixOutput
  state_BA: Array  # normalized, padded to the model's action dim
  key_BE: Array


class Policy:
  """A frozen flow-matching policy.

  `encode` and `denoise` are dispatched without waiting for the device, so that a caller can search its memory
  while the device denoises. Batches are padded to powers of two: few executables, whatever the batch.
  """

  def __init__(self, spec: PolicySpec, params: Params, norm_stats: dict[str, normalize.NormStats],
               tokenizer: SentencePieceTokenizer, key_stats: keys.KeyStats, *, weights: str | None = None):
    self.spec = spec
    # Gigabytes take seconds, and only a memory asks for it.
    self._digest = _in_background(functools.partial(_digest, params))
    params, model_config = packing.pack(params, spec.model, weights=weights)
    self.params = jax.device_put(params)
    self.norm_stats = norm_stats
    self.key_stats = key_stats
    self.key_params = jax.device_put(key_stats.params)
    self._tokenizer = tokenizer
    self._prompt_tokens = functools.lru_cache(maxsize=1024)(
        lambda prompt: tokenizer.encode_prompt(prompt, spec.model.max_token_len))
    model = pi0.Pi0(model_config)
    # Pure functions of (params, ...), the first of (params, key_params, ...), for callers that compile more than one
    # of them into one program.
    self.encode_fn = functools.partial(_encode, model, key_stats, spec.state_dim)
    self.flow_fn = functools.partial(_flow, model, norm_stats["actions"], spec.denoising_steps)
    self.denoise_fn = functools.partial(_denoise, self.flow_fn)
    self._encode = compiling.bound(self.encode_fn, self.params)
    self._denoise = compiling.bound(self.denoise_fn, self.params)

  @classmethod
  def load(cls, directory, *, key_name: str = "", key_stats: keys.KeyStats | None = None,
           denoising_steps: int | None = None, weights: str | None = None) -> "Policy":
    """Returns the policy of a directory that `train.launch` exported.

    Args:
      key_name: which of the directory's key statistics, as `train.calibrate --name` wrote them; '' is its own.
      key_stats: instead of those in the directory.
      denoising_steps: of the flow, instead of the directory's.
      weights: how matrices are stored, see `packing.pack`; with either option a memory stays the policy's own, though
        its chunks are other ones by a little.
    Errors: Pi0RagError when a part is missing, or the parameters do not fit the spec (first paths listed).
    """
    directory = pathlib.Path(directory)
    spec = PolicySpec.load(directory)
    if denoising_steps is not None:
      spec = dataclasses.replace(spec, denoising_steps=denoising_steps)
    template = jax.eval_shape(functools.partial(pi0.init, spec.model), jax.random.key(0))
    params = checkpoints.load_params(directory, template=template)
    stats = load_norm_stats(directory, spec.asset_id)
    norm_stats = {name: normalize.NormStats.from_dict(values) for name, values in stats.items()}
    key_stats = key_stats or keys.KeyStats.load(directory, key_name)
    return cls(spec, params, norm_stats, SentencePieceTokenizer(directory / TOKENIZER_NAME), key_stats, weights=weights)

  @property
  def fingerprint(self) -> str:
    """The policy's name and a short hash of its parameters: of another policy a memory has other keys and residuals."""
    return f"{self.spec.name}-{self._digest.result()}"

  @property
  def chunk_shape(self) -> tuple[int, int]:
    """(horizon, action dim) of the robot's chunk."""
    return self.spec.model.action_horizon, self.spec.action_layout.dim

  @property
  def noise_shape(self) -> tuple[int, int]:
    """(horizon, the model's action dim): one sample of noise."""
    return self.spec.model.action_horizon, self.spec.model.action_dim

  @property
  def key_dim(self) -> int:
    return self.key_stats.key_dim(self.spec.state_dim)

  def encode(self, observations: Sequence[dict]) -> Encoded:
    """Returns the encoded prefix and keys of a batch of raw observations (asynchronous).

    Args:
      observations: dicts with `image` {camera: uint8[S, S, 3]}, `state` float[P], `prompt` str.
    Errors: Pi0RagError when a camera or state does not fit the policy, or the state has NaN.
    """
    return self._encode(self.key_params, self.model_input(observations))

  def denoise(self, encoded: Encoded, noise_BTA: np.ndarray | None) -> jax.Array:
    """Returns the policy's own chunk float32[B', T, A] in the robot's units (asynchronous, B' padded).

    Args:
      noise_BTA: float[B, T, A'] with A' the model's action dim: where the ODE starts; None starts at zero.
    """
    start_BTA = self.start_of_flow(encoded.state_BA.shape[0], noise_BTA)
    return self._denoise(encoded.prefix, encoded.state_BA, start_BTA)

  def start_of_flow(self, batch: int, noise_BTA: np.ndarray | None) -> np.ndarray:
    """Returns where the ODE starts, float32[batch, T, A']: the given noise, zeros behind it or without it."""
    start_BTA = np.zeros((batch, *self.noise_shape), np.float32)
    if noise_BTA is not None:
      start_BTA[: len(noise_BTA)] = noise_BTA
    return start_BTA

  def model_input(self, observations: Sequence[dict]) -> dict:
    """Returns the model's observation of a batch of raw ones, normalized, tokenized and padded, in openpi's form.

    Pictures stay bytes: the device makes numbers of them.
    """
    padding = padded_size(len(observations)) - len(observations)
    observations = [*observations, *[observations[-1]] * padding]
    images = {name: self._camera(observations, name) for name in self.spec.model.image_keys}
    state_BP = np.stack([o["state"] for o in observations]).astype(np.float32)
    if state_BP.shape[-1] != self.spec.state_dim:
      raise errors.Pi0RagError(f"state has {state_BP.shape[-1]} dims, the policy takes {self.spec.state_dim}")
    if not np.isfinite(state_BP).all():
      raise errors.Pi0RagError("state has NaN or infinity: the observation is not of a working robot")
    normalized = normalize.normalize(state_BP, self.norm_stats["state"]).astype(np.float32)
    tokens, masks = zip(*[self._prompt_tokens(o["prompt"]) for o in observations])
    return {
        "image": images,
        "state": normalize.pad_last(normalized, self.spec.model.state_size),
        "tokenized_prompt": np.stack(tokens),
        "tokenized_prompt_mask": np.stack(masks),
    }

  def _camera(self, observations, name: str) -> np.ndarray:
    size = self.spec.image_size
    for observation in observations:
      if name not in observation["image"]:
        raise errors.unknown_name("camera", name, observation["image"])
      shape = observation["image"][name].shape
      if shape != (size, size, 3):
        raise errors.Pi0RagError(f"camera {name} gives {shape}, the policy takes {(size, size, 3)}")
    return np.stack([o["image"][name] for o in observations])


def _digest(params: Params) -> str:
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()[:16]


def _in_background(function: Callable) -> concurrent.futures.Future:
  """Returns the future result of a function, which runs on a thread that no process waits for at its end."""
  future: concurrent.futures.Future = concurrent.futures.Future()

  def run():
    try:
      future.set_result(function())
    except BaseException as error:  # for whoever asks
      future.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return future


def padded_size(batch: int) -> int:
  """Returns the power of two that a batch is padded to."""
  return 1 << max(batch - 1, 0).bit_length()


def _encode(model: pi0.Pi0, key_stats: keys.KeyStats, state_dim: int, params, key_params, inputs: dict):
  observation = Observation.from_dict(inputs)
  prefix = pi0.encode_prefix(model, params, observation, keys_only=key_stats.recipe.source != "hidden")
  pooled_BD = keys.features(prefix, observation, key_stats.recipe, model.config, key_params)
  key_BE = keys.make_key(pooled_BD, observation.state[:, :state_dim], key_stats, key_params)
  return Encoded(prefix, observation.state, key_BE)


def _flow(model: pi0.Pi0, stats: normalize.NormStats, num_steps: int, params, prefix, state_BA, start_BTA) -> Flow:
  mean_A, scale_A = (jnp.asarray(a, jnp.float32) for a in (stats.mean, stats.std + normalize.EPSILON))
  padding = ((0, 0), (0, 0), (0, model.config.action_dim - stats.dim))
  return Flow(
      run=functools.partial(pi0.denoise, model, params, prefix, state_BA, num_steps=num_steps),
      start_BTA=start_BTA, num_steps=num_steps,
      to_model=lambda chunk_BTA: jnp.pad((chunk_BTA - mean_A) / scale_A, padding),
      to_robot=lambda chunk_BTA: chunk_BTA[..., : stats.dim].astype(jnp.float32) * scale_A + mean_A)


def _denoise(flow_fn, params, prefix, state_BA, start_BTA):
  flow = flow_fn(params, prefix, state_BA, start_BTA)
  return flow.to_robot(flow.run(start_BTA))


jax.tree_util.register_dataclass(Encoded, data_fields=["prefix", "state_BA", "key_BE"], meta_fields=[])
