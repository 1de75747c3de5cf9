"""A memory for new weights: its records asked again of the policy that was trained since, those that it knows left out.

A record's key and the policy's own chunk are worth nothing for other weights. Where the episode was kept
(`learning.kept`), the new policy sees what the old one saw; what was better there stays better.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import kept
from pi0rag_jax.memory import anew
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, Header, Record
from pi0rag_jax.memory.store import Batch
from pi0rag_jax.policy import directory, keys
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import NEW, ZERO
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths, rules
from pi0rag_jax.steering.agent import start_with

BELOW = 0.5  # mean path cost up to which a policy agrees with a record
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Migrated:
  """What became of a memory's records."""

  before: Mapping[str, int]  # by kind
  after: Mapping[str, int]
  not_kept: int  # of episodes that nobody kept: left out
  retired: int  # the new policy agrees with them
  disagreement_before: float  # mean path cost of corrections against the old policy's chunk, of those that were asked
  disagreement_after: float  # against the new one's


def migrate(memory_dir: str | os.PathLike, policy_name: str, folder: str | os.PathLike, out: str | os.PathLike, *,
            below: float = BELOW, checkpoint: str | None = None, key_name: str = "") -> Migrated:
  """Returns what became of the records of a memory, of which `out` is the one for another policy.

  Records on which the new policy agrees are retired. An anchor stays that a remaining correction could be drawn over.
  What the records helped and hurt was with other weights, and is not carried over.

  Args:
    policy_name, checkpoint, key_name: as `policy.directory.load` takes them.
    folder: of kept episodes.
    below: mean path cost up to which the policy agrees with a record.
  Errors: Pi0RagError for a policy of another robot, and when no record's episode was kept.
  """
  contents = anew.read(memory_dir)
  spec, _ = directory.describe(policy_name, checkpoint)
  start = start_with(memory_dir, spec) or (ZERO if spec.start == NEW else None)
  policy = directory.load(policy_name, checkpoint=checkpoint, start=start, key_name=key_name)
  header = Header(**policy.memory_header(), chunk_dtype=contents.header.chunk_dtype)
  if (header.chunk_shape, header.actions) != (contents.header.chunk_shape, contents.header.actions):
    raise Pi0RagError(f"the records of {memory_dir} are chunks {list(contents.header.chunk_shape)} of another action "
                      f"space than those of policy '{policy_name}', {list(header.chunk_shape)}")
  wanted: dict[str, set[int]] = {}
  for record in contents.records.values():
    if (moment := _moment(record)) is not None:
      wanted.setdefault(moment[0], set()).add(moment[1])
  seen = dict(_asked(policy, folder, wanted))
  batches = [Batch(batch.token, batch.ids, [_renewed(record, seen, contents.header) for record in batch.records
                                                 if _moment(record) in seen]) for batch in contents.batches()]
  asked = [record for batch in batches for record in batch.records]
  if not asked:
    raise Pi0RagError(f"no record of {memory_dir} comes of an episode in '{folder}': nothing can be asked again")
  stays = staying(asked, policy.space, policy.unit_distance, below)
  left = iter(stays)
  batches = [Batch(batch.token, batch.ids, [record for record in batch.records if next(left)])
             for batch in batches]
  anew.write(out, header, batches)
  old = [record for batch in contents.batches() for record in batch.records]
  new = [record for batch in batches for record in batch.records]
  was = [record for record in old if _moment(record) in seen]
  return Migrated(_by_kind(old), _by_kind(new), len(old) - len(asked), len(asked) - len(new),
                  _mean_disagreement(was, policy.space), _mean_disagreement(asked, policy.space))


def staying(records: Sequence[Record], space: ActionSpace, unit: float | None, below: float) -> np.ndarray:
  """Returns bool[M]: which records still say something to the policy whose chunks they hold.

  Args:
    unit: by which distances of keys are divided; None measures it on the records.
  """
  kinds_M = np.array([record.kind for record in records])
  stays_M = (disagreements(records, space) > below) | (kinds_M == FAILURE)
  corrections = np.flatnonzero((kinds_M == CORRECTION) & stays_M)
  if not len(corrections):
    return stays_M
  keys_ME = np.stack([record.key for record in records])
  if unit is None:
    episodes = np.unique([str(record.provenance.get("episode")) for record in records], return_inverse=True)[1]
    unit = keys.unit_distance(keys_ME, episodes) if episodes.max() else math.inf
  reach = rules.preset("residual").range * unit
  for row in np.flatnonzero((kinds_M == ANCHOR) & ~stays_M):
    stays_M[row] = np.linalg.norm(keys_ME[corrections] - keys_ME[row], axis=1).min() <= reach
  return stays_M


def disagreements(records: Sequence[Record], space: ActionSpace) -> np.ndarray:
  """Returns float[M], the mean path cost of what each record asks for against the policy's own chunk."""
  difference_MTA = np.stack([record.corrected_chunk.astype(np.float32) - record.base_chunk for record in records])
  return np.asarray(paths.disagreement(paths.to_path(difference_MTA, space), space))


def _moment(record: Record) -> tuple[str, int] | None:
  """Returns (episode, tick) of a record that came over the wire."""
  episode, tick = record.provenance.get("episode"), record.provenance.get("tick")
  return (episode, tick) if isinstance(episode, str) and isinstance(tick, int) else None


def _asked(policy: Policy, folder, wanted: Mapping[str, set[int]]
           ) -> Iterator[tuple[tuple[str, int], tuple[np.ndarray, np.ndarray]]]:
  """Yields ((episode, tick), (key [E], the policy's own chunk [T, A])) of the moments that were kept."""
  for episode in kept.read(folder):
    decided = [decision.tick for decision in episode.facts.decisions]
    ticks = [tick for tick in decided if tick in wanted.get(episode.facts.episode, ())]
    if not ticks:
      continue
    yield from (((episode.facts.episode, tick), (key_E, base_TA))
                for tick, key_E, base_TA in kept.asked_again(policy, episode, ticks, batch=BATCH))


def _renewed(record: Record, seen: Mapping, header: Header) -> Record:
  key_E, base_TA = seen[_moment(record)]
  return dataclasses.replace(record, key=key_E, base_chunk=base_TA, helped=0.0, hurt=0.0, episode=0,
                             provenance={**record.provenance, "migrated_from": header.policy})


def _by_kind(records: Sequence[Record]) -> dict[str, int]:
  return {kind: sum(record.kind == kind for record in records) for kind in (CORRECTION, ANCHOR, FAILURE)}


def _mean_disagreement(records: Sequence[Record], space: ActionSpace) -> float:
  corrections = [record for record in records if record.kind == CORRECTION]
  return float(disagreements(corrections, space).mean()) if corrections else 0.0
