"""The policy that a robot runs: the frozen base policy, steered by its memory where the memory has a say."""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.memory import bridge
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import compiling
from pi0rag_jax.policy.policy import Policy, padded_size
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.retrieval import Retriever

FEEDING = ("overlap", "callback")
_BATCHED = ("actions_BTA", "base_BTA", "key_BE", "used_B", "ids_BK", "weight_BK")


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a policy decided for a batch of observations, as numpy arrays in the robot's units."""

  actions_BTA: np.ndarray  # to execute
  base_BTA: np.ndarray  # what the policy itself would have done from the same noise
  key_BE: np.ndarray
  used_B: np.ndarray  # neighbours that had a say; 0: the base action, bit for bit
  ids_BK: np.ndarray  # records retrieved, -1 where none
  weight_BK: np.ndarray  # how much of a say each had, from 0 to 1, as Memory.record_outcome takes it
  latency_ms: dict[str, float]  # by stage, of the whole batch
  missed_deadline: bool = False


class SteeredPolicy:
  """A base policy with or without a memory; both answer `infer` alike, so everything else treats them alike.

  Args:
    memory: None runs the base policy alone.
    feeding: 'overlap' searches on a host thread while the device denoises; 'callback' inside the jitted call.
    deadline_ms: a search (overlap only) that takes longer is given up and the base action is used; None waits.
  """

  def __init__(self, policy: Policy, memory: Memory | None = None,
               config: rules.SteeringConfig | None = None, *, feeding: str = "overlap",
               deadline_ms: float | None = None):
    if feeding not in FEEDING:
      raise errors.unknown_name("feeding", feeding, FEEDING)
    self.policy = policy
    self.memory = memory
    self._feeding = feeding
    if memory is None:
      return
    config = config or rules.preset("residual")
    layout = policy.spec.action_layout
    self._retriever = Retriever(memory, config, layout, unit_distance=policy.key_stats.unit_distance)
    self._runs_again = config.flow != rules.AFTER
    self._steer = functools.partial(rules.steer, config=config, layout=layout)
    self._steer_after = jax.jit(self._steer)
    self._steer_again = compiling.bound(self._traced_steer, policy.params)
    self._search = bridge.OverlapQuery(self._retriever, None if deadline_ms is None else deadline_ms / 1000)
    if feeding == "callback":
      self._query = bridge.callback_query(self._retriever)
      self._infer_in_one = compiling.bound(self._traced_infer, policy.params)

  def infer(self, observations: Sequence[dict], noise_BTA: np.ndarray | None = None, *,
            trust_B: np.ndarray | None = None) -> Prediction:
    """Returns the decision for a batch of raw observations.

    Args:
      observations: see Policy.encode.
      noise_BTA: see Policy.denoise; None is the deterministic z = 0.
      trust_B: float[B] in [0, 1], how much of the memory's change is made; 0 is the base policy, bit for bit. None is
        all of it.
    """
    batch = len(observations)
    clock = _Clock()
    padded_trust_B = np.ones(padded_size(batch), np.float32)
    if trust_B is not None:
      padded_trust_B[:batch] = trust_B
    if self.memory is not None and self._feeding == "callback":
      prediction = self._infer_callback(observations, noise_BTA, padded_trust_B, clock)
    else:
      prediction = self._infer_overlap(observations, noise_BTA, padded_trust_B, clock)
    arrays = {f: getattr(prediction, f)[:batch] for f in _BATCHED}
    clock.stop("total")
    return dataclasses.replace(prediction, **arrays, latency_ms=clock.stages_ms)

  def _infer_overlap(self, observations, noise_BTA, trust_B, clock: "_Clock") -> Prediction:
    encoded = self.policy.encode(observations)
    key_BE = np.asarray(encoded.key_BE)  # waits for the prefix
    clock.lap("prefix")
    pending = None if self.memory is None else self._search.submit(key_BE[: len(observations)])
    base_BTA = self.policy.denoise(encoded, noise_BTA)  # runs on while the host searches
    if pending is None:
      base_BTA.block_until_ready()
      clock.lap("denoise")
      unsteered_BTA, nobody_B = np.asarray(base_BTA), np.zeros(len(key_BE), int)
      nobody_BK = np.full((len(key_BE), 0), -1)
      return Prediction(unsteered_BTA, unsteered_BTA, key_BE, nobody_B, nobody_BK, nobody_BK.astype(np.float32), {})
    found = pending.result()
    clock.lap("retrieval")
    base_BTA.block_until_ready()
    clock.lap("denoise")
    padding = self._retriever.empty(len(key_BE) - len(observations))
    neighbours = jax.tree.map(lambda a, b: np.concatenate([a, b]), found, padding)
    if self._runs_again:
      start_BTA = self.policy.start_of_flow(len(key_BE), noise_BTA)
      steered = self._steer_again(encoded.prefix, encoded.state_BA, start_BTA, base_BTA, _without_ids(neighbours),
                                  trust_B)
    else:
      steered = self._steer_after(base_BTA, _without_ids(neighbours), trust_B=trust_B)
    actions_BTA, used_B, weight_BK = map(np.asarray, steered)  # waits for the device
    clock.lap("steer")
    return Prediction(actions_BTA, np.asarray(base_BTA), key_BE, used_B, neighbours["ids_BK"], weight_BK, {},
                      pending.missed)

  def _infer_callback(self, observations, noise_BTA, trust_B, clock: "_Clock") -> Prediction:
    inputs = self.policy.model_input(observations)
    start_BTA = self.policy.start_of_flow(len(trust_B), noise_BTA)
    outputs = jax.block_until_ready(self._infer_in_one(self.policy.key_params, inputs, start_BTA, trust_B))
    clock.lap("device")
    return Prediction(*map(np.asarray, outputs), latency_ms={})

  def _traced_infer(self, params, key_params, inputs, start_BTA, trust_B):
    encoded = self.policy.encode_fn(params, key_params, inputs)
    neighbours = self._query(encoded.key_BE)
    base_BTA = self.policy.denoise_fn(params, encoded.prefix, encoded.state_BA, start_BTA)
    actions_BTA, used_B, weight_BK = self._traced_steer(params, encoded.prefix, encoded.state_BA, start_BTA, base_BTA,
                                                        _without_ids(neighbours), trust_B)
    return actions_BTA, base_BTA, encoded.key_BE, used_B, neighbours["ids_BK"], weight_BK

  def _traced_steer(self, params, prefix, state_BA, start_BTA, base_BTA, neighbours, trust_B):
    flow = self.policy.flow_fn(params, prefix, state_BA, start_BTA)
    return self._steer(base_BTA, neighbours, flow=flow, trust_B=trust_B)

  @property
  def deadline_misses(self) -> int:
    """Decisions that had to do without a search that took too long."""
    return 0 if self.memory is None else self._search.deadline_misses

  def close(self) -> None:
    """Stops the search thread; the memory stays open, it is its owner's."""
    if self.memory is not None:
      self._search.close()


def _without_ids(neighbours: dict) -> dict:
  return {name: a for name, a in neighbours.items() if name != "ids_BK"}


class _Clock:
  """Wall-clock by stage of one decision, ms."""

  def __init__(self):
    self.stages_ms: dict[str, float] = {}
    self._start = self._last = time.perf_counter()

  def lap(self, stage: str) -> None:
    """Books the time since the last lap on a stage."""
    now = time.perf_counter()
    self.stages_ms[stage] = (now - self._last) * 1000
    self._last = now

  def stop(self, stage: str) -> None:
    self.stages_ms[stage] = (time.perf_counter() - self._start) * 1000
