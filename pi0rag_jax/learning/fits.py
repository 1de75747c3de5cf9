"""What rules need that are fitted to a memory: the noise that the flow comes to its records from, and networks.

Sources: FlowDAgger (arXiv 2607.08877) for the noise and its network, and for Residual-DAgger, with which it compares.
Both papers' networks are trained while the stream runs; here one is trained once on what the stream taught, with as
many steps.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Record
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.steering import networks, paths, targets
from pi0rag_jax.worlds.replay import Executed

# Evaluations of the velocity for each step of the flow: FlowDAgger's `fp_per_step`.
ITERATIONS = 5
# Records that a rule is fitted to: what was better, and what worked.
KINDS = (CORRECTION, ANCHOR)
ROWS = 8  # of a batch: one program for all
# Of a key that was made again, in units of the median distance between demonstrations' keys: pictures and half
# precision differ by less, other moments by more.
SAME_KEY = 0.05
_LEAST_LENGTH = 1e-6


@dataclasses.dataclass(frozen=True)
class Inverted:
  """The noise that the flow comes to a record's better chunk from."""

  noise_TX: np.ndarray  # float32, less where the policy's own flow starts
  error: float  # root mean square of the chunk that the flow makes of it less the record's, in spreads of the actions


def identity(record: Record) -> str:
  """Returns what tells a record from all others, also of other streams."""
  origin = record.provenance
  return f"{record.task}/{origin.get('condition')}/{origin.get('seed')}/{origin.get('tick')}/{record.kind}"


def invert(policy: Policy, records: Sequence[Record], seen: Iterable[tuple[Executed, list[Mapping[str, Any]]]]
           ) -> dict[str, Inverted]:
  """Returns the noise of records by their identity.

  Args:
    records: of episodes that nobody took back in time.
    seen: their episodes, with what the robot saw at each decision.
  Errors: Pi0RagError where an episode does not look as it did when its records were made.
  """
  by_moment: dict[tuple[int, int], list[Record]] = {}
  for record in records:
    by_moment.setdefault((int(record.provenance["seed"]), int(record.provenance["tick"])), []).append(record)
  inverter = _Inverter(policy)
  found: dict[str, Inverted] = {}
  for episode, observations in seen:
    moments = [(raw, record) for tick, raw in zip(episode.ticks_N.tolist(), observations)
               for record in by_moment.get((episode.seed, tick), ())]
    for first in range(0, len(moments), ROWS):
      found |= inverter(moments[first : first + ROWS])
  return found


class _Inverter:
  """The compiled programs of a policy."""

  def __init__(self, policy: Policy):
    self._policy = policy
    self._invert = policy.compiled(functools.partial(policy.invert_fn, iterations=ITERATIONS))
    self._to_model = policy.compiled(
      lambda params, encoded, start_BTX, chunk_BTA: policy.flow_fn(params, encoded, start_BTX).to_model(chunk_BTA))

  def __call__(self, moments: Sequence[tuple[Mapping, Record]]) -> dict[str, Inverted]:
    padded = [*moments, *[moments[-1]] * (ROWS - len(moments))]
    policy, records = self._policy, [record for _, record in padded]
    _, encoded = policy.encode(policy.start(ROWS), policy.prepare([raw for raw, _ in padded]))
    self._require_same(np.asarray(encoded.key_BE), records)
    start_BTX = policy.start_of_flow(ROWS)
    chunk_BTA = np.stack([record.corrected_chunk for record in records])
    limit = targets.NOISE_LIMIT
    away_BTX = np.nan_to_num(np.asarray(self._invert(encoded, chunk_BTA)) - start_BTX, posinf=limit, neginf=-limit)
    away_BTX = np.clip(away_BTX, -limit, limit).astype(np.float32)
    made_BTA = policy.decode(encoded, start_BTX + away_BTX)
    apart_BTX = np.asarray(self._to_model(encoded, start_BTX, made_BTA) - self._to_model(encoded, start_BTX, chunk_BTA))
    error_B = np.sqrt(np.square(apart_BTX[..., : policy.space.dim]).mean(axis=(1, 2)))
    return {identity(record): Inverted(noise_TX, float(error)) for record, noise_TX, error
            in zip(records[: len(moments)], away_BTX, error_B)}

  def _require_same(self, key_BE: np.ndarray, records: Sequence[Record]) -> None:
    apart_B = np.linalg.norm(key_BE - np.stack([record.key for record in records]), axis=1)
    unit = self._policy.unit_distance or np.linalg.norm(key_BE, axis=1).mean()
    row = int(apart_B.argmax())
    if apart_B[row] > SAME_KEY * max(unit, _LEAST_LENGTH):
      raise Pi0RagError(f"what was seen at {identity(records[row])} has a key {apart_B[row] / unit:.2g} units from the "
                        "record's: the world does not come to the same moments again, and its noise cannot be found")


def noise_network(records: Sequence[Record], noise: Mapping[str, np.ndarray], *, episodes: int, seed: int
                  ) -> tuple[dict[str, np.ndarray], float]:
  """Returns (FlowDAgger's network from keys to noise, its mean squared error).

  Args:
    noise: of each record, by its identity.
    episodes: of the stream, each of which pays for a number of steps.
  """
  targets_NO = np.stack([noise[identity(record)].ravel() for record in records])
  return networks.fit(np.stack([record.key for record in records]), targets_NO, steps=_steps(episodes), seed=seed,
                      squash=targets.bounded_noise)


def residual_network(records: Sequence[Record], policy: Policy, *, episodes: int, seed: int
                     ) -> tuple[dict[str, np.ndarray], float]:
  """Returns (Residual-DAgger's network from keys and the policy's own chunks to residuals, its mean squared error)."""
  base_NTA = np.stack([record.base_chunk for record in records])
  corrected_NTA = np.stack([record.corrected_chunk for record in records])
  inputs_NI = targets.residual_inputs(np.stack([record.key for record in records]), base_NTA, policy.space)
  residual_NTA = paths.scaled(paths.to_path(corrected_NTA - base_NTA, policy.space), policy.space)
  return networks.fit(inputs_NI, residual_NTA.reshape(len(records), -1), steps=_steps(episodes), seed=seed)


def _steps(episodes: int) -> int:
  return networks.STEPS_PER_EPISODE * episodes
