"""How much faster an epoch of a head is from cached features than with the backbone in it, as one JSON line:

    python -m train.head_throughput --config=configs/mobile_vla_lstm.py:debug --workdir=/tmp/throughput

The workdir is a run's; features that are missing are computed first, and not timed. An epoch is one window per
training frame. Without a cache the same batches need the backbone for every frame of every window, `same_batches`;
the least that any order of frames needs is once for every frame, `once_per_frame`. A frame's time is that of reading,
resizing and encoding it.
"""

import functools
import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from pi0rag_jax import cli
from pi0rag_jax.typing import Config
from train import head_backbone, head_data, heads, loop, metrics, optimizer, parallel, step
from train.checkpoint import CheckpointStore

COMMAND = "train.head_throughput"
# Timed after one call that compiles: so many steps and batches of frames, at least.
STEPS, ENCODINGS = 30, 6


def measure(config: Config, workdir: Path) -> dict:
  """Returns the seconds of an epoch from the cache and without it, and how many times faster the cache makes it."""
  workdir.mkdir(parents=True, exist_ok=True)
  task = heads.make_task(config, workdir)
  part = head_data.open_parts(config, workdir)[0]
  frames = int(part.dataset.lengths[part.splits[head_data.TRAIN]].sum())
  window_frames = float(np.mean([task.train_batch(number)["mask_BW"].sum(axis=1) for number in range(ENCODINGS)]))
  step_s, encode_s = time_step(config, task, workdir), time_encoding(config, part, task.stats["state"], workdir)
  cached_s = frames / config.batch_size * step_s
  epochs_s = {"same_batches": cached_s + frames * window_frames * encode_s,
              "once_per_frame": cached_s + frames * encode_s}
  return {
    "config": config.name, "frames": frames, "step_ms": 1000 * step_s, "encode_frame_ms": 1000 * encode_s,
    "cached_s": cached_s, "uncached_s": epochs_s,
    "times_faster": {name: epoch_s / cached_s for name, epoch_s in epochs_s.items()},
    "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}"}


def time_step(config: Config, task, workdir: Path) -> float:
  """Returns the seconds of a training step, its batch from the cache included."""
  devices, optimize = parallel.make(config.parallel), optimizer.make_optimizer(config)
  state, frozen = loop.place_state(config, task, optimize, devices, CheckpointStore(workdir, asset_id=config.asset_id))
  train = devices.compile_train(functools.partial(
    step.train_step, loss_fn=task.loss, optimizer=optimize, seed=config.seed, ema_decay=config.ema_decay,
    mean=devices.mean, microbatches=config.microbatches))
  state, found = train(state, frozen, devices.place_batch(task.train_batch(0)))
  jax.block_until_ready(found)
  start = time.perf_counter()
  for number in range(1, STEPS + 1):
    state, found = train(state, frozen, devices.place_batch(task.train_batch(number)))
  jax.block_until_ready((state, found))
  return (time.perf_counter() - start) / STEPS


def time_encoding(config: Config, part: head_data.Part, stats, workdir: Path) -> float:
  """Returns the seconds that a frame costs, from file to features."""
  extractor, size = head_backbone.make_extractor(config, stats, workdir), config.feature_batch_size
  rows = np.flatnonzero(np.isin(part.episode_F, part.splits[head_data.TRAIN]))
  batches = [rows[(i * size + np.arange(size)) % len(rows)] for i in range(ENCODINGS + 1)]
  np.asarray(extractor.encode(part.observations(np.sort(batches[0]))))
  start = time.perf_counter()
  for batch in batches[1:]:
    np.asarray(extractor.encode(part.observations(np.sort(batch))))
  return (time.perf_counter() - start) / (ENCODINGS * size)


def main(_) -> None:
  """Prints the measurement."""
  metrics.log.setLevel("INFO")
  with cli.user_errors(COMMAND):
    print(json.dumps(measure(cli.read_config(), Path(flags.FLAGS.workdir).absolute())))


if __name__ == "__main__":
  cli.define_config(example="configs/mobile_vla_lstm.py:debug")
  flags.DEFINE_string("workdir", None, "Of a run, or of a new one.")
  flags.mark_flag_as_required("workdir")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
