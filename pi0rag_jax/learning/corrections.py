"""From episodes to memory records: anchors of what worked, corrections of what did not."""

import dataclasses

import numpy as np

from pi0rag_jax.learning.trace import Step, Trace
from pi0rag_jax.memory.record import Record
from pi0rag_jax.policy import paths
from pi0rag_jax.policy.spec import ActionLayout


@dataclasses.dataclass(frozen=True)
class CorrectionConfig:
  """How failures become corrections. Defaults from the project's learning notes."""

  divergence_cost: float = 1.5  # mean path cost (about cm) from which policy and expert disagree
  persistence: int = 2  # decisions in a row that must disagree
  labels_before: int = 3  # of the failed episode's decisions that the expert labels, before the divergence
  labels_after: int = 2


def divergence(steps: list[Step], expert_NTA: np.ndarray, layout: ActionLayout, config: CorrectionConfig,
               *, band: int) -> int:
  """Returns the index of the first decision from which the executed chunks disagree with the expert's.

  The largest disagreement, when none persists.
  """
  executed_NTA = np.stack([step.actions_TA for step in steps])
  residual_NTA = paths.aligned_residual(executed_NTA, expert_NTA, layout, band=band)
  cost_N = paths.disagreement(residual_NTA, layout)
  over_N = cost_N > config.divergence_cost
  for i in range(len(steps) - config.persistence + 1):
    if over_N[i : i + config.persistence].all():
      return i
  return int(cost_N.argmax())


def anchors(trace: Trace, context: "RecordContext") -> list[Record]:
  """Returns one record per decision of an episode that succeeded: what was executed there worked."""
  return [context.record(step, step.actions_TA, kind="anchor", outcome="success", source="policy")
          for step in trace.steps]


def relabelled(trace: Trace, expert_NTA: np.ndarray, diverged: int, context: "RecordContext",
               config: CorrectionConfig, failure_kind: str) -> list[Record]:
  """Returns the expert's chunks at the failed episode's own decisions around the divergence."""
  first, last = max(0, diverged - config.labels_before), diverged + config.labels_after
  return [context.record(step, chunk_TA, kind="correction", outcome="failure", source="expert",
                         failure_kind=failure_kind)
          for step, chunk_TA in zip(trace.steps[first:last], expert_NTA[first:last])]


def takeover(trace: Trace, context: "RecordContext", failure_kind: str) -> list[Record]:
  """Returns one record per decision of an expert's take-over: what the policy wanted and what was done."""
  return [context.record(step, step.actions_TA, kind="correction", outcome="success", source="expert",
                         failure_kind=failure_kind)
          for step in trace.steps]


@dataclasses.dataclass(frozen=True)
class RecordContext:
  """Where the records of an episode come from."""

  task: str
  prompt: str
  condition: str
  seed: int

  def record(self, step: Step, corrected_TA: np.ndarray, *, kind: str, outcome: str, source: str,
             failure_kind: str = "") -> Record:
    """Returns the record of one decision: its key, the policy's own chunk, and the better one."""
    return Record(
        key=step.key_E, base_chunk=step.base_TA, corrected_chunk=corrected_TA, kind=kind, outcome=outcome,
        failure_kind=failure_kind, task=self.task, prompt=self.prompt,
        provenance={"source": source, "condition": self.condition, "seed": self.seed, "tick": step.tick})
