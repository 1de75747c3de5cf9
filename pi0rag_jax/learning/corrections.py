"""From episodes to memory records: anchors of what worked, corrections of what did not, and what was tried in vain."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, Record
from pi0rag_jax.worlds.episode import Step, Trace


@dataclasses.dataclass(frozen=True)
class CorrectionConfig:
  """How failures become records. Counts are decisions; WORKSPACE.md says what the defaults were chosen by."""

  labels_before: int = 4  # of the failed episode's decisions that the expert labels, before the one to go back to
  labels_after: int = 60  # and from it on: where a lost policy ends up, it will end up again
  failed_chunks: int = 0  # kept from it on, for steering methods that keep away from what failed


@dataclasses.dataclass(frozen=True)
class RecordContext:
  """Where the records of an episode come from.

  `provenance` is what all of them say beside their own source and tick: the seed, and how the rewind was chosen, say.
  """

  task: str
  prompt: str
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  failure_kind: str = ""

  def record(self, step: Step, corrected_TA: np.ndarray, *, kind: str, outcome: str, source: str) -> Record:
    """Returns the record of one decision: its key, the policy's own chunk, and the one that `kind` says."""
    return Record(
        key=step.key_E, base_chunk=step.base_TA, corrected_chunk=corrected_TA, kind=kind, outcome=outcome,
        failure_kind=self.failure_kind, task=self.task, prompt=self.prompt,
        provenance={"source": source, **self.provenance, "tick": step.tick})


def anchors(trace: Trace, context: RecordContext) -> list[Record]:
  """Returns one record per decision of an episode that succeeded: what was executed there worked."""
  return [context.record(step, step.actions_TA, kind=ANCHOR, outcome="success", source="policy")
          for step in trace.steps]


def window(steps: Sequence[Step], rewind: int, config: CorrectionConfig) -> Sequence[Step]:
  """Returns the decisions of a failed episode that the expert labels, around the one to go back to."""
  return steps[max(0, rewind - config.labels_before) : rewind + config.labels_after]


def relabelled(steps: Sequence[Step], expert_NTA: np.ndarray, context: RecordContext) -> list[Record]:
  """Returns the expert's chunks at a failed episode's own decisions."""
  return [context.record(step, chunk_TA, kind=CORRECTION, outcome="failure", source="expert")
          for step, chunk_TA in zip(steps, expert_NTA, strict=True)]


def takeover(trace: Trace, context: RecordContext) -> list[Record]:
  """Returns one record per decision of an expert's take-over: what the policy wanted and what was done."""
  return [context.record(step, step.actions_TA, kind=CORRECTION, outcome="success", source="expert")
          for step in trace.steps]


def retried(trace: Trace, context: RecordContext) -> list[Record]:
  """Returns one record per decision of an attempt that worked: what the policy wants, and what chance did better.

  Every decision had noise of its own, so the corrected chunk is what was executed, across the decisions.
  """
  return [context.record(step, executed_TA, kind=CORRECTION, outcome="success", source="retry")
          for step, executed_TA in zip(trace.steps, executed_chunks(trace.steps))]


def failed(steps: Sequence[Step], rewind: int, context: RecordContext, config: CorrectionConfig) -> list[Record]:
  """Returns what was executed in vain, from the decision to go back to on."""
  return [context.record(step, step.actions_TA, kind=FAILURE, outcome="failure", source="policy")
          for step in steps[rewind : rewind + config.failed_chunks]]


def executed_chunks(steps: Sequence[Step]) -> list[np.ndarray]:
  """Returns float32[T, A] for each decision: what was executed from there on; the last chunk is taken as a whole."""
  pieces = [step.actions_TA[: after.tick - step.tick] for step, after in itertools.pairwise(steps)]
  pieces += [step.actions_TA for step in steps[-1:]]
  horizon = len(steps[-1].actions_TA) if steps else 0
  return [np.concatenate(pieces[i:])[:horizon] for i in range(len(steps))]
