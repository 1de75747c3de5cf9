"""What every frozen policy is: from raw observations to a key and an action chunk, in the robot's units.

A decision is `prepare` on the host, then `encode` and `decode` on the device. Both are dispatched without waiting for
it, so that a caller can search its memory while the device works. `sample` is both in one program, without a key.

A letter beyond the project's key: `X` is the model's action dim.
"""

import abc
import concurrent.futures
import copy
import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.flow import Ode
from pi0rag_jax.policy import compiling
from pi0rag_jax.policy.realtime import Lead
from pi0rag_jax.policy.spec import NEW, PolicySpec, draw_seed
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.typing import Array, Params

PROMPT_BUCKET = 16  # tokens
# A policy's carry between decisions: () or arrays [B, ...], such as a head's window.
Carry = Any


@flax.struct.dataclass
class Encoded:
  """What one look at the world leaves on the device for the chunk, and the key for the memory."""

  context: Any  # of the policy's own kind
  state_BP: Array  # as the model sees it: normalized, padded
  key_BE: Array  # float32[B, E]


class Policy(abc.ABC):
  """A frozen policy. Batches are padded to powers of two: few executables, whatever the batch."""

  def __init__(self, spec: PolicySpec, robot: Robot, space: ActionSpace, params: Params, *, digest: Callable[[], str],
               key_name: str, key_dim: int, unit_distance: float | None, seed: int = 0):
    """Takes what all kinds have.

    Args:
      params: of all programs, on the device.
      digest: computes what tells these weights from others; runs in the background.
      key_name: the recipe of the keys, in words.
      key_dim: E.
      unit_distance: by which distances of keys are divided; None where nobody measured it.
      seed: of the draws where a caller gives none.
    """
    self.spec, self.robot, self.space, self.params = spec, robot, space, params
    self.key_name, self.key_dim, self.unit_distance = key_name, key_dim, unit_distance
    # Hashing gigabytes takes seconds, and only a memory needs the digest.
    self._digest = _in_background(digest)
    self._rng = jax.random.key(seed)
    seed_of_start = draw_seed(spec.start)
    self._fixed_TX = None if seed_of_start is None else np.asarray(
      np.random.default_rng(seed_of_start).standard_normal(self.noise_shape), np.float32)
    self._own_starts: dict[int, Array] = {}  # on the device, by batch
    self._encode, self._decode = self.compiled(self.encode_fn), self.compiled(self.decode_fn)
    self._sample, self._go_on = self.compiled(self.sample_fn), self.compiled(self.go_on_fn)

  def executing(self, count: int) -> "Policy":
    """Returns this policy at another pace, see PolicySpec.executing; parameters and programs are shared."""
    other = copy.copy(self)
    other.spec = self.spec.executing(count)
    return other

  @property
  def fingerprint(self) -> str:
    """The policy's name and a short hash of its weights: of another policy a memory has other keys and residuals."""
    return f"{self.spec.name}-{self._digest.result()}"

  @property
  def chunk_shape(self) -> tuple[int, int]:
    """(T, A) of the robot's chunk."""
    return self.spec.horizon, self.space.dim

  @property
  @abc.abstractmethod
  def noise_shape(self) -> tuple[int, ...]:
    """(T, X): one sample of noise; () where a chunk starts from none."""

  @property
  def has_flow(self) -> bool:
    """Whether a chunk comes of an ODE, which rules may lead elsewhere while it runs."""
    return False

  def memory_header(self) -> dict[str, Any]:
    """Returns what a memory of this policy must say, as arguments of `Memory.open`."""
    horizon, action_dim = self.chunk_shape
    return {"key_dim": self.key_dim, "action_horizon": horizon, "action_dim": action_dim, "encoder": self.key_name,
            "policy": self.fingerprint, "start": self.spec.start, "actions": self.space.fingerprint}

  @abc.abstractmethod
  def model_input(self, raw: Mapping) -> dict:
    """Returns the model's entries of a robot's dictionary, one sample: `image`, `state`, `tokenized_prompt`, ...

    Errors: Pi0RagError when an entry is missing or not of the robot's shape or range, with what is allowed.
    """

  @abc.abstractmethod
  def batch(self, samples: Sequence[Mapping]) -> dict:
    """Returns the arrays of samples that `model_input` made, one after the other, as `encode` takes them."""

  def prepare(self, raws: Sequence[Mapping]) -> dict:
    """Returns the model's inputs of a batch of raw observations, padded to a power of two (host).

    Prompts and cameras of the rows may differ.
    """
    samples = [self.model_input(raw) for raw in raws]
    return self.batch(samples + samples[-1:] * (padded_size(len(samples)) - len(samples)))

  def start(self, rows: int) -> Carry:
    """Returns what is carried before the first decision of `rows` episodes (a power of two, as batches are)."""
    del rows
    return ()

  def restart(self, carry: Carry, rows_B) -> Carry:
    """Returns a carry in which the episodes where bool[B] `rows_B` is set begin anew; the others go on."""
    del rows_B
    return carry

  def encode(self, carry: Carry, inputs: dict) -> tuple[Carry, Encoded]:
    """Returns (the next carry, the encoded observations) of a batch (asynchronous)."""
    return self._encode(carry, inputs)

  def decode(self, encoded: Encoded, noise_BTX=None) -> Array:
    """Returns the policy's own chunk float32[B', T, A] in the robot's units (asynchronous, B' padded).

    Args:
      noise_BTX: float[B, T, X], where the flow starts; None is the start of the spec.
    """
    return self._decode(encoded, self.start_of_flow(len(encoded.key_BE), noise_BTX))

  def go_on(self, encoded: Encoded, lead: Lead, noise_BTX=None) -> Array:
    """Returns the policy's own chunk float32[B', T, A] that goes on from another one (asynchronous, B' padded).

    The ticks of weight 1 are that chunk's own.

    Args:
      lead: of the batch, or its padded rows.
      noise_BTX: as in `decode`.
    Errors: Pi0RagError for a policy without a flow, or one whose units only the host can convert.
    """
    rows = len(encoded.key_BE)
    return self._go_on(encoded, self.start_of_flow(rows, noise_BTX), lead.padded(rows))

  def go_on_fn(self, params: Params, encoded: Encoded, start_BTX, lead: Lead) -> Array:
    """Returns as `go_on`; pure."""
    del params, encoded, start_BTX, lead
    raise Pi0RagError(f"real-time chunking leads a flow elsewhere, which a {self.spec.family} policy has none of")

  def sample(self, carry: Carry, inputs: dict, noise_BTX=None) -> tuple[Carry, Array]:
    """Returns (the next carry, the policy's own chunk) by one program (asynchronous); see `decode`."""
    return self._sample(carry, inputs, self.start_of_flow(len(inputs["state"]), noise_BTX))

  def examples(self, raw: Mapping, *, all_prompts: bool = False) -> list[dict]:
    """Returns inputs of one row that cover what `encode` may be asked: this observation's, and other prompt lengths'.
    """
    sample = self.model_input(raw)
    if not all_prompts or "tokenized_prompt_mask" not in sample:
      return [self.batch([sample])]
    longest = len(sample["tokenized_prompt_mask"])
    lengths = range(PROMPT_BUCKET, longest + PROMPT_BUCKET, PROMPT_BUCKET)
    masks = (sample["tokenized_prompt_mask"], *(np.arange(longest) < length for length in lengths))
    return [self.batch([{**sample, "tokenized_prompt_mask": mask_L}]) for mask_L in masks]

  def in_one(self, query: Callable, steer: Callable, *, runs_again: bool) -> Callable:
    """Returns the compiled function (carry, inputs, start, trust) -> (next carry, outputs) of a whole decision.

    Args:
      query: keys float[B, E] to neighbours, by a callback.
      steer: (own chunks, neighbours, flow=, trust_B=) to actions, neighbours used and their weights.
      runs_again: whether `steer` takes the flow.
    """

    def decide(params, carry, inputs, start_BTX, trust_B):
      carry, encoded = self.encode_fn(params, carry, inputs)
      neighbours = dict(query(encoded.key_BE))
      ids_BK, distance_BK, kind_BK = neighbours.pop("ids_BK"), neighbours["distance_BK"], neighbours["kind_BK"]
      base_BTA = self.decode_fn(params, encoded, start_BTX)
      flow = self.flow_fn(params, encoded, start_BTX) if runs_again else None
      actions_BTA, used_B, weight_BK = steer(base_BTA, neighbours, flow=flow, trust_B=trust_B)
      return carry, (actions_BTA, base_BTA, encoded.key_BE, used_B, ids_BK, weight_BK, distance_BK, kind_BK)

    return self.compiled(decide)

  def compiled(self, function: Callable) -> Callable:
    """Returns the compiled function of (*inputs) that `function` is of (the policy's params, *inputs)."""
    return compiling.bound(function, self.params)

  def start_of_flow(self, batch: int, noise_BTX=None):
    """Returns where chunks start, float32[batch, T, X]: the given noise, and behind or without it the spec's start.

    Errors: Pi0RagError for noise of another shape, or for a policy that starts from none.
    """
    if not self.noise_shape and noise_BTX is not None:
      raise Pi0RagError(f"policy '{self.spec.name}' ({self.spec.family}) starts from no noise: leave `noise` out")
    if noise_BTX is None:
      return self._draw((batch, *self.noise_shape)) if self.spec.start == NEW else self._own_start(batch)
    start_BTX = np.zeros((batch, *self.noise_shape), np.float32)
    if self._fixed_TX is not None:
      start_BTX[:] = self._fixed_TX
    noise_BTX = np.asarray(noise_BTX)
    if noise_BTX.shape[1:] != self.noise_shape or len(noise_BTX) > batch:
      raise Pi0RagError(f"noise has shape {noise_BTX.shape}; allowed: {(batch, *self.noise_shape)}, one row per "
                        "action step")
    if noise_BTX.dtype.kind not in "fiu" or not np.isfinite(noise_BTX).all():
      raise Pi0RagError(f"noise of type {noise_BTX.dtype} has NaN or infinity, or no numbers; allowed: finite ones")
    start_BTX[: len(noise_BTX)] = noise_BTX
    return start_BTX

  def _own_start(self, batch: int) -> Array:
    """Returns the spec's start float32[batch, T, X], which stays on the device."""
    if batch not in self._own_starts:
      start_BTX = np.zeros((batch, *self.noise_shape), np.float32)
      if self._fixed_TX is not None:
        start_BTX[:] = self._fixed_TX
      self._own_starts[batch] = jax.device_put(start_BTX)  # uncommitted, as arrays of the host
    return self._own_starts[batch]

  def _draw(self, shape: tuple[int, ...]):
    self._rng, noise, _ = _draw(self._rng, shape)
    return noise

  @abc.abstractmethod
  def encode_fn(self, params: Params, carry: Carry, inputs: dict) -> tuple[Carry, Encoded]:
    """As `encode`; pure, for callers that compile more than one of these into one program."""

  @abc.abstractmethod
  def decode_fn(self, params: Params, encoded: Encoded, start_BTX) -> Array:
    """As `decode` from a start; pure."""

  def sample_fn(self, params: Params, carry: Carry, inputs: dict, start_BTX) -> tuple[Carry, Array]:
    """As `sample` from a start; pure."""
    carry, encoded = self.encode_fn(params, carry, inputs)
    return carry, self.decode_fn(params, encoded, start_BTX)

  def flow_fn(self, params: Params, encoded: Encoded, start_BTX) -> Ode:
    """Returns the ODE whose end `decode` is, for rules that lead it elsewhere; pure."""
    raise Pi0RagError(f"a {self.spec.family} policy has no flow")

  def invert_fn(self, params: Params, encoded: Encoded, chunk_BTA, *, iterations: int) -> Array:
    """Returns the noise float32[B, T, X] of which `decode` makes a chunk in the robot's units; pure.

    Args:
      iterations: see `models.flow.invert`.
    """
    raise Pi0RagError(f"a {self.spec.family} policy has no flow")


def padded_size(batch: int) -> int:
  """Returns the power of two that a batch is padded to."""
  return 1 << max(batch - 1, 0).bit_length()


def params_digest(params: Params) -> str:
  """Returns a short hash of parameters and their names."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()[:16]


def stacked(samples: Sequence[Mapping]) -> dict:
  """Returns the arrays of samples with the same keys, one after the other; doubles become float32, as in jax."""
  if len(samples) == 1:
    return _alone(samples[0])
  return jax.tree.map(lambda *arrays: _single(np.stack(arrays)), *map(dict, samples))


def _alone(sample: Mapping) -> dict:
  """Returns a batch of one sample; `jax.tree.map` would take three times as long."""
  return {name: _alone(value) if isinstance(value, Mapping) else _single(np.asarray(value)[None])
          for name, value in sample.items()}


def _single(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float32) if array.dtype == np.float64 else array


@functools.partial(jax.jit, static_argnames="shape")
def _draw(rng, shape: tuple[int, ...]):
  """Returns the key of the next draw, noise float32[*shape] and the key that it was drawn with."""
  rng, own = jax.random.split(rng)
  return rng, jax.random.normal(own, shape), own


def _in_background(function: Callable) -> concurrent.futures.Future:
  """Returns the future result of a function, on a thread that no process waits for at its end."""
  future: concurrent.futures.Future = concurrent.futures.Future()

  def run():
    try:
      future.set_result(function())
    except BaseException as error:  # for whoever asks
      future.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return future
