"""Training of pi0, pi0.5 or pi0-FAST, whole or by adapters, from scratch or released weights: the kind 'policy'.

Robot, normalization and the order of transforms are those of a named configuration, or of one's own file, so what is
trained here is served as it was trained.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters, augmentation, registry
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.policy import keys
from pi0rag_jax.policy.directory import OPENPI_EXECUTE_SHARE
from pi0rag_jax.policy.network import Units
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.typing import Config, Params
from train import calibrate, export, metrics, partition, policy_data, policy_loss
from train.checkpoint import POLICY, CheckpointStore
from train.named import named_config, read_model
from train.policy_data import TARGETS, TRAIN, VALIDATION, Data
from train.policy_loss import AUXILIARY, PathError
from train.task import Task

IMAGE_TOWER = "PaliGemma/img"
FRESH = "none"  # as `init_checkpoint`


def make_task(config: Config, workdir: Path) -> Task:
  """Returns the training that a configuration of kind 'policy' describes; see configs/openpi_finetune.py."""
  named = named_config(config)
  model = read_model(config, named)
  data = policy_data.load_data(config, named, model, workdir)
  spec = make_spec(config, named, model, data)
  trainable, frozen = initial_params(config, named, model, data)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  metrics.log.info("%d parameters train, %d are frozen", count(trainable), count(frozen))
  network = registry.network(model)
  chosen = {"draws": config.draws, "auxiliary_weight": config.auxiliary_weight}
  loader = lambda split: functools.partial(  # noqa: E731
    policy_data.make_loader, config, data, split, horizon=model.action_horizon)
  train_batches = policy_data.Batches(loader(TRAIN))
  return Task(
    trainable=trainable,
    frozen={POLICY: frozen},
    loss=functools.partial(policy_loss.batch_loss, network, **chosen,
                           options=augmentation.Augmentation() if config.augment else None),
    validate=functools.partial(policy_loss.validation_metrics, network, **chosen,
                               path_error=path_error(spec, data) if config.validate_paths else None),
    train_batch=train_batches,
    validation_batches=policy_data.ValidationBatches(config, data, loader(VALIDATION)),
    stats={name: data.stats[name] for name in ("state", "actions")},
    record=functools.partial(policy_data.data_record, data),
    export=functools.partial(export_policy, config, spec, model, data, workdir),
    close=train_batches.close,
  )


def make_spec(config: Config, named: TrainConfig, model: PaliGemmaConfig, data: Data) -> PolicySpec:
  """Returns what the policy says of itself, its adapters merged."""
  facts = [part.facts for part in data.parts]
  names = dict.fromkeys(each["renderer"] for each in facts)
  if len(names) > 1:
    raise Pi0RagError(f"the data sets have pictures of several renderers: {', '.join(map(repr, names))}")
  plain = {tower: dataclasses.replace(getattr(model, tower), lora_attn=None, lora_ffn=None)
           for tower in ("paligemma", "expert") if hasattr(model, tower)}
  return PolicySpec(
    name=config.name, model=named.model, sizes=dataclasses.replace(model, remat="none", **plain), data=named.data,
    control_hz=config.control_hz or facts[0]["fps"], start=config.start, denoising_steps=config.denoising_steps,
    execute_steps=config.execute_steps or max(model.action_horizon // OPENPI_EXECUTE_SHARE, 1),
    tasks=tuple(sorted({task for each in facts for task in each["tasks"]})), renderer=next(iter(names)),
    metadata=named.policy_metadata or {})


def path_error(spec: PolicySpec, data: Data) -> PathError:
  """Returns the validation of whole chunks. Errors: Pi0RagError for pi0-FAST, whose tokens the host reads."""
  if spec.family == "pi0_fast":
    raise Pi0RagError("validate_paths: allowed for pi0 and pi0.5, whose chunks the device samples")
  robot = make_robot(spec.data, spec.family)
  return PathError(Units(spec, robot, data.stats), robot.actions or ActionSpace.of_stats(data.stats["actions"]),
                   spec.execute_steps, spec.denoising_steps)


def initial_params(config: Config, named: TrainConfig, model: PaliGemmaConfig,
                   data: Data | None = None) -> tuple[Params, Params]:
  """Returns (trainable, frozen) parameters; what is frozen is in bfloat16, as openpi keeps it.

  Args:
    data: whose mean picture fresh parameters remove, and whose targets an auxiliary head reads; None has neither.
  """

  def fresh(key):
    params = registry.init(model, key)
    return without_effect(params) if config.lora_identity else params

  source = config.init_checkpoint or named.weights
  key = jax.random.key(config.seed)
  if source is None or source == FRESH:
    # Compiled as one program: run operation by operation, a fresh model takes minutes on a busy machine.
    params = jax.jit(fresh)(key)
    if config.center_images and data is not None:
      params = center_images(params, policy_data.mean_color(data, horizon=model.action_horizon))
  else:
    allowed = checkpoints.ANY if str(source).endswith(".npz") else checkpoints.LORA
    params = checkpoints.load_partial(source, fresh, key, fresh=allowed, dtype="float32")
  trainable, frozen = partition.split(params, trainable_paths(config, model))
  if data is None or TARGETS not in data.stats:
    return {POLICY: trainable}, partition.cast(frozen, jnp.bfloat16)
  head = policy_loss.init_head(jax.random.fold_in(key, 1), model, data.stats[TARGETS].dim)
  return {POLICY: trainable, AUXILIARY: head}, partition.cast(frozen, jnp.bfloat16)


def trainable_paths(config: Config, model: PaliGemmaConfig) -> Callable[[str], bool]:
  """Returns whether the parameter at a '/'-joined path trains: openpi's rule, and the image tower's own."""
  return lambda path: adapters.is_trainable(path, model) and not (
    config.freeze_image_tower and path.startswith(IMAGE_TOWER))


def without_effect(params: Params) -> Params:
  """Returns the parameters with the second factor of every adapter zero, so that fresh adapters change nothing."""
  zeroed = lambda path, leaf: leaf * 0 if str(path[-1].key).endswith("lora_b") else leaf  # noqa: E731
  return jax.tree_util.tree_map_with_path(zeroed, params)


def center_images(params: Params, mean_3: np.ndarray) -> Params:
  """Returns the parameters with a patch bias that cancels the mean picture colour, in [-1, 1].

  Pictures reach the model as in openpi, scaled to [-1, 1] and not centred; a simulator's background is far from grey,
  and without this all patches start out alike.
  """
  embedding = params["PaliGemma"]["img"]["embedding"]
  bias = embedding["bias"] - jnp.einsum("hwcd,c->d", embedding["kernel"], mean_3.astype(np.float32))
  tower = {**params["PaliGemma"]["img"], "embedding": {**embedding, "bias": bias.astype(embedding["bias"].dtype)}}
  return {**params, "PaliGemma": {**params["PaliGemma"], "img": tower}}


def export_policy(config: Config, spec: PolicySpec, model: PaliGemmaConfig, data: Data, workdir: Path,
                  store: CheckpointStore, best: int, record: dict) -> Path:
  """Returns `<workdir>/policy`: the best checkpoint, with the statistics of its keys over some training episodes."""

  def fill(draft: Path) -> None:
    export.write_policy(
      draft, store.folder(best), spec, trained=model, record={**record, "columns": _json(spec.data.repack)},
      tokenizer=data.tokenizer.path if config.text_tokenizer else None,
      robot_file=Path(config.openpi) if callable(spec.data.robot) else None)
    if not config.key_source:
      return
    seen = [each for part in data.parts for each in calibrate.observations(
      part.dataset, part.columns, part.splits[TRAIN], share=1 / len(data.parts))]
    calibrate.calibrate(draft, seen, keys.KeyRecipe(source=config.key_source)).save(draft)

  return export.replace(workdir / "policy", fill)


def _json(structure) -> dict:
  return json.loads(json.dumps(structure))
