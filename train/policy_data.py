"""The data of the kind 'policy': data sets of any format, split by episode, and the batches of a step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from pi0rag_jax.curation import labels, views
from pi0rag_jax.data import columns
from pi0rag_jax.data.arrays import load_into_memory
from pi0rag_jax.data.cache import build_cache
from pi0rag_jax.data.columns import Columns
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.loader import Loader
from pi0rag_jax.data.running_stats import RunningStats, compute_norm_stats
from pi0rag_jax.data.sampling import Mixture, Sampler, Source
from pi0rag_jax.data.splits import split_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import norm_stats
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.robots.normalize import HIDDEN_STD, NormStats, normalize
from pi0rag_jax.robots.pipeline import as_stats, load_codec, policy_transforms
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.robots.transforms import Transform, compose
from pi0rag_jax.typing import Config
from train import data_entries, emphasis, metrics, parallel, tokenizers
from train.data_entries import Entry
from train.prepared import prepared

TRAIN, VALIDATION = "train", "validation"
MEMORY = "memory"  # as `config.cache`
TARGETS = "targets"
PROMPT_EPISODES = 200  # of a data set, whose prompts a tokenizer is trained on
FRAMES_OF_MEAN = 512  # enough for the mean colour


@dataclasses.dataclass(frozen=True)
class Part:
  """One data set of the mixture."""

  dataset: Dataset
  columns: Columns
  weight: float | None
  splits: Mapping[str, Sequence[int]]  # TRAIN and VALIDATION -> episodes
  path: Path
  facts: Mapping  # see `facts_of`


@dataclasses.dataclass(frozen=True)
class Data:
  """What is sampled for training and for validation, and what is known of it."""

  parts: Sequence[Part]
  mixtures: Mapping[str, Mixture]  # by split
  stats: Mapping[str, NormStats]  # of `state`, `actions` and, where an auxiliary head reads any, `targets`
  tokenizer: SentencePieceTokenizer


def load_data(config: Config, named: TrainConfig, model: PaliGemmaConfig, workdir: Path) -> Data:
  """Returns both splits with the transforms that make the model's samples."""
  parts = open_parts(config, named, workdir)
  prompts = lambda: sorted({prompt for part in parts for prompt in known_prompts(part)} | (  # noqa: E731
    {named.data.default_prompt} if named.data.default_prompt else set()))
  tokenizer = tokenizers.load(config.text_tokenizer, workdir, prompts, vocab_size=model.vocab_size)
  stats = load_stats(config, named, model, parts, workdir)
  group = policy_transforms(
    named.data, named.model, model, {name: stats[name] for name in ("state", "actions")}, text_tokenizer=tokenizer,
    action_codec=load_codec(named.model) if named.model.family == "pi0_fast" else None)

  def source(part: Part, split: str) -> Source:
    to_model = functools.partial(model_sample, part.columns, compose(group.inputs), tuple(config.auxiliary_targets),
                                 stats.get(TARGETS))
    dataset, transform = prepared(part.dataset, to_model, horizon=model.action_horizon)
    repeats = config.approach_repeats if split == TRAIN else 0
    again = emphasis.frames(part.dataset, part.columns, part.splits[split], repeats)
    shown = frames_where(part, part.splits[split], config.frames_where)
    return Source(dataset, part.weight, part.splits[split], transform, shown, again)

  mixtures = {split: Mixture([source(part, split) for part in parts]) for split in (TRAIN, VALIDATION)}
  for split, mixture in mixtures.items():
    metrics.log.info("%d frames for %s", mixture.num_frames, split)
  return Data(parts, mixtures, stats, tokenizer)


def model_sample(columns_: Columns, to_model: Transform, targets: tuple[str, ...], stats: NormStats | None,
                 sample: dict) -> dict:
  """Returns the model's entries of a data set's sample, with the normalized targets of an auxiliary head if any."""
  found = to_model(columns_(sample))
  if stats is None:
    return found
  return {**found, TARGETS: normalize(columns_.extra(sample["state"], targets), stats).astype(np.float32)}


def frames_where(part: Part, episodes: Sequence[int], names: Sequence[str]) -> np.ndarray | None:
  """Returns the frames of episodes in which none of these columns is 0, by number; None where no column is named.

  Errors: Pi0RagError if there are no such frames.
  """
  if not names:
    return None
  marked = [(part.columns.extra(part.dataset.read_episode(int(episode), images=False).state, names) != 0).all(axis=-1)
            for episode in episodes]
  found = np.flatnonzero(np.concatenate(marked))
  if not len(found):
    raise Pi0RagError(f"config.frames_where: '{part.path}' has no frame in which {' and '.join(names)} are not 0, in "
                      f"{len(episodes)} episodes")
  return found


def open_parts(config: Config, named: TrainConfig, workdir: Path) -> list[Part]:
  """Returns the data sets of `config.data`, split by episode."""
  parts = []
  for entry in data_entries.read_all(config, workdir):
    raw, found = open_source(config, named, entry, extras=extra_columns(config), labels=config.label_chunks)
    fractions = (1 - config.validation_fraction, config.validation_fraction, 0.0)
    dataset = cached(config, raw)
    splits = split_episodes(dataset.num_episodes, fractions=fractions, seed=config.split_seed)
    parts.append(Part(dataset, found, entry.weight, splits, entry.path, facts_of(raw)))
  return parts


def extra_columns(config: Config) -> tuple[str, ...]:
  """Returns the columns that are read beside the robot's."""
  emphasized = (emphasis.GRASPED,) if config.approach_repeats else ()
  return tuple(dict.fromkeys((*config.auxiliary_targets, *emphasized, *config.frames_where)))


def open_source(config: Config, named: TrainConfig, entry: Entry, **options) -> tuple[Dataset, Columns]:
  """Returns (data set, what makes a robot's dictionary of a sample) of an entry of `config.data`.

  As in openpi, the data's text is the prompt only where the named configuration says so, or the entry.
  """
  repack = columns.check_repack(named.data.repack, named.name)
  reader = dict(entry.options)
  fields = columns.check_fields(reader.pop("fields", {}))
  said = named.data.prompt_from_task or bool(columns.PROMPT_FIELDS & set(fields))
  dataset, found = columns.open_columns(
    entry.path, repack, action_columns=named.data.action_sequence_keys, prompts=said, fields=fields,
    skip_bad=config.skip_bad, **options, **reader)
  dataset = entry.chosen(dataset)
  if not config.successes_only:
    return dataset, found
  succeeded_J = labels.success_of(dataset, rule="flag") == 1
  if not succeeded_J.any():
    raise Pi0RagError(f"'{entry.path}' holds no successful episode: see config.successes_only")
  return views.view(dataset, succeeded_J), found


def cached(config: Config, dataset: Dataset) -> Dataset:
  """Returns the data set with its pictures decoded, in memory or below `config.cache`, where it names either.

  Video and compressed pictures are slow to read at random.
  """
  if not config.cache:
    return dataset
  size = config.cache_image_size or None
  if config.cache == MEMORY:
    return load_into_memory(dataset, image_size=size)
  metrics.log.info("decoding the pictures of '%s' into '%s', where they are not there yet", dataset.path, config.cache)
  return build_cache(dataset, config.cache, image_size=size, workers=config.threads)


def facts_of(dataset: Dataset) -> dict:
  """Returns `fps`, the `renderer` of simulated ones, and `tasks` of the Panda's: {name: episodes, frames, seeds}."""
  tasks, renderers = {}, set()
  source = getattr(dataset, "source", dataset)
  if source.format == "lerobot":
    renderers.add(source.meta.renderer)
  elif source.format == "episodes":
    for _, data in dataset.iterate():
      if "renderer" not in data.metadata:
        continue
      renderers.add(data.metadata["renderer"])
      task = tasks.setdefault(data.metadata["task"], {"episodes": 0, "frames": 0, "seeds": []})
      task["episodes"], task["frames"] = task["episodes"] + 1, task["frames"] + len(data)
      task["seeds"] = [f([*task["seeds"], int(data.metadata["seed"])]) for f in (min, max)]
  if len(renderers) > 1:
    raise Pi0RagError(f"one data set needs one renderer, seen: {', '.join(sorted(renderers))}")
  return {"fps": dataset.fps, "renderer": next(iter(renderers), ""), "tasks": tasks}


def known_prompts(part: Part) -> Iterator[str]:
  """Yields the prompts of some episodes, from all over the data set."""
  count = part.dataset.num_episodes
  for episode in range(0, count, max(1, count // PROMPT_EPISODES)):
    yield from set(part.dataset.read_episode(episode, images=False).prompts)


def load_stats(config: Config, named: TrainConfig, model: PaliGemmaConfig, parts: Sequence[Part],
               workdir: Path) -> dict[str, NormStats]:
  """Returns the statistics of `config.norm_stats`, or those of the training split, computed once per workdir."""
  given = as_stats(norm_stats.load_norm_stats(config.norm_stats, config.asset_id)) if config.norm_stats else {}
  if parallel.is_first() and not (workdir / "assets" / config.asset_id).is_dir():
    metrics.log.info("computing the statistics of the training episodes")
    stats = compute_stats(config, named, parts, horizon=model.action_horizon, given=given)
    norm_stats.save_norm_stats(workdir, config.asset_id, {name: each.to_dict() for name, each in stats.items()})
  parallel.wait_for_all("statistics")
  return as_stats(norm_stats.load_norm_stats(workdir, config.asset_id))


def compute_stats(config: Config, named: TrainConfig, parts: Sequence[Part], *, horizon: int,
                  given: Mapping[str, NormStats] | None = None, **options) -> dict[str, NormStats]:
  """Returns the statistics of what is normalized: the robot's states and, relative where so configured, actions.

  Args:
    named: the robot's configuration.
    parts: whose training episodes count.
    horizon: steps of an action chunk.
    given: those of states and actions, where they are known already.
    options: of compute_norm_stats.
  """
  observe = make_robot(named.data, named.model.family).observe
  mixture = Mixture([Source(part.dataset, part.weight, part.splits[TRAIN], compose((part.columns, observe)))
                     for part in parts])
  stats = dict(given or compute_norm_stats(mixture, horizon=horizon, **options))
  if config.hidden_state_dims:
    stats["state"] = hidden(stats["state"], config.hidden_state_dims)
  if config.auxiliary_targets:
    targets = RunningStats()
    for part in parts:
      for episode in part.splits[TRAIN]:
        state_FP = part.dataset.read_episode(int(episode), images=False).state
        targets.update(part.columns.extra(state_FP, config.auxiliary_targets))
    stats[TARGETS] = targets.result()
  return stats


def hidden(stats: NormStats, dims: Sequence[int]) -> NormStats:
  """Returns the statistics of the state under which no network sees its entries `dims`."""
  if wrong := [dim for dim in dims if not 0 <= dim < stats.dim]:
    raise Pi0RagError(f"hidden_state_dims {wrong}: the state has entries 0..{stats.dim - 1}")
  hides_P = np.isin(np.arange(stats.dim), dims)
  quantile = lambda values, sign: (  # noqa: E731
    None if values is None else np.where(hides_P, stats.mean + sign * HIDDEN_STD, values))
  return NormStats(stats.mean, np.where(hides_P, HIDDEN_STD, stats.std), quantile(stats.q01, -1),
                   quantile(stats.q99, 1))


def make_loader(config: Config, data: Data, split: str, start: int, *, horizon: int) -> Loader:
  """Returns the loader of this process's parts of the batches from a step on."""
  seed = config.seed if split == TRAIN else config.split_seed
  sampler = Sampler(data.mixtures[split], batch_size=config.batch_size, seed=seed,
                    process_index=jax.process_index(), process_count=jax.process_count())
  return Loader(sampler, horizon=horizon, start_step=start, prefetch=config.prefetch, threads=config.threads)


def mean_color(data: Data, *, horizon: int) -> np.ndarray:
  """Returns float64[3], the mean of some training pictures in [-1, 1], the same on every host."""
  size = min(FRAMES_OF_MEAN, data.mixtures[TRAIN].num_frames)
  with Loader(Sampler(data.mixtures[TRAIN], batch_size=size, seed=0), horizon=horizon) as loader:
    batch, _ = loader.read_batch(0)
  masks = batch.get("image_mask", {})
  seen = [pictures for name, pictures in batch["image"].items() if name not in masks or masks[name].any()]
  return np.mean([pictures.mean(axis=(0, 1, 2), dtype=np.float64) for pictures in seen], axis=0) / 255.0 * 2.0 - 1.0


class Batches:
  """Batches of steps in order, read ahead by threads; another step than the next starts the reading anew."""

  def __init__(self, make: Callable[[int], Loader]):
    self._make_loader = make
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

  def __init__(self, config: Config, data: Data, make: Callable[[int], Loader]):
    self._count = max(1, min(config.validation_batches, data.mixtures[VALIDATION].num_frames // config.batch_size))
    self._make_loader = make
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
  arrays |= {name: arrays[name].astype(np.float32) for name in ("state", "actions") if name in arrays}
  return arrays | {"index": (jax.process_index() * size + np.arange(size)).astype(np.int32)}


def data_record(data: Data) -> dict:
  """Returns how much of which data the run has seen.

  Which of the episodes validate follows from `split_seed` and `validation_fraction`.
  """
  tasks = {name: told for part in data.parts for name, told in part.facts["tasks"].items()}
  return {
    "frames": {split: sum(int(part.dataset.lengths[part.splits[split]].sum()) for part in data.parts)
               for split in (TRAIN, VALIDATION)},
    "data": [str(part.path) for part in data.parts],
    "damaged": [dict(part.dataset.damaged) for part in data.parts],
    **({"tasks": tasks} if tasks else {}),
  }
