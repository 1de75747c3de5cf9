"""Human interventions as memory records: `python -m pi0rag_jax.learning.interventions --data=DIR --memory=DIR`.

An episode carries a flag per frame that says where a person had taken over, in any format that `data` reads. At the
frames of an intervention the policy is asked for its key and its own chunk; what the person did from there on is the
better one. Shortly before it, the same path without the detour that the policy made is.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags, logging

from pi0rag_jax import cli
from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, Record
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import ActionLayout, PolicySpec
from pi0rag_jax.robots.images import resize_with_pad
from pi0rag_jax.steering import paths

COMMAND = "learning.interventions"
# Rounding of the recorder, in shares of an action entry's range.
_BEYOND_LIMITS = 0.01


@dataclasses.dataclass(frozen=True)
class InterventionConfig:
  """Which frames become records."""

  flag: str = "intervention"  # stored field: not 0 where a person had taken over
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
          task: str = "", failure_kind: str = "") -> Counts:
  """Returns what was learned from a data set; each episode is durable as a whole, and a second call adds nothing.

  Errors: Pi0RagError for a data set that does not fit the policy, or has no such flag; damaged episodes raise or are
    left out as the data set was opened.
  """
  check_fit(dataset, policy.spec)
  counts = Counts()
  for episode, data in dataset.iterate():
    flag_F = intervened(data, config.flag, dataset.episode_name(episode))
    check_limits(data, policy.spec.action_layout, dataset.episode_name(episode))
    frames, starts = chosen_frames(flag_F, config)
    records = []
    for part in range(0, len(frames), config.batch):
      records += _records(policy, dataset, episode, data, frames[part : part + config.batch],
                          starts[part : part + config.batch], task=task, failure_kind=failure_kind)
    if records:
      memory.add(records, token=f"{COMMAND} {dataset.fingerprint()} {config} {episode}")
    interventions = int((np.diff(flag_F.astype(int), prepend=0) == 1).sum())
    counts = Counts(counts.episodes + 1, counts.interventions + interventions, counts.records + len(records))
  if not counts.interventions:
    raise Pi0RagError(f"'{dataset.path}' has no frame in which '{config.flag}' is set, in {counts.episodes} episodes")
  return counts


def intervened(data: EpisodeData, flag: str, name: str) -> np.ndarray:
  """Returns bool[F]: where a person had taken over. Errors: Pi0RagError without such a field of one number a frame."""
  if flag not in data.extras:
    raise unknown_name(f"field for the intervention, in {name}", flag, data.extras)
  values = np.asarray(data.extras[flag])
  if values.size != len(data):
    raise Pi0RagError(f"field '{flag}' of {name} has shape {values.shape}, expected one number for each of "
                      f"{len(data)} frames")
  return values.reshape(-1) != 0


def chosen_frames(flag_F: np.ndarray, config: InterventionConfig) -> tuple[np.ndarray, np.ndarray]:
  """Returns (frames, starts), int[N]: the frames that become records, and where the person's path begins for each.

  That is the frame itself within an intervention, and the intervention's first frame before it.
  """
  edges_F = np.diff(flag_F.astype(int), prepend=0, append=0)
  found: list[tuple[int, int]] = []
  free = 0  # first frame after the intervention before
  for first, end in zip(np.flatnonzero(edges_F == 1).tolist(), np.flatnonzero(edges_F == -1).tolist()):
    earlier = [first - k * config.before_stride for k in range(config.before, 0, -1)]
    found += [(frame, first) for frame in earlier if frame >= free]
    found += [(frame, frame) for frame in range(first, end, config.stride)]
    free = end
  frames_starts = np.array(found, int).reshape(-1, 2)
  return frames_starts[:, 0], frames_starts[:, 1]


def corrected_chunks(actions_FA: np.ndarray, frames: np.ndarray, starts: np.ndarray, horizon: int,
                     layout: ActionLayout) -> np.ndarray:
  """Returns float32[N, T, A]: from each frame, the way to the path that was taken from its start on, and along it.

  For a frame that is its own start these are the recorded actions. After the episode's end nothing moves any more and
  the gripper stays as it was.
  """
  deltas = [*layout.position, *layout.rotation]
  still_A = actions_FA[-1].copy()
  still_A[deltas] = 0.0
  actions_FA = np.concatenate([actions_FA, np.tile(still_A, (horizon, 1))]).astype(np.float32)
  chunks_NTA, _ = action_chunks(actions_FA, starts, horizon)
  detours_NA = np.zeros((len(frames), layout.dim), np.float32)
  for row, (frame, start) in enumerate(zip(frames, starts)):
    detours_NA[row, deltas] = actions_FA[frame:start, deltas].sum(axis=0)
  path_NTA = paths.to_path(chunks_NTA, layout) + detours_NA[:, None]
  shortened_NTA = np.asarray(paths.from_path(path_NTA, layout))
  return np.where((frames == starts)[:, None, None], chunks_NTA, shortened_NTA)


def check_fit(dataset: Dataset, spec: PolicySpec) -> None:
  """Raises Pi0RagError where sizes, rate or cameras of the data are not the policy's."""
  found = {"numbers of state": dataset.state_dim, "numbers of action": dataset.action_dim, "frames per s": dataset.fps}
  wanted = {"numbers of state": spec.state_dim, "numbers of action": spec.action_layout.dim,
            "frames per s": spec.control_hz}
  for name, value in found.items():
    if value != wanted[name]:
      raise Pi0RagError(f"'{dataset.path}' has {value} {name}, policy '{spec.name}' has {wanted[name]}: records keep "
                        "actions in the robot's units, one for each of the policy's control ticks")
  for camera in spec.model.image_keys:
    if camera not in dataset.cameras:
      raise unknown_name(f"camera of '{dataset.path}'", camera, dataset.cameras)


def check_limits(data: EpisodeData, layout: ActionLayout, name: str) -> None:
  """Raises Pi0RagError where actions are beyond what the robot takes: they are in other units, or absolute."""
  if data.actions.ndim != 2:
    raise Pi0RagError(f"{name} stores whole chunks {list(data.actions.shape)}, expected the executed actions [F, A]")
  low_A, high_A = np.array(layout.low), np.array(layout.high)
  slack_A = _BEYOND_LIMITS * (high_A - low_A)
  beyond_FA = (data.actions < low_A - slack_A) | (data.actions > high_A + slack_A) | ~np.isfinite(data.actions)
  if beyond_FA.any():
    frame, entry = np.argwhere(beyond_FA)[0].tolist()
    raise Pi0RagError(f"{name}: entry {entry} of the action at frame {frame} is {data.actions[frame, entry]:g}, the "
                      f"policy's robot takes {low_A[entry]:g} to {high_A[entry]:g}: convert the actions to its units")


def _records(policy: Policy, dataset: Dataset, episode: int, data: EpisodeData, frames: np.ndarray,
             starts: np.ndarray, *, task: str, failure_kind: str) -> Iterator[Record]:
  """Yields the record of each frame: what the policy would do there, and what the person did."""
  encoded = policy.encode(_observations(policy.spec, dataset, episode, data, frames))
  base_NTA = np.asarray(policy.denoise(encoded, None))[: len(frames)]
  corrected_NTA = corrected_chunks(data.actions, frames, starts, policy.chunk_shape[0], policy.spec.action_layout)
  for row, frame in enumerate(map(int, frames)):
    yield Record(
        key=np.asarray(encoded.key_BE)[row], base_chunk=base_NTA[row], corrected_chunk=corrected_NTA[row],
        kind=CORRECTION, outcome="success" if frame == starts[row] else "failure", failure_kind=failure_kind,
        task=task, prompt=data.prompts[frame],
        provenance={"source": "human", "data": str(dataset.path), "episode": episode, "tick": frame})


def _observations(spec: PolicySpec, dataset: Dataset, episode: int, data: EpisodeData,
                  frames: np.ndarray) -> list[dict[str, Any]]:
  cameras = spec.model.image_keys
  images = {name: resize_with_pad(frames_NHWC, spec.image_size, spec.image_size)
            for name, frames_NHWC in dataset.read_frames(episode, frames, cameras).items()}
  return [{"image": {name: images[name][row] for name in cameras}, "state": data.state[frame],
           "prompt": data.prompts[frame]} for row, frame in enumerate(map(int, frames))]


def main(argv) -> None:
  """Learns from what the flags say and prints what was added."""
  cli.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  with cli.user_errors(COMMAND):
    run(flags.FLAGS)


def run(values) -> None:
  """See `main`; `values` are the flags."""
  from pi0rag_jax.data.dataset import Fields
  from pi0rag_jax.data.formats import open_dataset
  from pi0rag_jax.policy import shipped

  policy = Policy.load(shipped.directory(values.policy))
  cameras = dict(pair.split("=", 1) for pair in values.cameras) if values.cameras else None
  fields = Fields(state=values.state, actions=values.actions, cameras=cameras, default_prompt=values.prompt)
  dataset = open_dataset(values.data, fields=fields, skip_bad=values.skip_bad)
  horizon, action_dim = policy.chunk_shape
  with Memory.open(values.memory, key_dim=policy.key_dim, action_horizon=horizon, action_dim=action_dim,
                   encoder=policy.key_stats.recipe.name, policy=policy.fingerprint) as memory:
    config = InterventionConfig(flag=values.flag, stride=values.stride, before=values.before)
    counts = learn(memory, policy, dataset, config, task=values.task, failure_kind=values.failure_kind)
  print(f"{counts.records} records of {counts.interventions} interventions in {counts.episodes} episodes are in "
        f"{values.memory}")
  for what, reason in dataset.damaged.items():
    print(f"left out: {what}: {reason}")


if __name__ == "__main__":
  flags.DEFINE_string("policy", "panda_small", "A shipped policy or a policy's directory.")
  flags.DEFINE_string("data", None, "Data set with interventions, of any format that pi0rag_jax.data reads.")
  flags.DEFINE_string("memory", None, "Folder of the memory, which is made if there is none.")
  flags.DEFINE_string("flag", "intervention", "Stored field that is not 0 where a person had taken over.")
  flags.DEFINE_string("state", None, "Stored field of the state; the format's own by default.")
  flags.DEFINE_string("actions", None, "Stored field of the actions, in the policy's units.")
  flags.DEFINE_list("cameras", None, "The policy's camera=stored camera, for each; by default they have one name.")
  flags.DEFINE_string("prompt", None, "Prompt, where the data set has none.")
  flags.DEFINE_string("task", "", "Name of the task in the records.")
  flags.DEFINE_string("failure_kind", "", "What the person prevented: collision, drop, miss or timeout.")
  flags.DEFINE_integer("stride", 1, "Frames between two records of an intervention.", lower_bound=1)
  flags.DEFINE_integer("before", 3, "Records before each intervention.", lower_bound=0)
  flags.DEFINE_bool("skip_bad", False, "Leave damaged episodes out instead of stopping.")
  flags.mark_flags_as_required(["data", "memory"])
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
