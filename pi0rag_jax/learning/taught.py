"""The taught episodes as a LeRobot data set: what was seen and done, who acted, and what the memory holds as better."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.data.lerobot_writer import ACTION, CAMERA, STATE, VIDEO, LerobotWriter, WrittenEpisode
from pi0rag_jax.data.validation import ACTORS, POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import kept
from pi0rag_jax.learning.interventions import FLAG, OBSERVED
from pi0rag_jax.memory import anew, portable, tokens
from pi0rag_jax.memory.record import CORRECTION, FAILURE, Record

LABEL, TAUGHT, BY = "label", "taught", "by"
EPISODES_FILE = "taught.json"


@dataclasses.dataclass(frozen=True)
class Written:
  """What a data set holds, and what it does not."""

  episodes: int
  frames: int
  labels: int  # frames at which the memory holds something
  untaught: int  # kept episodes that the memory was not taught, or that were taken back: left out
  without_pictures: int  # records of episodes that were not kept
  columns: Mapping[str, Any]  # the robot's keys by the data set's columns, as `config.columns` of a training


def export(memory_dir: str | os.PathLike, folder: str | os.PathLike, out: str | os.PathLike, *, pictures: str = VIDEO
           ) -> Written:
  """Returns what was written to `out`, a frame for each control tick of each kept episode that taught the memory.

  Pictures and state are those that the policy saw last: `observed` is 1 where it looked. `action` is what was executed,
  `intervention` is 1 where somebody else than the policy acted, `by` is who: a place in ACTORS. Where `taught` is 1 the
  memory has a record of this moment, and `label` is its better chunk, [T, A]: `--config.label_chunks=label
  --config.frames_where="('taught',)"` trains on what the memory says. `meta/taught.json` says how each episode ended.

  Errors: Pi0RagError for folders of something else, and when no kept episode taught the memory.
  """
  contents = anew.read(memory_dir)
  out = portable.free_place(out)
  known = {commit.token for commit in contents.commits}
  records = by_moment(record for record in contents.records.values() if not record.quarantine)
  taught, untaught, shown = [], 0, []
  writer, frames, labels = None, 0, 0
  for episode in kept.read(folder):
    if tokens.token_of(episode.facts.episode) not in known and episode.facts.episode not in records:
      untaught += 1
      continue
    if writer is None:
      writer = LerobotWriter(out, fps=episode.dataset.episode_fps(episode.number), pictures=pictures,
                             robot=episode.facts.robot_type or "robot", renderer=episode.facts.renderer)
      shown = [episode.facts.columns]
    moments = records.pop(episode.facts.episode, {})
    written = _written(episode, moments, contents.header.chunk_shape)
    writer.add(written)
    frames, labels = frames + len(written.state), labels + int(written.extras[TAUGHT].sum())
    taught.append({"episode": episode.facts.episode, "robot": episode.facts.robot, "task": episode.facts.task,
                   "success": episode.success, "failure": episode.data.metadata.get("failure", ""),
                   "note": episode.data.metadata.get("note", ""), "helped": bool(written.extras[FLAG].any())})
  if writer is None:
    raise Pi0RagError(f"none of the {untaught} episodes in '{folder}' taught '{memory_dir}'; a server with "
                      "--keep_episodes keeps them")
  writer.close()
  files.write_json(out / "meta" / EPISODES_FILE, taught)
  return Written(len(taught), frames, labels, untaught, sum(map(len, records.values())),
                 {**columns_of(shown[0]), "actions": ACTION})


def by_moment(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
  """Returns the records of each episode over the wire by their ticks; of a correction and an anchor, the correction."""
  found: dict[str, dict[int, Record]] = {}
  for record in records:
    moments = found.setdefault(str(record.provenance.get("episode", "")), {})
    tick = record.provenance.get("tick")
    if record.kind == FAILURE or not isinstance(tick, int):
      continue
    if tick not in moments or record.kind == CORRECTION:
      moments[tick] = record
  return found


def columns_of(columns: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the robot's keys by the columns of the data set, of those by the kept names."""
  name = lambda kept_name: (STATE + kept_name.removeprefix(kept.STATE)  # noqa: E731
                            if kept_name.startswith(f"{kept.STATE}[") else CAMERA + kept_name)
  return {key: columns_of(value) if isinstance(value, Mapping) else name(value) for key, value in columns.items()}


def _written(episode: kept.KeptEpisode, moments: Mapping[int, Record], chunk_shape: tuple[int, int]) -> WrittenEpisode:
  ticks_F, frames = episode.ticks(), np.arange(len(episode.data))
  label_FTA = np.zeros((len(frames), *chunk_shape), np.float32)
  taught_F, observed_F = np.zeros((2, len(frames)), np.float32)
  observed_F[np.isin(ticks_F, [decision.tick for decision in episode.facts.decisions])] = 1
  for frame in np.flatnonzero(observed_F):
    if (record := moments.get(int(ticks_F[frame]))) is not None:
      label_FTA[frame], taught_F[frame] = record.corrected_chunk, 1
  by_F = np.asarray(episode.data.extras["by"])
  flags = {OBSERVED: observed_F, TAUGHT: taught_F, FLAG: by_F != POLICY, BY: [ACTORS.index(by) for by in by_F]}
  return WrittenEpisode(
    episode.dataset.read_frames(episode.number, frames), episode.data.state, episode.data.actions,
    episode.data.prompts[0], episode.success,
    {LABEL: label_FTA} | {name: np.asarray(values, np.float32)[:, None] for name, values in flags.items()})
