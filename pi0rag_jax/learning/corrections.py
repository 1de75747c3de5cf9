"""From episodes to memory records: anchors of what worked, corrections of what did not, and what was tried in vain."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.errors import unknown_name
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, Record
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step, Trace

# What a take-over teaches: the expert's plans, at the failed episode's own states too, which takes a simulator, or what
# it did, as of a person.
PLANS, DEEDS = TAUGHT_BY = ("plans", "deeds")


@dataclasses.dataclass(frozen=True)
class CorrectionConfig:
  """How failures become records. Counts are decisions; WORKSPACE.md says what the defaults were chosen by."""

  taught_by: str = PLANS  # one of TAUGHT_BY
  labels_before: int = 4  # of the failed episode's decisions that plans label, before the one to go back to
  labels_after: int = 60  # and from it on: where a lost policy ends up, it will end up again
  path_before: int = 3  # decisions before a take-over that its deeds label, less the detour that the policy made
  failed_chunks: int = 0  # kept from it on, for steering methods that keep away from what failed

  def __post_init__(self):
    if self.taught_by not in TAUGHT_BY:
      raise unknown_name("teaching of corrections", self.taught_by, TAUGHT_BY)
    for name in ("labels_before", "labels_after", "path_before", "failed_chunks"):
      schema.check_range(getattr(self, name), 0, 10**6, f"corrections.{name}")


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


def deeds(steps: Sequence[Step], trace: Trace, space: ActionSpace, context: RecordContext, config: CorrectionConfig
          ) -> list[Record]:
  """Returns the records of a take-over as a robot's logs tell of it: what was done from each of its decisions on, and
  from the last decisions before it the same path without the policy's detour.

  Args:
    steps: of the failed episode, up to the take-over.
    trace: of the take-over, whose clock began anew.
  """
  pieces = [step.actions_TA[: after.tick - step.tick] for step, after in itertools.pairwise(trace.steps)]
  last = trace.steps[-1]
  done_FA = np.concatenate([*pieces, last.actions_TA[: trace.ticks - last.tick]])
  earlier = [step.actions_TA[: after.tick - step.tick] for step, after in itertools.pairwise(steps)]
  before, horizon = steps[:-1][-config.path_before :] if config.path_before else [], len(last.actions_TA)
  actions_FA, start = np.concatenate([*earlier, done_FA]), steps[-1].tick - steps[0].tick
  frames = [step.tick - steps[0].tick for step in before] + [start + step.tick for step in trace.steps]
  starts = [start] * len(before) + frames[len(before) :]
  corrected_NTA = shortened_chunks(actions_FA, np.array(frames), np.array(starts), horizon, space)
  return [context.record(step, chunk_TA, kind=CORRECTION, outcome="failure" if row < len(before) else "success",
                         source="expert")
          for row, (step, chunk_TA) in enumerate(zip([*before, *trace.steps], corrected_NTA, strict=True))]


def shortened_chunks(actions_FA: np.ndarray, frames: np.ndarray, starts: np.ndarray, horizon: int,
                     space: ActionSpace) -> np.ndarray:
  """Returns float32[N, T, A]: from each frame, the way to the path that was taken from its start on, and along it.

  For a frame that is its own start these are the recorded actions. Places are gone to as they are; of changes per tick
  the detour up to the start is added to the path. After the episode's end nothing moves any more.
  """
  integrates_A = np.array(space.integrates)
  still_A = np.where(integrates_A, 0.0, actions_FA[-1])
  actions_FA = np.concatenate([actions_FA, np.tile(still_A, (horizon, 1))]).astype(np.float32)
  chunks_NTA, _ = action_chunks(actions_FA, starts, horizon)
  detours_NA = np.zeros((len(frames), space.dim), np.float32)
  for row, (frame, start) in enumerate(zip(frames, starts)):
    detours_NA[row, integrates_A] = actions_FA[frame:start, integrates_A].sum(axis=0)
  path_NTA = paths.to_path(chunks_NTA, space) + detours_NA[:, None]
  shortened_NTA = np.asarray(paths.from_path(path_NTA, space))
  return np.where((frames == starts)[:, None, None], chunks_NTA, shortened_NTA)


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
