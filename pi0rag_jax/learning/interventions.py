"""Human interventions as memory records: `python -m pi0rag_jax.learning.interventions --data=DIR --memory=DIR`.

An episode carries a flag per frame that says where a person had taken over, in any format that `data` reads, or who
acted, as `EpisodeWriter` records it. At the frames of an intervention the policy, whichever it is, is asked for its key
and its own chunk; what the person did from there on is the better one. Shortly before it, the same path without the
detour that the policy made is.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from pi0rag_jax import cli, schema
from pi0rag_jax.data import columns
from pi0rag_jax.data.dataset import Dataset, EpisodeData, Fields
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.data.validation import ACTORS, BY, HUMAN, POLICY, TEACHERS
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning import lessons
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.memory import address
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy, padded_size
from pi0rag_jax.policy.spec import NEW, ZERO
from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.steering.agent import start_with
from pi0rag_jax.worlds.episode import Job, Step, Trace

COMMAND = "learning.interventions"
FLAG = "intervention"
# Where it is a column, the policy looked only at the frames at which it is not 0.
OBSERVED = "observed"
# What makes a robot's dictionary of a data set's sample.
ToRobot = Callable[[Mapping[str, Any]], dict]


@dataclasses.dataclass(frozen=True)
class InterventionConfig:
  """Which frames become records."""

  flag: str = FLAG  # stored field, see `intervened`
  stride: int = 1  # frames between two records of an intervention
  before: int = 3  # records of each intervention that lie before it,
  before_stride: int = 4  # with so many frames between them
  batch: int = 32  # frames that the policy sees at once


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of a data set."""

  episodes: int = 0
  interventions: int = 0
  records: int = 0


def learn(memory: Memory, policy: Policy, dataset: Dataset, config: InterventionConfig = InterventionConfig(), *,
          to_robot: ToRobot = dict, task: str = "", failure_kind: str = "") -> Counts:
  """Returns what was learned from a data set; each episode is durable as a whole, and a second call adds nothing.

  Args:
    to_robot: makes the robot's dictionary of a sample: `image`, `state`, `actions` and `prompt` of one frame. By
      default the robot has these entries itself.
  Errors: Pi0RagError for a data set that does not fit the policy, or has no such flag; damaged episodes raise or are
    left out as the data set was opened.
  """
  counts = Counts()
  for episode, data in dataset.iterate():
    name = dataset.episode_name(episode)
    flag_F = intervened(data, config.flag, name)
    recorded = OBSERVED in data.extras  # by a server: all of the policy's decisions are known
    looked_F = np.asarray(data.extras[OBSERVED]).reshape(-1) != 0 if recorded else np.ones(len(data), bool)
    frames = np.arange(len(data)) if recorded else chosen_frames(flag_F, config)
    frames, records = frames[looked_F[frames]], []
    if len(frames):
      seen = Seen(dataset, episode, data, to_robot)
      actions_FA = own_units(seen, policy.robot, name)
      lessons.check_limits(actions_FA, policy.space, name)
      trace = _trace(policy, seen, frames, _actors(data, flag_F), actions_FA, config.batch)
      context = RecordContext(task, "", {"data": str(dataset.path), "episode": episode}, failure_kind)
      records = lessons.of_episode(trace, policy.space, context, CorrectionConfig(
        path_before=config.before, anchors_between=recorded))
      records = [dataclasses.replace(record, prompt=data.prompts[record.provenance["tick"]]) for record in records]
    if records:
      memory.add(records, token=f"{COMMAND} {dataset.fingerprint()} {config} {episode}")
    interventions = int((np.diff(flag_F.astype(int), prepend=0) == 1).sum())
    counts = Counts(counts.episodes + 1, counts.interventions + interventions, counts.records + len(records))
  if not counts.interventions:
    raise Pi0RagError(f"'{dataset.path}' has no frame in which '{config.flag}' is set, or '{BY}' is "
                      f"{' or '.join(TEACHERS)}, in {counts.episodes} episodes")
  return counts


def intervened(data: EpisodeData, flag: str, name: str) -> np.ndarray:
  """Returns bool[F]: where a person had taken over.

  Args:
    flag: the field that is not 0 there; of texts, those that say who acted, it is one of TEACHERS. Without a field FLAG
      it is the recorder's BY.
  Errors: Pi0RagError without such a field of one value a frame.
  """
  if flag == FLAG and flag not in data.extras and BY in data.extras:
    flag = BY
  if flag not in data.extras:
    raise unknown_name(f"field for the intervention, in {name}", flag, data.extras)
  values = np.asarray(data.extras[flag])
  if values.size != len(data):
    raise Pi0RagError(f"field '{flag}' of {name} has shape {values.shape}, expected one value for each of "
                      f"{len(data)} frames")
  values = values.reshape(-1)
  return np.isin(values, TEACHERS) if values.dtype.kind in "OSU" else values != 0


def chosen_frames(flag_F: np.ndarray, config: InterventionConfig) -> np.ndarray:
  """Returns int[N]: the frames that become records, those of each intervention and some before it."""
  edges_F = np.diff(flag_F.astype(int), prepend=0, append=0)
  found: list[int] = []
  free = 0  # first frame after the intervention before
  for first, end in zip(np.flatnonzero(edges_F == 1).tolist(), np.flatnonzero(edges_F == -1).tolist()):
    earlier = [first - k * config.before_stride for k in range(config.before, 0, -1)]
    found += [frame for frame in earlier if frame >= free]
    found += range(first, end, config.stride)
    free = end
  return np.array(found, int)


def _actors(data: EpisodeData, flag_F: np.ndarray) -> list[str]:
  """Returns who acted at each frame; a person, where somebody did and it is not said who."""
  said = np.asarray(data.extras[BY]).reshape(-1) if BY in data.extras else None
  if said is not None and said.dtype.kind not in "OSU":  # as the memory's export writes them, places in ACTORS
    said = np.array(ACTORS)[np.clip(said.astype(int), 0, len(ACTORS) - 1)]
  helpers = np.full(len(flag_F), HUMAN) if said is None else np.where(np.isin(said, TEACHERS), said, HUMAN)
  return [str(by) for by in np.where(flag_F, helpers, POLICY)]


def _trace(policy: Policy, seen: "Seen", frames: np.ndarray, by: Sequence[str], actions_FA: np.ndarray, batch: int
           ) -> Trace:
  """Returns a recorded episode with what the policy would have done at some of its frames."""
  nobody_K = np.zeros(0, int)
  chunks_NTA, _ = action_chunks(actions_FA.astype(np.float32), frames, policy.chunk_shape[0])
  ends = [*frames[1:], len(actions_FA)]
  steps = [Step(int(frame), None, key_E, base_TA, chunk_TA, 0, nobody_K, nobody_K.astype(np.float32), by=by[frame],
                done_NA=actions_FA[frame:end].astype(np.float32))
           for (frame, key_E, base_TA), chunk_TA, end in zip(_decisions(policy, seen, frames, batch), chunks_NTA, ends)]
  # Where nobody says how it ended, what was recorded is to be learned from.
  said = seen.data.extras.get("next.success", seen.data.metadata.get("success"))
  outcome = "success" if said is None or np.any(said) else "failure"
  return Trace(Job(0, seen.episode), steps=steps, outcome=outcome, ticks=len(actions_FA))


def check_rate(fps: float, policy: Policy, path) -> None:
  """Raises Pi0RagError where frames do not come as often as the policy's actions."""
  wanted = policy.spec.control_hz
  if not np.isclose(fps, wanted):
    raise Pi0RagError(f"'{path}' has {fps:g} frames per s, policy '{policy.spec.name}' acts {wanted:g} times: records "
                      "keep an action for each of its control ticks. --fps corrects a data set that says a wrong rate")


@dataclasses.dataclass(frozen=True)
class Seen:
  """An episode as the robot saw it."""

  dataset: Dataset
  episode: int
  data: EpisodeData
  to_robot: ToRobot

  def dictionaries(self, frames: Sequence[int]) -> list[dict]:
    """Returns the robot's dictionaries at frames, each with the actions of the whole episode."""
    images = self.dataset.read_frames(self.episode, frames)
    made = [self.to_robot({"image": {name: pictures[row] for name, pictures in images.items()},
                           "state": self.data.state[frame], "actions": self.data.actions,
                           "prompt": self.data.prompts[frame]}) for row, frame in enumerate(frames)]
    # An empty prompt is none: the policy's default comes in.
    return [{name: value for name, value in each.items() if name != "prompt" or value.strip()} for each in made]

  def observations(self, frames: Sequence[int]) -> list[dict]:
    """Returns the same without actions."""
    return [{name: value for name, value in each.items() if name != "actions"} for each in self.dictionaries(frames)]


def own_units(seen: Seen, robot: Robot, name: str) -> np.ndarray:
  """Returns the recorded actions float[F, A] in the units of the policy's chunks: through the robot and back."""
  if seen.data.actions.ndim != 2:
    raise Pi0RagError(f"{name} stores whole chunks {list(seen.data.actions.shape)}, expected the executed actions "
                      "[F, A]")
  first = seen.dictionaries([0])[0]
  if "actions" not in first:
    raise Pi0RagError(f"{name}: the columns name no 'actions'; they name {', '.join(sorted(first))}")
  sample = robot.observe(first)
  return robot.to_robot(sample["actions"], sample["state"])


def _decisions(policy: Policy, seen: Seen, frames: np.ndarray, batch: int) -> Iterator[tuple[int, Any, Any]]:
  """Yields (frame, key [E], the policy's own chunk [T, A]) at rising frames."""
  if jax.tree.leaves(policy.start(1)):
    yield from _remembering(policy, seen, frames)
    return
  for part in (frames[first : first + batch].tolist() for first in range(0, len(frames), batch)):
    _, encoded = policy.encode((), policy.prepare(seen.observations(part)))
    yield from zip(part, np.asarray(encoded.key_BE), np.asarray(policy.decode(encoded)))


def _remembering(policy: Policy, seen: Seen, frames: np.ndarray) -> Iterator[tuple[int, Any, Any]]:
  """As `_decisions`, of a policy whose chunk depends on what it saw before, at its own pace, in the episode."""
  step, wanted, found = policy.spec.execute_steps, set(frames.tolist()), {}
  phases = np.unique(frames % step)  # rows: each is asked every `step` frames, and all of them meet every frame wanted
  carry = policy.start(padded_size(len(phases)))
  for first in range(0, int(frames.max()) + 1, step):
    at = np.minimum(first + phases, len(seen.data) - 1).tolist()
    carry, encoded = policy.encode(carry, policy.prepare(seen.observations(at)))
    keys_BE, base_BTA = np.asarray(encoded.key_BE), np.asarray(policy.decode(encoded))
    found |= {frame: (frame, keys_BE[row], base_BTA[row]) for row, frame in enumerate(at) if frame in wanted}
  yield from (found[frame] for frame in frames.tolist())


def main(_) -> None:
  """Learns from what the flags say and prints what was added."""
  logging.set_verbosity(logging.WARNING)
  with cli.user_errors(COMMAND):
    run(flags.FLAGS)


def run(values) -> None:
  """See `main`; `values` are the flags."""
  spec, _ = directory.describe(values.policy, values.checkpoint)
  # A policy of new draws has no chunk of its own that a correction could be compared with.
  place = address.given(values)
  start = start_with(place, spec, values.start) or (ZERO if spec.start == NEW else None)
  policy = directory.load(values.policy, checkpoint=values.checkpoint, start=start, key_name=values.key_name,
                          default_prompt=values.prompt)
  dataset, to_robot = opened(values, policy)
  check_rate(values.fps or dataset.fps, policy, dataset.path)
  with Memory.open(place, **policy.memory_header()) as memory:
    config = InterventionConfig(flag=values.flag, stride=values.stride, before=values.before)
    counts = learn(memory, policy, dataset, config, to_robot=to_robot, task=values.task,
                   failure_kind=values.failure_kind)
  print(f"{counts.records} records of {counts.interventions} interventions in {counts.episodes} episodes are in "
        f"{place}")
  for what, reason in dataset.damaged.items():
    print(f"left out: {what}: {reason}")


def opened(values, policy: Policy) -> tuple[Dataset, ToRobot]:
  """Returns the data set of the flags, and what makes the robot's dictionaries of its samples."""
  repack = read_columns(values.columns) if values.columns else policy.spec.data.repack
  named = values.state or values.actions or values.cameras
  if repack is None and not named and not _has_plain_entries(policy.robot):
    raise Pi0RagError(f"policy '{policy.spec.name}' does not say which columns its data set has: give --columns, the "
                      "robot's keys by column names, as configs/my_robot.py does in `repack`")
  if repack is not None and not named:
    said = {"default_prompt": values.prompt, "fps": values.fps}
    return columns.open_columns(values.data, repack, action_columns=(str(repack.get("actions")),),
                                fields={name: value for name, value in said.items() if value is not None},
                                skip_bad=values.skip_bad)
  if wrong := [pair for pair in values.cameras or () if "=" not in pair]:
    raise Pi0RagError(f"--cameras has '{wrong[0]}', expected the policy's camera=stored camera")
  cameras = dict(pair.split("=", 1) for pair in values.cameras) if values.cameras else None
  said = {"state": values.state, "actions": values.actions, "cameras": cameras, "default_prompt": values.prompt,
          "fps": values.fps}
  trained = {} if named or policy.spec.head is None else policy.spec.head["fields"]
  fields = Fields(**{name: value or trained.get(name) or None for name, value in said.items()})
  return open_dataset(values.data, fields=fields, skip_bad=values.skip_bad), dict


def read_columns(text: str) -> dict:
  """Returns the robot's keys by column names of a flag in JSON."""
  found = schema.parse(text, dict[str, Any], "--columns is no JSON object")
  if "actions" not in found:
    raise Pi0RagError(f"--columns is {text}; allowed: a JSON object of the robot's keys, 'actions' among them, by "
                      "column names")
  return found


def _has_plain_entries(robot: Robot) -> bool:
  """Returns whether a robot's dictionary has the entries of a data set's sample."""
  return robot.example is not None and set(robot.example()) <= {"image", "image_mask", "state", "prompt"}


if __name__ == "__main__":
  flags.DEFINE_string("policy", "panda_small", "Any policy, as the server takes it.")
  flags.DEFINE_string("checkpoint", None, "Checkpoint of an openpi configuration, as the server takes it.")
  flags.DEFINE_string("key_name", "", "Key statistics of the policy; its own by default.")
  flags.DEFINE_string("start", None, "Where the flow starts: zero or draw:SEED. By default as the policy or an "
                      "existing memory says, and zero where that is new for each decision.")
  flags.DEFINE_string("data", None, "Data set with interventions, of any format that pi0rag_jax.data reads.")
  cli.define_memory("Made if there is none.", versions=False)
  flags.DEFINE_string("flag", FLAG, "Stored field that is not 0 where a person had taken over; without it who acted "
                      f"says so, the field '{BY}' of EpisodeWriter.")
  flags.DEFINE_string("columns", None, "The robot's keys by the data set's columns, JSON; by default as the policy's "
                      "configuration says in `repack`.")
  flags.DEFINE_float("fps", None, "Frames per second, where the data set says none or a wrong one.", lower_bound=0.1)
  flags.DEFINE_string("state", None, "Without columns, the stored field of the state; the format's own by default.")
  flags.DEFINE_string("actions", None, "Stored field of the actions, in the policy's units.")
  flags.DEFINE_list("cameras", None, "The policy's camera=stored camera; by default as in its training, or one name.")
  flags.DEFINE_string("prompt", None, "Prompt, where the data set has none.")
  flags.DEFINE_string("task", "", "Name of the task in the records.")
  flags.DEFINE_string("failure_kind", "", "What the person prevented: collision, drop, miss or timeout.")
  flags.DEFINE_integer("stride", 1, "Frames between two records of an intervention.", lower_bound=1)
  flags.DEFINE_integer("before", 3, "Records before each intervention.", lower_bound=0)
  flags.DEFINE_bool("skip_bad", False, "Leave damaged episodes out instead of stopping.")
  flags.mark_flags_as_required(["data", "memory"])
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
