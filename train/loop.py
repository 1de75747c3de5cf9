"""Training from start, or from the last checkpoint, to a policy directory."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from pi0rag_jax.data import pipeline
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import pi0
from pi0rag_jax.policy import keys
from pi0rag_jax.policy.normalize import NormStats
from pi0rag_jax.policy.tokenizer import SentencePieceTokenizer, train_tokenizer
from pi0rag_jax.typing import Config
from train import batches, calibrate, export, initialize, metrics, optimizer, parallel, step
from train.checkpoint import CheckpointStore

KINDS = ("flow",)
TOKENIZER_FILE = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Data:
  """What the loop reads: both splits, their statistics and the tokenizer that made their tokens."""

  frames: pipeline.Frames  # training split
  validation_frames: pipeline.Frames
  train: batches.BatchSource
  validation: batches.BatchSource
  stats: Mapping[str, NormStats]
  tokenizer: Path


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The two compiled steps."""

  train: Callable
  validate: Callable


def train_and_evaluate(config: Config, workdir: str | Path) -> Path:
  """Returns the policy directory `<workdir>/policy` after training to `config.steps`.

  Args:
    config: as configs/panda_small.py explains it.
    workdir: of this run; a run found there is continued.
  Raises:
    Pi0RagError: the configuration, the data or a checkpoint found does not fit.
  """
  if config.kind not in KINDS:
    raise unknown_name("kind of training", config.kind, KINDS)
  parallel.check_batch_size(config.batch_size)
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  model_config = pi0.Pi0Config.from_dict(config.model.to_dict())
  data = load_data(config, model_config, workdir)
  optimize = optimizer.make_optimizer(config)
  params = initialize.initial_params(
    model_config, data.frames.images, seed=config.seed, targets=data.train.targets_FG.shape[-1],
    checkpoint=config.init_checkpoint,
  )
  metrics.log.info("%d parameters in the policy", sum(x.size for x in jax.tree.leaves(params["policy"])))
  store = CheckpointStore(workdir, asset_id=config.asset_id)
  state = step.init_state(params, optimize)
  state = store.restore(state) or state
  compiled = compile_steps(config, model_config, optimize, data)
  writer = metrics.MetricWriter(workdir)
  clock = metrics.StepClock(int(state.step))
  state = run_steps(config, data, compiled, parallel.replicate(state), store, writer, clock)
  writer.close()
  return finish(config, model_config, data, store, workdir, wall_clock_s=clock.read(config.steps)["wall_clock_s"])


def load_data(config: Config, model_config: pi0.Pi0Config, workdir: Path) -> Data:
  """Returns the splits of `config.data_dir`; the tokenizer is trained once per workdir, on all its prompts."""
  if not Path(config.data_dir).is_dir():
    raise Pi0RagError(f"no data directory '{config.data_dir}'; collect it with: {config.make_data}")
  frames = pipeline.load_frames(config.data_dir)
  train, validation = pipeline.split_by_episode(
    frames, fraction=config.validation_fraction, seed=config.split_seed)
  metrics.log.info("%d training frames, %d validation frames", len(train), len(validation))
  path = workdir / TOKENIZER_FILE
  if not path.exists():
    train_tokenizer(frames.prompts, path, vocab_size=model_config.vocab_size)
  tokenizer = SentencePieceTokenizer(path)
  if tokenizer.vocab_size > model_config.vocab_size:
    raise Pi0RagError(f"the prompts need {tokenizer.vocab_size} tokens, model.vocab_size is {model_config.vocab_size}")
  targets = tuple(config.auxiliary_targets)
  stats = batches.compute_statistics(train, targets, hidden_state_dims=config.hidden_state_dims)
  source = lambda part: batches.make_source(  # noqa: E731
    part, stats, tokenizer, model=model_config, targets=targets)
  return Data(train, validation, source(train), source(validation), stats, path)


def compile_steps(config: Config, model_config: pi0.Pi0Config, optimize, data: Data) -> Compiled:
  """Returns both steps, compiled for all devices."""
  model = pi0.Pi0(model_config)
  train = step.make_train_step(model, optimize, config)
  validate = step.make_validation_step(model, data.stats, config)
  return Compiled(parallel.compile_step(train, donate_state=True), parallel.compile_step(validate, donate_state=False))


def run_steps(config: Config, data: Data, compiled: Compiled, state, store, writer, clock):
  """Returns the state after `config.steps`; logs, validates and saves on the way."""
  pending = []
  frame_rows = batches.emphasized_rows(data.frames, config.approach_repeats)
  for number in range(int(state.step), config.steps):
    rows = frame_rows[pipeline.batch_rows(len(frame_rows), config.batch_size, seed=config.seed, step=number)]
    batch = parallel.split_batch(data.train.batch(parallel.local_rows(rows)))
    state, entry = compiled.train(state, batch)
    pending.append(entry)
    done = number + 1
    if done % config.log_every == 0 or done == config.steps:
      log_training(writer, clock, done, pending)
      pending = []
    if done % config.validate_every == 0 or done == config.steps:
      scores = validate(config, data, compiled, state)
      writer.write(done, "validation", scores)
      store.save(state, public_statistics(data), scores | {"score": scores[config.best_by]})
  return state


def log_training(writer: metrics.MetricWriter, clock: metrics.StepClock, done: int, pending) -> None:
  """Writes the means since the last entry; stops a run none of whose steps could be used."""
  means = metrics.mean_of(pending)
  writer.write(done, "train", means | clock.read(done))
  if means["skipped"] == 1.0:
    raise Pi0RagError(
      f"no step of the last {len(pending)} before step {done} was finite: lower learning_rate, or start again from"
      " an earlier checkpoint")


def validate(config: Config, data: Data, compiled: Compiled, state) -> dict[str, float]:
  """Returns the mean metrics of the averaged weights over the same `validation_batches` batches each time."""
  size = min(config.batch_size * config.validation_batches, len(data.validation))
  count = max(1, size // config.batch_size)
  entries = []
  for index in range(count):
    rows = pipeline.batch_rows(len(data.validation), config.batch_size, seed=config.split_seed, step=index)
    batch = parallel.split_batch(data.validation.batch(parallel.local_rows(rows)))
    entries.append(compiled.validate(state.ema, batch))
  return metrics.mean_of(entries)


def public_statistics(data: Data) -> dict[str, NormStats]:
  """Returns the statistics that belong to the policy; those of the auxiliary targets do not."""
  return {name: data.stats[name] for name in ("state", "actions")}


def finish(
  config: Config, model_config, data: Data, store: CheckpointStore, workdir: Path, *, wall_clock_s: float
) -> Path:
  """Returns the policy directory made of the best checkpoint, with the statistics of its keys."""
  best = store.best_step()
  if best is None:
    raise Pi0RagError(f"no checkpoint in '{workdir}' to make a policy of: config.steps is {config.steps}")
  record = {
    "config": json.loads(config.to_json_best_effort()),
    "step": best,
    "steps": config.steps,
    "validation": store.metrics(best),
    "wall_clock_s": wall_clock_s,
    "frames": {"train": len(data.frames), "validation": len(data.validation_frames)},
    "seeds": {
      "train": [int(x) for x in np.unique(data.frames.seeds)],
      "validation": [int(x) for x in np.unique(data.validation_frames.seeds)],
    },
    "devices": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
    "versions": {"jax": jax.__version__, "numpy": np.__version__},
  }
  spec = export.make_spec(config, model_config, data.frames)
  target = workdir / "policy"
  export.export_policy(store.folder(best), data.tokenizer, target, spec=spec, record=record)
  observations = list(calibrate.demonstrations(config.data_dir))
  calibrate.calibrate(target, observations, keys.KeyRecipe()).save(target)
  metrics.log.info("policy of step %d written to %s", best, target)
  return target
