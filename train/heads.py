"""Training of a policy head on a frozen backbone, from features that were computed once: the kind 'head'.

The backbone never enters a step or a checkpoint. What is exported is a policy directory of the family 'head', see
policy/head.py.
"""

import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import flax.struct
import jax

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import base, losses, presets, registry
from pi0rag_jax.models.heads.base import HeadConfig
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.policy import backbone
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.head import HeadUnits, check_actions, description
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.typing import Config, Params
from train import gripper_metrics, head_backbone, head_data, metrics, parallel, tokenizers
from train.checkpoint import CheckpointStore
from train.gripper_metrics import GripperCounts
from train.head_data import TRAIN, VALIDATION, Part
from train.policy_data import facts_of
from train.task import POLICY, Task

FEATURES_FOLDER = "features"
RECORD_FILE = "record.json"
# What data and backbone decide.
DERIVED = ("feature_dim", "state_dim", "action_dim")
SCORES = ("accuracy", "precision", "recall", "f1")


def make_task(config: Config, workdir: Path) -> Task:
  """Returns the training that a configuration of kind 'head' describes; see configs/mobile_vla_lstm.py."""
  parts = head_data.open_parts(config, workdir)
  stats = head_data.compute_stats(parts)
  prompts = sorted({str(prompt) for part in parts for prompt in part.prompts_F if prompt})
  extractor = head_backbone.make_extractor(config, stats["state"], workdir, prompts)
  head_config = make_head_config(config, extractor.backbone.hidden_size, stats)
  units = HeadUnits(head_config, stats["actions"], quantile=config.quantile_norm, closed=config.gripper_closed,
                    open=config.gripper_open)
  root = Path(config.feature_cache or workdir / FEATURES_FOLDER)
  caches = [head_data.features(config, part, extractor, root) for part in parts]
  if parallel.is_first():
    head_backbone.claim_features(
      workdir, {str(part.dataset.path): cache.directory.name for part, cache in zip(parts, caches)})
  table = head_data.Table(parts, caches, extractor, units, stride=config.stride)
  samplers = {split: head_data.make_sampler(config, parts, split) for split in (TRAIN, VALIDATION)}
  for split, sampler in samplers.items():
    metrics.log.info("%d windows in the split '%s'", sampler.mixture.num_frames, split)
  network = registry.make(head_config)
  params = jax.jit(functools.partial(base.init, network))(jax.random.key(config.seed))
  metrics.log.info("%d parameters in the head", sum(x.size for x in jax.tree.leaves(params)))
  return Task(
    trainable={POLICY: params},
    frozen={},
    loss=functools.partial(batch_loss, network),
    validate=functools.partial(validation_metrics, network),
    train_batch=functools.partial(head_data.sampled_batch, table, samplers[TRAIN]),
    validation_batches=functools.partial(validation_batches, config, table, samplers[VALIDATION]),
    stats=stats,
    record=functools.partial(data_record, parts, caches),
    export=functools.partial(export_policy, config, make_spec(config, extractor, units, parts), workdir),
  )


def make_head_config(config: Config, feature_dim: int, stats: Mapping[str, NormStats]) -> HeadConfig:
  """Returns the head that `config.head` describes: a preset or a kind by its name, and changes of its fields."""
  changes = {key: backbone.as_tuple(value) for key, value in config.head.to_dict().items()}
  name, preset = changes.pop("name", ""), changes.pop("preset", "")
  if bool(name) == bool(preset):
    raise Pi0RagError(f"config.head has name '{name}' and preset '{preset}': give one of them; names: "
                      f"{', '.join(registry.HEADS)}; presets: {', '.join(presets.PRESETS)}")
  for field in DERIVED:
    if field in changes:
      raise Pi0RagError(f"config.head.{field}: the data and the backbone decide it, leave it out")
  derived = {"feature_dim": feature_dim, "action_dim": stats["actions"].dim,
             "state_dim": stats["state"].dim if config.read_state else 0}
  if not preset:
    return registry.head_config(name, **changes, **derived)
  published = presets.preset(preset)
  if derived["action_dim"] != published.action_dim and "gripper_dims" not in changes:
    raise Pi0RagError(f"the preset '{preset}' has {published.action_dim} actions, the data {derived['action_dim']}: "
                      "config.head.gripper_dims must say which are the gripper's, such as (-1,), or ()")
  return presets.preset(preset, **changes, **derived)


def batch_loss(head: nn.Module, params: Params, frozen: Params, batch: Mapping, rng):
  """Returns (loss, metrics) of a batch of windows: a `step.LossFn` once the head is given; `rng` is for dropout."""
  del frozen
  return losses.head_loss(head, params[POLICY], {**batch, "index_B": batch["index"]}, rng)


def validation_metrics(head: nn.Module, params: Params, frozen: Params, batch: Mapping, rng) -> dict:
  """Returns the losses without dropout, and the gripper's scores where there is one."""
  del frozen, rng
  output = losses.window_output(head, params[POLICY], batch)
  _, found = losses.output_loss(head.config, output, batch)
  if not head.config.gripper_index:
    return found
  open_BWTG = batch["actions_BWTA"][..., list(head.config.gripper_index)]
  counts = gripper_metrics.count(output.gripper_logits, open_BWTG, losses.label_mask(batch))
  return found | {f"gripper_{name}": GripperScore(counts, name) for name in SCORES}


@flax.struct.dataclass
class GripperScore:
  """A metric whose mean over batches and devices is that of its counts: only then it is divided, and a number."""

  counts: GripperCounts
  name: str = flax.struct.field(pytree_node=False)  # one of SCORES

  def __add__(self, other: "GripperScore") -> "GripperScore":
    return GripperScore(self.counts + other.counts, self.name)

  def __truediv__(self, number: float) -> "GripperScore":
    return GripperScore(jax.tree.map(lambda count: count / number, self.counts), self.name)

  def __float__(self) -> float:
    return float(gripper_metrics.scores(self.counts)[self.name])


def validation_batches(config: Config, table: head_data.Table, sampler) -> Iterator[dict]:
  """Yields this process's parts of the same batches each time: each window at most once, if there are enough."""
  whole = sampler.mixture.num_frames // config.batch_size
  for number in range(max(1, min(config.validation_batches, whole))):
    yield head_data.sampled_batch(table, sampler, number)


def data_record(parts: Sequence[Part], caches) -> dict:
  """Returns which data the head has seen."""
  return {
    "data": [str(part.dataset.path) for part in parts],
    "episodes": {split: [len(part.splits[split]) for part in parts] for split in (TRAIN, VALIDATION)},
    "damaged": [dict(part.dataset.damaged) for part in parts],
    "features": [cache.directory.name for cache in caches],
  }


def make_spec(config: Config, extractor: FeatureExtractor, units: HeadUnits, parts: Sequence[Part]) -> PolicySpec:
  """Returns what the policy says of itself; raises where its data are not of `config.robot`."""
  first, facts = parts[0], [facts_of(part.dataset) for part in parts]
  (observation,) = first.observations(first.first_J[first.splits[TRAIN][:1]])
  extractor.model_input(observation)
  check_actions(extractor.robot, units)
  fields, chosen = config.fields.to_dict(), config.backbone.to_dict()
  _, chosen["checkpoint"] = backbone.make(chosen, tuple(config.fields.cameras))
  size = observation["image"][extractor.backbone.image_keys[0]].shape[:2]
  renderers = {each["renderer"] for each in facts} - {""}
  tick_hz = first.dataset.fps if first.dataset.says_fps else 1 / extractor.robot.tick_s
  return PolicySpec(
    name=config.name, model=ModelConfig(), sizes=None, control_hz=float(tick_hz), execute_steps=config.stride,
    data=DataConfig(robot=config.robot, asset_id=config.asset_id, default_prompt=fields.get("default_prompt") or None),
    tasks=tuple(sorted({task for each in facts for task in each["tasks"]})),
    renderer=renderers.pop() if len(renderers) == 1 else "",
    head=description(extractor, units, backbone=chosen, image_size=list(size), fields=fields,
                          state_in_prompt=config.state_in_prompt))


def export_policy(config: Config, spec: PolicySpec, workdir: Path, store: CheckpointStore, best: int, record: dict
                  ) -> Path:
  """Returns `<workdir>/policy`, replaced as a whole: what `policy.directory.load` loads, and record.json."""
  target, draft = workdir / "policy", workdir / "policy.tmp"
  if parallel.is_first():
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for item in ("params", "assets"):
      shutil.copytree(store.folder(best) / item, draft / item)
    tokenizer = Path(config.text_tokenizer) if config.text_tokenizer != tokenizers.TRAINED else workdir / TOKENIZER_NAME
    if tokenizer.is_file():
      shutil.copyfile(tokenizer, draft / TOKENIZER_NAME)
    if (weights := workdir / backbone.FOLDER).exists():
      shutil.copytree(weights, draft / backbone.FOLDER)
    spec.save(draft)
    (draft / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf8")
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
  parallel.wait_for_all("policy exported")
  return target
