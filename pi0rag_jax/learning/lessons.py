"""From episodes to memory records: anchors of what worked, corrections of what did not, and what was tried in vain."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.data.validation import HUMAN, POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, Record
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step, Trace

# What people drive a robot to beyond its limits, in shares of an action entry's range; other units are far beyond.
_BEYOND_LIMITS = 0.1
_ROUNDING = 1e-6  # of a gesture, which comes as text: likewise


@dataclasses.dataclass(frozen=True)
class CorrectionConfig:
  """How failures become records. Counts are decisions; docs/notebook.md says what the defaults were chosen by."""

  labels_before: int = 4  # of a failed episode's decisions that an expert's plans label, before the one to go back to
  labels_after: int = 60  # and from it on: where a lost policy ends up, it will end up again
  path_before: int = 3  # decisions before a take-over that learn the way to its path, less the policy's detour
  # Of those, or of more, the last that whoever took over labels afterwards, with what should have been done from there:
  # `Step.label_TA`, which a simulator's expert can always tell.
  labelled: int = 0
  anchors_between: bool = True  # what the policy did right in an episode that was helped is kept too
  # Of a failed episode from that decision on, its last ones where nobody helped, or those before each take-over: for
  # steering that keeps away from what failed.
  failed_chunks: int = 0

  def __post_init__(self):
    for name in ("labels_before", "labels_after", "path_before", "labelled", "failed_chunks"):
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
        failure_kind=self.failure_kind, task=self.task, prompt=step.prompt or self.prompt,
        provenance={"source": source, **self.provenance, "tick": step.tick})


def of_episode(trace: Trace, space: ActionSpace, context: RecordContext, config: CorrectionConfig) -> list[Record]:
  """Returns what an episode teaches in which nobody went back in time: a success, or one in which somebody helped.

  A helper that fails teaches nothing; where the policy acted at the end, the failure is its own.
  """
  succeeded = trace.outcome == "success"
  if not trace.helped:
    return anchors(trace, context) if succeeded else []
  if not (succeeded or trace.steps[-1].by == POLICY):
    return []
  return shared(trace, space, context, config) + failed_before(trace, context, config)


def outcomes(trace: Trace, *, broken: bool | None = None) -> list:
  """Returns, as Memory.add takes it, how an episode ended in which the memory had a say; helped is not succeeded.

  Args:
    broken: whether the policy alone does it, where that is known: records are not to blame for what fails without them.
  """
  steps = [step for step in trace.steps if step.by == POLICY]
  if trace.job.trust == 0 or not steps:
    return []
  ids, says = (np.stack([getattr(step, name) for step in steps]) for name in ("ids_K", "weight_K"))
  succeeded = trace.outcome == "success" and not trace.helped
  return [(ids, says, succeeded if broken is None else not broken)]


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


def shared(trace: Trace, space: ActionSpace, context: RecordContext, config: CorrectionConfig) -> list[Record]:
  """Returns the records of an episode in which somebody helped, as a robot's log tells of it.

  At each decision that was not the policy's: what was done from there on. At the last ones before: the way to the same
  path without the policy's detour. Once the policy acts again its own plan goes on, displaced as it is by then. At the
  policy's other decisions of an episode that succeeded: what it did, which was let pass.
  """
  steps = trace.steps
  first = steps[0].tick  # of recordings, not always the episode's first
  ticks_N = np.array([step.tick for step in steps]) - first
  horizon = len(steps[-1].actions_TA)
  helped_N = np.array([step.by != POLICY for step in steps])
  end = trace.ticks - first + horizon  # then nothing moves
  starts_N, ends_N = stretches(helped_N, ticks_N, end, max(config.path_before, config.labelled))
  may_N = ~helped_N & (stretches(helped_N, ticks_N, end, config.labelled)[0] >= 0)
  labels: dict[int, np.ndarray] = {row: step.label_TA for row, step in enumerate(steps)
                                   if may_N[row] and step.label_TA is not None}
  starts_N[[row not in labels for row in range(len(steps))]
           & (stretches(helped_N, ticks_N, end, config.path_before)[0] < 0)] = -1
  taught = np.flatnonzero(starts_N >= 0)
  base_NTA = np.stack([steps[row].base_TA for row in taught])
  corrected_NTA = shortened_chunks(trace.executed(), ticks_N[taught], starts_N[taught], horizon, space)
  corrected_NTA = displaced_after(corrected_NTA, base_NTA, (ends_N - starts_N)[taught], space)
  for place, row in enumerate(taught.tolist()):
    if row in labels:
      corrected_NTA[place] = labels[row]
  # Before a take-over it is who takes over that teaches.
  helpers = {row: next(step.by for step in steps[row:] if step.by != POLICY) for row in taught}
  records = []
  for row, chunk_TA in zip(taught, corrected_NTA):
    outcome = "success" if steps[row].by != POLICY else "failure"
    records.append(context.record(steps[row], chunk_TA, kind=CORRECTION, outcome=outcome, source=helpers[row]))
  if config.anchors_between and trace.outcome == "success":
    records += [context.record(step, step.actions_TA, kind=ANCHOR, outcome="success", source=POLICY)
                for step, start in zip(steps, starts_N) if start < 0]
  return records


def stretches(helped_N: np.ndarray, ticks_N: np.ndarray, end: int, before: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (starts_N, ends_N), int: the ticks at which the better path of each decision begins and ends, else -1.

  For a decision of a helper from its own tick on, for the last `before` of the policy's from that of the take-over.

  Args:
    end: of a stretch that lasts to the episode's end.
  """
  starts_N, ends_N = np.full((2, len(helped_N)), -1)
  edges = np.diff(helped_N.astype(int), prepend=0, append=0)
  for first, after in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)):
    last_before = np.flatnonzero(helped_N[:first])
    begin = max(first - before, last_before[-1] + 1 if len(last_before) else 0)
    starts_N[begin:first], starts_N[first:after] = ticks_N[first], ticks_N[first:after]
    ends_N[begin:after] = ticks_N[after] if after < len(ticks_N) else end
  return starts_N, ends_N


def displaced_after(chunks_NTA: np.ndarray, base_NTA: np.ndarray, known_N: np.ndarray, space: ActionSpace
                    ) -> np.ndarray:
  """Returns chunks of which only the first `known_N` ticks are known: then the base path goes on, displaced."""
  tick_T = np.arange(chunks_NTA.shape[1])
  path_NTA, base_path_NTA = paths.to_path(chunks_NTA, space), paths.to_path(base_NTA.astype(np.float32), space)
  last_N = np.minimum(known_N, chunks_NTA.shape[1]) - 1
  away_NA = (path_NTA - base_path_NTA)[np.arange(len(last_N)), last_N]
  on_NTA = np.asarray(paths.from_path(base_path_NTA + away_NA[:, None], space))
  return np.where((tick_T < known_N[:, None])[..., None], chunks_NTA, on_NTA)


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


def failed_before(trace: Trace, context: RecordContext, config: CorrectionConfig) -> list[Record]:
  """Returns what was executed in vain, at the last decisions before each take-over."""
  helped_N = np.array([step.by != POLICY for step in trace.steps])
  starts_N, _ = stretches(helped_N, np.arange(len(helped_N)), len(helped_N), config.failed_chunks)
  return [context.record(step, step.actions_TA, kind=FAILURE, outcome="failure", source=POLICY)
          for step, start in zip(trace.steps, starts_N) if start >= 0 and step.by == POLICY]


def afterwards(step: Step, chunk_TA: np.ndarray, context: RecordContext) -> Record:
  """Returns the record of a decision of the policy's at which a person says later what should have been done."""
  context = dataclasses.replace(context, provenance={**context.provenance, "labelled": "afterwards"})
  return context.record(step, chunk_TA, kind=CORRECTION, outcome="failure", source=HUMAN)


def straight(gesture_A: np.ndarray, space: ActionSpace, horizon: int) -> np.ndarray:
  """Returns float32[T, A]: the chunk that goes straight to where a gesture points.

  Args:
    gesture_A: in the robot's units, how far entries that integrate go within the chunk; the others are there at once.
  Errors: Pi0RagError for numbers that are not finite, or farther than the robot goes.
  """
  if gesture_A.shape != (space.dim,):
    raise Pi0RagError(f"a gesture has {space.dim} numbers, one for each entry of the action, got {gesture_A.size}")
  ticks_A = np.where(space.integrates, horizon, 1)
  low_A, high_A = ticks_A * np.array(space.low), ticks_A * np.array(space.high)
  slack_A = _ROUNDING * np.where(np.isfinite(high_A - low_A), high_A - low_A, 0.0)
  beyond_A = ~((gesture_A >= low_A - slack_A) & (gesture_A <= high_A + slack_A) & np.isfinite(gesture_A))
  if beyond_A.any():
    entry = int(beyond_A.argmax())
    raise Pi0RagError(f"entry {entry} of the gesture is {gesture_A[entry]:g}, allowed: {low_A[entry]:g} to "
                      f"{high_A[entry]:g}" + (f" in the {horizon} ticks of a chunk" if ticks_A[entry] > 1 else ""))
  return np.tile(np.clip(gesture_A / ticks_A, space.low, space.high), (horizon, 1)).astype(np.float32)


def executed_chunks(steps: Sequence[Step]) -> list[np.ndarray]:
  """Returns float32[T, A] for each decision: what was executed from there on; the last chunk is taken as a whole."""
  pieces = [step.actions_TA[: after.tick - step.tick] for step, after in itertools.pairwise(steps)]
  pieces += [step.actions_TA for step in steps[-1:]]
  horizon = len(steps[-1].actions_TA) if steps else 0
  return [np.concatenate(pieces[i:])[:horizon] for i in range(len(steps))]


def check_limits(actions_FA: np.ndarray, space: ActionSpace, name: str) -> None:
  """Raises Pi0RagError where actions are beyond what the robot takes: they are in other units, or absolute."""
  if actions_FA.shape[-1] != space.dim:
    raise Pi0RagError(f"{name} has {actions_FA.shape[-1]} numbers of action, the policy's robot has {space.dim}")
  low_A, high_A = np.array(space.low), np.array(space.high)
  limited_A = np.isfinite(low_A) & np.isfinite(high_A)
  slack_A = _BEYOND_LIMITS * np.subtract(high_A, low_A, out=np.zeros(space.dim), where=limited_A)
  beyond_FA = (actions_FA < low_A - slack_A) | (actions_FA > high_A + slack_A) | ~np.isfinite(actions_FA)
  if beyond_FA.any():
    frame, entry = np.argwhere(beyond_FA)[0].tolist()
    raise Pi0RagError(f"{name}: entry {entry} of the action at frame {frame} is {actions_FA[frame, entry]:g}, the "
                      f"policy's robot takes {low_A[entry]:g} to {high_A[entry]:g}: convert the actions to its units")
