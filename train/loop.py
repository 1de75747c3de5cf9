"""Training from the start, or from the last checkpoint, to what the run is for."""

import contextlib
import functools
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.typing import Config
from train import config_check, heads, metrics, named, optimizer, parallel, policy, step, wandb_log
from train.checkpoint import CHECKPOINTS, CheckpointStore
from train.task import Task

KINDS: dict[str, Callable[[Config, Path], Task]] = {
  "head": heads.make_task, "policy": policy.make_task, "openpi": policy.make_task}  # the last: its name of before
CONFIG_FILE = "config.json"
# Fields that may differ when a run is resumed; the first is of runs that began before `columns` said it.
FREE_FIELDS = ("action_column", "log_every", "make_data", "name", "wandb_project")


def train_and_evaluate(config: Config, workdir: str | Path, *, keep: Collection[int] = ()) -> Path:
  """Returns what the run made, such as `<workdir>/policy`, after training to `config.steps`.

  Args:
    config: as configs/openpi_finetune.py explains it.
    workdir: of this run; a run found there is continued.
    keep: steps whose checkpoints stay, besides the last and the best; only those at a validation have any.
  Raises:
    Pi0RagError: the configuration, the data or a checkpoint found does not fit.
  """
  config_check.check(config)
  if config.kind not in KINDS:
    raise unknown_name("kind of training", config.kind, KINDS)
  config = named.filled(config)
  wandb_log.load(config)
  parallel.check_batch_size(config.batch_size, config.microbatches)
  devices = parallel.make(config.parallel)
  optimize = optimizer.make_optimizer(config)
  workdir = Path(workdir).absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  refuse_other_workdir(config, workdir)
  task = KINDS[config.kind](config, workdir)
  claim_workdir(config, workdir)
  store = CheckpointStore(workdir, asset_id=config.asset_id, keep=keep)
  state, frozen = place_state(config, task, optimize, devices, store)
  clock = metrics.StepClock(int(state.step), batch_size=config.batch_size)
  writer = metrics.MetricWriter(workdir, config, start=int(state.step))
  with parallel.programs_released(), contextlib.closing(writer), contextlib.closing(task):
    run_steps(config, task, optimize, devices, state, frozen, store, writer, clock)
  return finish(config, task, store, wall_clock_s=clock.wall_clock_s)


def refuse_other_workdir(config: Config, workdir: Path) -> None:
  """Raises if a run of another configuration began in the workdir."""
  file = workdir / CONFIG_FILE
  if not file.exists():
    if any((workdir / CHECKPOINTS).glob("*")):
      raise Pi0RagError(f"workdir '{workdir}' has checkpoints and no {CONFIG_FILE}, which says of what configuration "
                        "they are: put it back, or use another --workdir")
    return
  wanted = json.loads(config.to_json_best_effort())
  found = schema.read(file, dict[str, Any])
  different = sorted(
    name for name in set(found) | set(wanted) if name not in FREE_FIELDS and found.get(name) != wanted.get(name))
  if different:
    first = different[0]
    raise Pi0RagError(
      f"workdir '{workdir}' is of another configuration: {', '.join(different)} differ ({first} was"
      f" {_short(found.get(first))}, is {_short(wanted.get(first))}); use another --workdir or the configuration that"
      f" '{file}' shows")


def claim_workdir(config: Config, workdir: Path) -> None:
  """Writes down which configuration the workdir is of."""
  file = workdir / CONFIG_FILE
  if parallel.is_first() and not file.exists():
    files.write_text(file, json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n")


def place_state(config: Config, task: Task, optimize, devices, store: CheckpointStore):
  """Returns (state, frozen parameters) on the devices, of the last checkpoint or before the first step."""
  create = functools.partial(step.init_state, optimizer=optimize, ema=config.ema_decay > 0)
  state = devices.create(create, devices.place(task.trainable))
  restored = store.restore(state, task.frozen)
  return state if restored is None else devices.place(restored), devices.place(task.frozen)


def run_steps(config: Config, task: Task, optimize, devices, state, frozen, store, writer, clock) -> None:
  """Trains to `config.steps` or until validation stops improving; logs, validates and saves on the way."""
  train = devices.compile_train(functools.partial(
    step.train_step, loss_fn=task.loss, optimizer=optimize, seed=config.seed, ema_decay=config.ema_decay,
    mean=devices.mean, microbatches=config.microbatches))
  validate = devices.compile_validation(
    lambda params, frozen, batch: devices.mean(task.validate(params, frozen, batch, step.validation_key(config.seed))))
  check_score(config, task, state, frozen)
  pending = []
  for number in range(int(state.step), config.steps):
    with clock.waiting():
      local = task.train_batch(number)
      batch = devices.place_batch(local)
    clock.count_flops(task.loss, state.params, frozen, local)
    state, entry = train(state, frozen, batch)
    pending.append(entry)
    done = number + 1
    writer.advance(done)
    if done % config.log_every == 0 or done == config.steps:
      log_training(writer, clock, done, pending)
      pending = []
    if done % config.validate_every == 0 or done == config.steps:
      with clock.paused(after=entry):
        entries = [validate(state.averaged, frozen, devices.place_batch(batch)) for batch in task.validation_batches()]
        scores = metrics.mean_of(entries)
        writer.write(done, "validation", scores)
        store.save(state, frozen, task.stats, scores | {"score": scores[config.best_by]})
      if stops_early(config, store, done):
        metrics.log.info("step %d: no better %s for %d validations; stopping", done, config.best_by, config.patience)
        return


def check_score(config: Config, task: Task, state, frozen) -> None:
  """Raises before the first step if validation will not find the score that `config.best_by` names."""
  key = step.validation_key(config.seed)
  names = jax.eval_shape(task.validate, state.averaged, frozen, next(iter(task.validation_batches())), key)
  if config.best_by not in names:
    raise unknown_name("score, as best_by,", config.best_by, names)


def stops_early(config: Config, store: CheckpointStore, done: int) -> bool:
  """Returns whether the best checkpoint is `config.patience` validations old; 0 never stops."""
  best = store.best_step()
  return config.patience > 0 and best is not None and done - best >= config.patience * config.validate_every


def log_training(writer: metrics.MetricWriter, clock: metrics.StepClock, done: int, pending) -> None:
  """Writes the means since the last entry; stops a run none of whose steps could be used."""
  means = metrics.mean_of(pending)
  writer.write(done, "train", means | clock.read(done))
  if means["skipped"] == 1.0:
    raise Pi0RagError(
      f"no step of the last {len(pending)} before step {done} was finite: lower learning_rate, or start again from"
      " an earlier checkpoint")


def finish(config: Config, task: Task, store: CheckpointStore, *, wall_clock_s: float) -> Path:
  """Returns what the best checkpoint becomes, with a record of how it came about."""
  best = store.best_step()
  if best is None:
    raise Pi0RagError(f"no checkpoint in '{store.root}' to make a policy of: config.steps is {config.steps}")
  record = {
    "config": json.loads(config.to_json_best_effort()),
    "step": best,
    "steps": config.steps,
    "validation": store.metrics(best),
    "wall_clock_s": wall_clock_s,
    **task.record(),
    "devices": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
    "versions": {"jax": jax.__version__, "numpy": np.__version__},
  }
  target = task.export(store, best, record)
  metrics.log.info("step %d written to %s", best, target)
  return target


def _short(value) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
