"""What a sweep's streams taught, as a data set for `train.launch`: `python -m eval.taught --sweep=DIR --out=DATA`
writes one frame per record, with the pictures of its moment and, as `action_chunks`, its better chunk.

The episodes are seen again for it: they must be of streams in which a supervisor took over, not gone back in.
"""

import pathlib
from typing import Any

import numpy as np
from absl import app, flags
from rich.progress import track

from configs import quickstart
from eval import checks, plan, sweep
from eval.fits import EXECUTED_NAME
from eval.plan import Learn, Stream
from pi0rag_jax import cli, schema
from pi0rag_jax.data.episodes import Episode, write_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import fits
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds import replay
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.collect import split

COMMAND = "eval.taught"


def write(config: Config, folder: pathlib.Path, out: pathlib.Path) -> int:
  """Returns how many frames were written of a sweep's results, one file per episode.

  Errors: Pi0RagError where there is nothing to write, or a world does not come to the same moments again.
  """
  spec, _ = directory.describe(config.policy, config.checkpoint or None)
  streams = list(dict.fromkeys(step.stream for step in plan.steps(config) if isinstance(step, Learn)))
  log = folder / EXECUTED_NAME
  executed = replay.read(log) if log.exists() else {}
  frames = 0
  for stream in track(streams, description=COMMAND):
    episodes = [episode for (name, _), episode in executed.items() if name == stream.name]
    memory_dir = folder / "memory" / stream.directory
    if episodes and memory_dir.exists():
      frames += _write_stream(config, spec, stream, episodes, memory_dir, out)
  if not frames:
    raise Pi0RagError(f"'{folder}' holds no stream's episodes ({EXECUTED_NAME}) beside the memory that they taught: "
                      "run the sweep first")
  return frames


def _write_stream(config: Config, spec: PolicySpec, stream: Stream, episodes, memory_dir: pathlib.Path,
                  out: pathlib.Path) -> int:
  taught: dict[tuple[int, int], Record] = {}
  with Memory.load(memory_dir) as memory:
    for _, record in memory.records():
      if record.kind in fits.KINDS and "tick" in record.provenance:
        taught[record.provenance["seed"], record.provenance["tick"]] = record
  world = checks.world_config(config, spec, stream.place)
  frames = 0
  with BatchEnv(world, slots=config.slots, processes=config.processes) as env:
    for episode, observations in replay.replay(env, episodes):
      rows = [row for row, tick in enumerate(episode.ticks_N.tolist()) if (episode.seed, tick) in taught]
      path = out / f"{stream.directory}-{episode.seed}.h5"
      if rows and not path.exists():
        images, state_FP = split([dict(observations[row]) for row in rows])
        chunks_FTA = np.stack([taught[episode.seed, int(episode.ticks_N[row])].corrected_chunk for row in rows])
        write_episodes(path, [Episode(
          images, state_FP, chunks_FTA[:, 0], chunks_FTA, {}, str(observations[rows[0]]["prompt"]), stream.place.task,
          stream.place.condition, spec.renderer, episode.seed, episode.success, fps=spec.control_hz)])
      frames += len(rows)
  return frames


def read_config(folder: pathlib.Path) -> Config:
  """Returns a sweep's configuration, of an earlier version too: what it does not say is as by default."""
  config = quickstart.get_config().unlock()
  with config.ignore_type():
    config.update(schema.read(folder / sweep.CONFIG_NAME, dict[str, Any]))
  return config.lock()


def main(_) -> None:
  """Writes the data set; a user's mistake ends in one line and status 2."""
  with cli.user_errors(COMMAND):
    folder = pathlib.Path(flags.FLAGS.sweep).expanduser()
    frames = write(read_config(folder), folder, pathlib.Path(flags.FLAGS.out).expanduser())
    print(f"{frames} frames in {flags.FLAGS.out}")


if __name__ == "__main__":
  flags.DEFINE_string("sweep", None, "Folder of a sweep's results.")
  flags.DEFINE_string("out", None, "Folder of the data set; episodes that it has are not written again.")
  flags.mark_flags_as_required(["sweep", "out"])
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
