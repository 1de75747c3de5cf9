"""Training of a small flow policy on the simulator's episodes, which are labelled with the expert's chunks.

An auxiliary head may read the simulator's truth off the prefix meanwhile; see `auxiliary`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.curation import labels, selection, views
from pi0rag_jax.curation.views import EpisodesView
from pi0rag_jax.data import pipeline
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import flow, pi0
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.policy import keys
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.typing import Config, Params
from train import auxiliary, batches, calibrate, export, initialize, metrics, parallel, tokenizers
from train.checkpoint import CheckpointStore
from train.task import Task


@dataclasses.dataclass(frozen=True)
class Data:
  """All frames, the rows of both splits, their statistics and the tokenizer that made their tokens."""

  frames: pipeline.Frames
  train: np.ndarray  # int[R], rows of the training split
  epoch: np.ndarray  # int[R], the same as often as an epoch shows them
  validation: np.ndarray  # int[R]
  source: batches.BatchSource
  stats: Mapping[str, NormStats]
  tokenizer: Path


def make_task(config: Config, workdir: Path) -> Task:
  """Returns the training that a configuration of kind 'flow' describes; see configs/panda_small.py."""
  model_config = pi0.Pi0Config.from_dict(config.model.to_dict())
  data = load_data(config, model_config, workdir)
  params = initialize.initial_params(
    model_config, data.frames.images, seed=config.seed, targets=data.source.targets_FG.shape[-1],
    checkpoint=config.init_checkpoint)
  metrics.log.info("%d parameters in the policy", sum(x.size for x in jax.tree.leaves(params["policy"])))
  model = pi0.Pi0(model_config)
  loss = functools.partial(batch_loss, model, draws=config.draws, auxiliary_weight=config.auxiliary_weight)
  scale_A = jnp.asarray(data.stats["actions"].std, jnp.float32)
  return Task(
    trainable=params,
    frozen={},
    loss=loss,
    validate=functools.partial(validation_metrics, model, loss=loss, scale_A=scale_A, config=config),
    train_batch=functools.partial(train_batch, config, data),
    validation_batches=functools.partial(validation_batches, config, data),
    stats={name: data.stats[name] for name in ("state", "actions")},
    record=functools.partial(data_record, data),
    export=functools.partial(export_policy, config, model_config, data, workdir),
  )


def load_data(config: Config, model_config: pi0.Pi0Config, workdir: Path) -> Data:
  """Returns the splits of `config.data_dir`; the tokenizer is in the workdir, see `tokenizers`."""
  frames = load_frames(config)
  train, validation = pipeline.split_by_episode(
    frames, fraction=config.validation_fraction, seed=config.split_seed)
  metrics.log.info("%d training frames, %d validation frames of %s", len(train), len(validation),
                   ", ".join(frames.tasks))
  targets = tuple(config.auxiliary_targets)
  stats = batches.compute_statistics(frames, train, targets, hidden_state_dims=config.hidden_state_dims)
  tokenizer = tokenizers.load(
    config.text_tokenizer, workdir, lambda: frames.prompts, vocab_size=model_config.vocab_size)
  source = batches.make_source(frames, stats, tokenizer, model=model_config, targets=targets)
  epoch = batches.emphasized_rows(frames, train, config.approach_repeats)
  return Data(frames, train, epoch, validation, source, stats, tokenizer.path)


def load_frames(config: Config) -> pipeline.Frames:
  """Returns the frames of `config.data_dir`, of the episodes that `config.selection` keeps where there is one."""
  return pipeline.load_frames(data_directory(config), kept=kept_places(config))


def data_directory(config: Config) -> Path:
  """Returns `config.data_dir`, or raises and says how it is made."""
  if not Path(config.data_dir).is_dir():
    raise Pi0RagError(f"no data directory '{config.data_dir}'; collect it with: {config.make_data}")
  return Path(config.data_dir)


def open_demonstrations(config: Config) -> EpisodesView:
  """Returns the episodes that train as a data set: the successes, of those that `config.selection` keeps."""
  dataset = open_dataset(data_directory(config))
  if file := config.get("selection"):
    dataset = selection.choose(dataset, file)
  succeeded_E = labels.success_of(dataset, rule="flag") == 1
  if not succeeded_E.any():
    raise Pi0RagError(f"'{config.data_dir}' holds no successful episode")
  return views.view(dataset, succeeded_E)


def kept_places(config: Config) -> pipeline.Places | None:
  """Returns where the episodes lie that `config.selection` keeps; None where it keeps all."""
  file = config.get("selection")
  return selection.kept_places(config.data_dir, file) if file else None


def train_batch(config: Config, data: Data, number: int) -> dict:
  """Returns this process's part of the batch of a step."""
  rows = data.epoch[pipeline.batch_rows(len(data.epoch), config.batch_size, seed=config.seed, step=number)]
  return _local_batch(data.source, rows)


def validation_batches(config: Config, data: Data) -> Iterator[dict]:
  """Yields this process's parts of the same `validation_batches` batches each time."""
  size = min(config.batch_size * config.validation_batches, len(data.validation))
  for number in range(max(1, size // config.batch_size)):
    order = pipeline.batch_rows(len(data.validation), config.batch_size, seed=config.split_seed, step=number)
    yield _local_batch(data.source, data.validation[order])


def batch_loss(model: pi0.Pi0, params: Params, frozen: Params, batch: Mapping, rng, *, draws: int,
               auxiliary_weight: float):
  """Returns (loss, metrics) of a batch: a `step.LossFn` once the model and what follows `rng` are given.

  Args:
    model: the network.
    params: `policy` and `auxiliary`.
    frozen: empty.
    batch: `observation` (openpi's dictionary), `actions_BTA` normalized and padded, `targets_BG` normalized, `index`.
    rng: key of this step, the same on every device.
    draws: (time, noise) pairs per encoded observation.
    auxiliary_weight: of the squared error of the auxiliary head.
  """
  assert not frozen
  observation = Observation.from_dict(batch["observation"])
  actions_BTA = batch["actions_BTA"]
  noise_DBTA, time_DB = draw_noise(rng, batch["index"], actions_BTA.shape[1:], draws)
  losses_DBT, prefix = pi0.loss_draws(model, params["policy"], observation, actions_BTA, noise_DBTA, time_DB)
  targets_BG = auxiliary.predict(params["auxiliary"], prefix)
  flow_loss = jnp.mean(losses_DBT)
  auxiliary_loss = jnp.mean(jnp.square(targets_BG - batch["targets_BG"]))
  loss = flow_loss + auxiliary_weight * auxiliary_loss
  return loss, {"loss": loss, "flow_loss": flow_loss, "auxiliary_loss": auxiliary_loss}


def draw_noise(rng, index_B, chunk_shape, draws: int):
  """Returns (noise float[draws, B, T, A], time float[draws, B]), the same however the batch is split."""

  def draw(key):
    noise_key, time_key = jax.random.split(key)
    return jax.random.normal(noise_key, (draws, *chunk_shape)), flow.sample_time(time_key, (draws,))

  return jax.vmap(draw, out_axes=1)(parallel.draw_keys(rng, index_B))


def validation_metrics(model: pi0.Pi0, params: Params, frozen: Params, batch: Mapping, rng, *, loss, scale_A,
                       config: Config):
  """Returns the losses and how far the chunk sampled from z = 0 is from the label.

  `path_error_mm`: distance between both tool positions after the `execute_steps` that are carried out;
  `gripper_error`: mean absolute difference of the commanded opening there. `scale_A` turns errors into metres.
  """
  _, found = loss(params, frozen, batch, rng)
  observation = Observation.from_dict(batch["observation"])
  chunk_BTA = pi0.sample_actions(
    model, params["policy"], observation, jnp.zeros_like(batch["actions_BTA"]), num_steps=config.denoising_steps
  )
  used = (chunk_BTA - batch["actions_BTA"])[:, : config.execute_steps, : scale_A.shape[0]] * scale_A
  path_B3 = jnp.sum(used[..., list(config.position_dims)], axis=1)
  return found | {
    "path_error_mm": 1000 * jnp.mean(jnp.linalg.norm(path_B3, axis=-1)),
    "gripper_error": jnp.mean(jnp.abs(used[..., list(config.gripper_dims)])),
  }


def data_record(data: Data) -> dict:
  """Returns how many frames and episodes of each task, and of which seeds, the policy has seen.

  Which of the episodes validate follows from `split_seed` and `validation_fraction`.
  """
  frames = data.frames
  tasks = {}
  for i, task in enumerate(frames.tasks):
    seeds = np.unique(frames.seeds[frames.task_index == i])
    tasks[task] = {"episodes": len(seeds), "frames": int((frames.task_index == i).sum()),
                   "seeds": [int(seeds[0]), int(seeds[-1])]}
  return {"frames": {"train": len(data.train), "validation": len(data.validation)}, "tasks": tasks}


def export_policy(config: Config, model_config: pi0.Pi0Config, data: Data, workdir: Path, store: CheckpointStore,
                  best: int, record: dict) -> Path:
  """Returns the policy directory made of the best checkpoint, with the statistics of its keys."""
  spec = export.make_spec(config, model_config, data.frames)
  target = workdir / "policy"
  if parallel.is_first():
    export.export_policy(store.folder(best), data.tokenizer, target, spec=spec, record=record)
    observations = list(calibrate.demonstrations(config.data_dir, kept_places(config)))
    calibrate.calibrate(target, observations, keys.KeyRecipe()).save(target)
  parallel.wait_for_all("policy exported")
  return target


def _local_batch(source: batches.BatchSource, rows) -> dict:
  index_B = np.arange(len(rows), dtype=np.int32)
  return source.batch(parallel.local_rows(rows)) | {"index": parallel.local_rows(index_B)}
