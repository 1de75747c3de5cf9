"""Fine-tuning of an openpi model, whole or by adapters, on robot data in any format: the kind 'openpi'.

Robot, normalization and the order of transforms are those of a named configuration, or of one's own file, so what is
trained here is served by `create_policy` with the same configuration.
"""

import dataclasses
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.data import columns
from pi0rag_jax.data.cache import build_cache
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.loader import Loader
from pi0rag_jax.data.running_stats import compute_norm_stats
from pi0rag_jax.data.sampling import Mixture, Sampler, Source
from pi0rag_jax.data.splits import split_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters, augmentation, flow, pi0, pi0_fast, registry
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config, Pi0FastConfig
from pi0rag_jax.openpi import checkpoints, norm_stats
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.openpi.named_configs import get_config
from pi0rag_jax.policy import openpi_policy
from pi0rag_jax.policy.spec import TOKENIZER_NAME
from pi0rag_jax.robots import transforms
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.robot import robot_transforms
from pi0rag_jax.typing import Config, Params
from train import data_entries, metrics, parallel, partition, tokenizers
from train.checkpoint import CheckpointStore
from train.data_entries import Entry
from train.task import POLICY, Task

RECORD_FILE = "record.json"
IMAGE_TOWER = "PaliGemma/img"
FRESH = "none"  # as `init_checkpoint`


@dataclasses.dataclass(frozen=True)
class Data:
  """What is sampled for training and for validation, and what is known of it."""

  train: Mixture
  validation: Mixture
  stats: Mapping[str, NormStats]


def make_task(config: Config, workdir: Path) -> Task:
  """Returns the training that a configuration of kind 'openpi' describes; see configs/pi0_libero_lora.py."""
  named = adjusted(config, read_config(config.openpi))
  model = read_model(config, named)
  data = load_data(config, named, model, workdir)
  trainable, frozen = initial_params(config, named, model)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  metrics.log.info("%d parameters train, %d are frozen", count(trainable), count(frozen))
  network = registry.network(model)
  options = augmentation.Augmentation() if config.augment else None
  loss = functools.partial(batch_loss, network, options=options)
  reader = lambda mixture, seed, start: Loader(  # noqa: E731
    Sampler(mixture, batch_size=config.batch_size, seed=seed, process_index=jax.process_index(),
            process_count=jax.process_count()),
    horizon=model.action_horizon, start_step=start, prefetch=config.prefetch, threads=config.threads)
  train_batches = Batches(functools.partial(reader, data.train, config.seed))
  return Task(
    trainable={POLICY: trainable},
    frozen={POLICY: frozen},
    loss=loss,
    validate=functools.partial(validation_metrics, network),
    train_batch=train_batches,
    validation_batches=ValidationBatches(config, data, functools.partial(reader, data.validation, config.split_seed)),
    stats=data.stats,
    record=functools.partial(data_record, data),
    export=functools.partial(export_policy, config, model, workdir),
    close=train_batches.close,
  )


def read_config(name: str) -> TrainConfig:
  """Returns a named configuration of openpi, or the one that a file's `get_config()` returns."""
  if not name.endswith(".py"):
    return get_config(name)
  path = Path(name)
  if not path.is_file():
    raise Pi0RagError(f"openpi = '{name}': there is no such file; a configuration's name has no '.py'")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = module.get_config() if hasattr(module, "get_config") else None
  if not isinstance(found, TrainConfig):
    raise Pi0RagError(f"'{name}' has no get_config() that returns a TrainConfig; see configs/my_robot.py")
  return found


def adjusted(config: Config, named: TrainConfig) -> TrainConfig:
  """Returns the configuration with adapters and a column of actions as `config` asks for."""
  model, data = named.model, named.data
  if config.lora:
    lora = lambda variant: variant if variant.endswith("_lora") else f"{variant}_lora"  # noqa: E731
    model = dataclasses.replace(model, paligemma_variant=lora(model.paligemma_variant),
                                action_expert_variant=lora(model.action_expert_variant))
  if config.action_column:
    data = dataclasses.replace(data, action_sequence_keys=(config.action_column,))
  return dataclasses.replace(named, model=model, data=data)


def read_model(config: Config, named: TrainConfig) -> PaliGemmaConfig:
  """Returns the sizes: `config.model` where it gives any, else those of the named configuration."""
  if not config.model:
    return dataclasses.replace(named.model.build(), remat=config.remat)
  kind = Pi0FastConfig if named.model.family == "pi0_fast" else Pi0Config
  data = {"pi05": named.model.family == "pi05"} if kind is Pi0Config else {}
  return kind.from_dict(data | config.model.to_dict() | {"remat": config.remat})


def load_data(config: Config, named: TrainConfig, model: PaliGemmaConfig, workdir: Path) -> Data:
  """Returns both splits with the transforms that make the model's samples."""
  opened, splits = open_sources(config, named, workdir)
  prompts = lambda: sorted({prompt for dataset, _, _ in opened for prompt in known_prompts(dataset)})  # noqa: E731
  tokenizer = tokenizers.load(config.text_tokenizer, workdir, prompts, vocab_size=model.vocab_size)
  stats = load_stats(config, named, model, opened, splits, workdir)
  group = openpi_policy.policy_transforms(
    named.data, named.model, model, stats, text_tokenizer=tokenizer, action_codec=load_codec(config, named))
  mixtures = [
    Mixture([
      Source(dataset, weight, split[name], transforms.compose((to_robot, *group.inputs)))
      for (dataset, to_robot, weight), split in zip(opened, splits)])
    for name in ("train", "validation")]
  for name, mixture in zip(("training", "validation"), mixtures):
    metrics.log.info("%d %s frames", mixture.num_frames, name)
  return Data(*mixtures, stats=stats)


def open_sources(config: Config, named: TrainConfig, workdir: Path):
  """Returns (what `open_source` returns, episodes by the name of their split), each per entry of `config.data`."""
  opened = [open_source(config, named, entry) for entry in data_entries.read_all(config, workdir)]
  if config.cache:
    opened = [(cached(config, dataset), to_robot, weight) for dataset, to_robot, weight in opened]
  fractions = (1 - config.validation_fraction, config.validation_fraction, 0.0)
  splits = [split_episodes(dataset.num_episodes, fractions=fractions, seed=config.split_seed)
            for dataset, _, _ in opened]
  return opened, splits


def cached(config: Config, dataset: Dataset) -> Dataset:
  """Returns the data set with its pictures decoded once below `config.cache`; video is slow to read at random."""
  metrics.log.info("decoding the pictures of '%s' into '%s', where they are not there yet", dataset.path, config.cache)
  return build_cache(dataset, config.cache, image_size=config.cache_image_size or None, workers=config.threads)


def open_source(config: Config, named: TrainConfig, entry: Entry):
  """Returns (data set, what makes a robot's dictionary of a sample, weight) of an entry of `config.data`."""
  repack = columns.check_repack(config.columns.to_dict() if config.columns else named.data.repack, named.name)
  dataset, to_robot = columns.open_columns(
    entry.path, repack, action_columns=named.data.action_sequence_keys, skip_bad=config.skip_bad, **entry.options)
  return entry.chosen(dataset), to_robot, entry.weight


def known_prompts(dataset: Dataset, episodes: int = 200) -> Iterator[str]:
  """Yields the prompts of the first episodes."""
  for episode in range(min(dataset.num_episodes, episodes)):
    yield from set(dataset.read_episode(episode, images=False).prompts)


def load_codec(config: Config, named: TrainConfig):
  """Returns the codec of pi0-FAST's actions; None for families that write none."""
  if named.model.family != "pi0_fast":
    return None
  changes = {"action_tokenizer_path": config.action_tokenizer} if config.action_tokenizer else {}
  return openpi_policy.load_codec(dataclasses.replace(named.model, **changes))


def load_stats(config: Config, named: TrainConfig, model: PaliGemmaConfig, opened, splits, workdir: Path) -> dict:
  """Returns the statistics of `config.norm_stats`, or those of the training split, computed once per workdir."""
  if config.norm_stats:
    loaded = norm_stats.load_norm_stats(config.norm_stats, config.asset_id)
    return {name: NormStats.from_dict(values) for name, values in loaded.items()}
  if parallel.is_first() and not (workdir / "assets" / config.asset_id).is_dir():
    metrics.log.info("computing the statistics of the training episodes")
    stats = compute_stats(named, opened, [split["train"] for split in splits], horizon=model.action_horizon)
    norm_stats.save_norm_stats(workdir, config.asset_id, {name: each.to_dict() for name, each in stats.items()})
  parallel.wait_for_all("statistics")
  loaded = norm_stats.load_norm_stats(workdir, config.asset_id)
  return {name: NormStats.from_dict(values) for name, values in loaded.items()}


def compute_stats(named: TrainConfig, opened, episodes, *, horizon: int, **options) -> dict[str, NormStats]:
  """Returns the statistics of what is normalized: the robot's states and, relative where so configured, actions.

  Args:
    named: the robot's configuration.
    opened: as `open_sources` returns them.
    episodes: those of each data set that count.
    horizon: steps of an action chunk.
    options: of compute_norm_stats.
  """
  group = robot_transforms(named.data, named.model.family)
  deltas = () if named.data.delta_mask is None else (transforms.DeltaActions(named.data.delta_mask),)
  mixture = Mixture([
    Source(dataset, weight, chosen, transforms.compose((to_robot, *group.inputs, *deltas)))
    for (dataset, to_robot, weight), chosen in zip(opened, episodes)])
  return compute_norm_stats(mixture, horizon=horizon, **options)


def initial_params(config: Config, named: TrainConfig, model: PaliGemmaConfig) -> tuple[Params, Params]:
  """Returns (trainable, frozen) parameters; what is frozen is in bfloat16, as openpi keeps it."""

  def fresh(key):
    params = registry.init(model, key)
    return without_effect(params) if config.lora_identity else params

  source = config.init_checkpoint or named.weights
  key = jax.random.key(config.seed)
  if source is None or source == FRESH:
    params = jax.jit(fresh)(key)
  else:
    allowed = checkpoints.ANY if str(source).endswith(".npz") else checkpoints.LORA
    params = checkpoints.load_partial(source, fresh, key, fresh=allowed, dtype="float32")
  trainable, frozen = partition.split(params, trainable_paths(config, model))
  return trainable, partition.cast(frozen, jnp.bfloat16)


def trainable_paths(config: Config, model: PaliGemmaConfig) -> Callable[[str], bool]:
  """Returns whether the parameter at a '/'-joined path trains: openpi's rule, and the image tower's own."""
  return lambda path: adapters.is_trainable(path, model) and not (
    config.freeze_image_tower and path.startswith(IMAGE_TOWER))


def without_effect(params: Params) -> Params:
  """Returns the parameters with the second factor of every adapter zero, so that fresh adapters change nothing."""
  zeroed = lambda path, leaf: leaf * 0 if str(path[-1].key).endswith("lora_b") else leaf  # noqa: E731
  return jax.tree_util.tree_map_with_path(zeroed, params)


def batch_loss(model: pi0.Pi0 | pi0_fast.Pi0Fast, params: Params, frozen: Params, batch: Mapping, rng, *,
               options: augmentation.Augmentation | None):
  """Returns (loss, metrics) of a batch: a `step.LossFn` once model and options are given.

  Args:
    batch: openpi's dictionary of an observation, `actions` float[B, T, A], normalized and padded, and `index`.
    rng: key of this step, the same on every device.
    options: of the augmentation; None leaves pictures as they are.
  """
  whole = partition.join(params[POLICY], frozen[POLICY])
  observation = Observation.from_dict(batch)
  keys_B = jax.vmap(lambda key: jax.random.split(key, 3))(parallel.draw_keys(rng, batch["index"]))
  if options is not None:
    observation = augmentation.augment_each(keys_B[:, 0], observation, options=options)
  if isinstance(model, pi0_fast.Pi0Fast):
    loss = jnp.mean(pi0_fast.loss(model, whole, observation))
  else:
    actions_BTA = batch["actions"]
    noise_BTA = jax.vmap(lambda key: jax.random.normal(key, actions_BTA.shape[1:]))(keys_B[:, 1])
    time_B = jax.vmap(lambda key: flow.sample_time(key, ()))(keys_B[:, 2])
    loss = jnp.mean(pi0.loss(model, whole, observation, actions_BTA, noise_BTA, time_B))
  return loss, {"loss": loss}


def validation_metrics(model, params: Params, frozen: Params, batch: Mapping, rng) -> dict:
  """Returns the loss without augmentation, with the same draws at every validation."""
  return batch_loss(model, params, frozen, batch, rng, options=None)[1]


class Batches:
  """Batches of steps in order, read ahead by threads; another step than the next starts the reading anew."""

  def __init__(self, make_loader: Callable[[int], Loader]):
    self._make_loader = make_loader
    self._loader: Loader | None = None
    self._next = -1

  def __call__(self, number: int) -> dict:
    """Returns this process's part of the batch of a step."""
    if self._loader is None or number != self._next:
      self.close()
      self._loader = self._make_loader(number)
    step, batch = next(self._loader)
    assert step == number
    self._next = number + 1
    return with_index(batch)

  def close(self) -> None:
    """Stops the threads."""
    if self._loader is not None:
      self._loader.close()


class ValidationBatches:
  """The same batches each time, read once and kept."""

  def __init__(self, config: Config, data: Data, make_loader: Callable[[int], Loader]):
    self._count = max(1, min(config.validation_batches, data.validation.num_frames // config.batch_size))
    self._make_loader = make_loader
    self._batches: list[dict] = []

  def __call__(self) -> Iterator[dict]:
    if not self._batches:
      with self._make_loader(0) as loader:
        self._batches = [with_index(loader.read_batch(number)[0]) for number in range(self._count)]
    yield from self._batches


def with_index(batch: Mapping) -> dict:
  """Returns the batch's arrays with each example's place in the global batch."""
  arrays = {name: value for name, value in batch.items() if not isinstance(value, list)}
  size = len(arrays["state"])
  arrays["state"] = arrays["state"].astype(np.float32)
  if "actions" in arrays:
    arrays["actions"] = arrays["actions"].astype(np.float32)
  return arrays | {"index": (jax.process_index() * size + np.arange(size)).astype(np.int32)}


def data_record(data: Data) -> dict:
  """Returns how much of which data the run has seen."""
  parts = {"train": data.train, "validation": data.validation}
  return {
    "frames": {name: mixture.num_frames for name, mixture in parts.items()},
    "data": [str(source.dataset.path) for source in data.train.sources],
    "damaged": [dict(source.dataset.damaged) for source in data.train.sources],
  }


def export_policy(config: Config, model: PaliGemmaConfig, workdir: Path, store: CheckpointStore, best: int,
                  record: dict) -> Path:
  """Returns `<workdir>/policy`, which `create_policy` and openpi serve: the best checkpoint, its adapters merged.

  The checkpoint itself, with its adapters, stays for training to go on from.
  """
  target, draft = workdir / "policy", workdir / "policy.tmp"
  if parallel.is_first():
    shutil.rmtree(draft, ignore_errors=True)
    folder = store.folder(best)
    params, plain = adapters.merge(checkpoints.load_params(folder), model)
    checkpoints.save_params(draft, params)
    shutil.copytree(folder / "assets", draft / "assets")
    facts = {**record, "model": plain.to_dict(), "openpi": config.openpi, "checkpoint": best}
    (draft / RECORD_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf8")
    if config.text_tokenizer == tokenizers.TRAINED:
      shutil.copyfile(workdir / TOKENIZER_NAME, draft / TOKENIZER_NAME)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
  parallel.wait_for_all("policy exported")
  return target
