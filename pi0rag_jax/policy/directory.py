"""One way to load a policy, whatever it is: `load("panda_tasks")`, a directory, an openpi configuration, a file.

A policy directory has `params/`, `assets/`, `policy.json` and, where the tokenizer is not PaliGemma's,
`tokenizer.model`; key statistics and a head's backbone lie beside them. `train.launch` writes one.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from pi0rag_jax import schema
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import family, registry
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import checkpoints, download
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.openpi.config_file import config_of, load_module, read_config
from pi0rag_jax.openpi.named_configs import CONFIGS
from pi0rag_jax.policy import head, keys
from pi0rag_jax.policy.network import FlowPolicy, TokensPolicy
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import FILE_NAME, HEAD, NEW, TOKENIZER_NAME, PolicySpec
from pi0rag_jax.robots import action_tokens, checks, plain
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.pipeline import as_stats, policy_transforms
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Params

ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"
RECORD_NAME = "record.json"
# openpi's clients execute half of a chunk or less before they ask again.
OPENPI_EXECUTE_SHARE = 2

logger = logging.getLogger(__name__)


def shipped() -> list[str]:
  """Returns the names of the policies that come with the package."""
  return sorted(path.parent.name for path in ASSETS.glob(f"*/{FILE_NAME}"))


def load(policy, *, checkpoint=None, key_name: str = "", key_stats: keys.KeyStats | None = None,
         start: str | None = None, execute_steps: int | None = None, denoising_steps: int | None = None,
         weights: str | None = None, default_prompt: str | None = None, dtype: str | None = "auto", seed: int = 0
         ) -> Policy:
  """Returns a policy.

  Args:
    policy: the name of a shipped policy or of an openpi configuration; a policy directory or an openpi checkpoint whose
      folder has a configuration's name, local or at gs://; a Python file with `get_config()`, as configs/my_robot.py,
      or what that returns.
    checkpoint: of a configuration, instead of its release: a directory or a gs:// address.
    key_name: which of the directory's key statistics, as `train.calibrate --name` wrote them; '' is its own.
    key_stats: instead of those in the directory.
    start: where the flow starts, instead of the policy's own; see PolicySpec.
    execute_steps: actions of a chunk before the next decision, instead of the policy's own.
    denoising_steps: of the flow, instead of the policy's own.
    weights: how the matrices of a pi0 or pi0.5 are stored, see `packing.pack`. With another start, other steps or
      weights a memory stays the policy's own, though its chunks are other ones by a little.
    default_prompt: where an observation has none; the policy's own comes after it.
    dtype: of the parameters; 'auto' is bfloat16 for a model that computes in it, as openpi serves; None what is stored.
    seed: of the draws of a start that is new for each decision.
  Errors: Pi0RagError for a name that is nothing of these (with the nearest), and when a part is missing or does not
    fit, saying how to get it.
  """
  spec, directory = describe(policy, checkpoint)
  if spec.head is not None and (denoising_steps is not None or start not in (None, spec.start)):
    raise Pi0RagError(f"policy '{spec.name}' is a head: it has no flow, so neither start nor denoising_steps are given")
  if execute_steps is not None:
    spec = spec.executing(execute_steps)
  changes = {"start": start, "denoising_steps": denoising_steps}
  spec = dataclasses.replace(spec, **{name: value for name, value in changes.items() if value is not None})
  return build(spec, directory, key_name=key_name, key_stats=key_stats, weights=weights, default_prompt=default_prompt,
               dtype=dtype, seed=seed)


def describe(policy, checkpoint=None) -> tuple[PolicySpec, pathlib.Path | str]:
  """Returns (spec, where the parameters are) of what `load` loads; reads no parameters. Errors: as `load`."""
  if isinstance(policy, TrainConfig):
    return _of_config(policy, checkpoint)
  name = str(policy)
  if checkpoint is None:
    if (ASSETS / name / FILE_NAME).is_file():
      return PolicySpec.load(ASSETS / name), ASSETS / name
    directory = None if name in CONFIGS else _directory(name)
    if directory is not None:
      return _described_directory(directory), directory
  if name.endswith(".py"):
    module = load_module(pathlib.Path(name).expanduser())
    return _of_config(config_of(module), checkpoint, example=getattr(module, "example_observation", None))
  if name in CONFIGS:
    return _of_config(CONFIGS[name], checkpoint)
  if checkpoint is not None and ((ASSETS / name / FILE_NAME).is_file() or pathlib.Path(name).expanduser().is_dir()):
    raise Pi0RagError(f"policy '{name}' has parameters of its own: leave out the checkpoint '{checkpoint}'")
  path = pathlib.Path(name).expanduser()
  if len(path.parts) > 1:
    raise _of_a_training(path) or Pi0RagError(f"no policy directory '{name}'")
  raise unknown_name(f"policy (and no directory with a {FILE_NAME})", name, [*shipped(), *CONFIGS])


def build(spec: PolicySpec, directory, *, key_name: str = "", key_stats: keys.KeyStats | None = None,
          stats: Mapping[str, NormStats] | None = None, text_tokenizer: SentencePieceTokenizer | None = None,
          action_codec: action_tokens.ActionCodec | None = None, weights: str | None = None,
          default_prompt: str | None = None, dtype: str | None = "auto", seed: int = 0) -> Policy:
  """Returns the policy of a spec and the parameters in a directory or at a gs:// address.

  Args:
    stats: instead of those in the directory's assets; an empty mapping for data that need none.
    text_tokenizer, action_codec: instead of the directory's, and of the published ones.
    key_name, key_stats, weights, default_prompt, dtype, seed: see `load`.
  Errors: as `load`.
  """
  if spec.family == HEAD:
    if weights is not None:
      raise Pi0RagError(f"weights '{weights}' of a head; allowed: None, since only pi0 and pi0.5 are packed")
    return head.build(spec, _local(directory), key_name=key_name, key_stats=key_stats, default_prompt=default_prompt,
                      seed=seed)
  sizes = spec.network
  checks.check_model(sizes, spec.model.family)
  local = _local(directory)
  # Everything that can be wrong is found before the large arrays are read.
  stats = load_stats(spec, directory) if stats is None else stats
  group = policy_transforms(
    spec.data, spec.model, sizes, stats, default_prompt=default_prompt, action_codec=action_codec,
    text_tokenizer=text_tokenizer or tokenizer_of(local, sizes))
  key_stats = key_stats or _key_stats(local, key_name, sizes)
  if dtype == "auto":
    dtype = "bfloat16" if sizes.dtype == "bfloat16" else None
  params = checkpoints.load_params(directory, dtype=dtype, template=_parameter_shapes(sizes), drop_extra=True)
  kind = TokensPolicy if family.of(sizes).writes_tokens else FlowPolicy
  return kind(spec, params, robot=_robot(spec, stats), group=group, stats=stats, key_stats=key_stats, weights=weights,
              seed=seed)


def load_stats(spec: PolicySpec, directory) -> dict[str, NormStats]:
  """Returns the statistics of a policy's robot; none for the debug configurations."""
  if spec.data.robot == "fake":
    return {}
  if spec.data.stats_id is None:
    raise Pi0RagError(f"policy '{spec.name}' names no statistics: set asset_id or repo_id of its configuration")
  loaded = checkpoints.load_norm_stats(directory, spec.data.stats_id)
  return checks.check_stats(as_stats(loaded), source=f"the statistics for '{spec.data.stats_id}' in {directory}",
                            quantile=spec.model.use_quantile_norm)


def tokenizer_of(directory: pathlib.Path, sizes: PaliGemmaConfig) -> SentencePieceTokenizer:
  """Returns the tokenizer in a policy directory, or PaliGemma's.

  Errors: Pi0RagError for one of more tokens than the network's, which would read beyond its embedding.
  """
  path = directory / TOKENIZER_NAME
  if path.is_file():
    tokenizer, name = SentencePieceTokenizer(path), str(path)
  else:
    tokenizer, name = SentencePieceTokenizer.paligemma(), f"PaliGemma's (there is no {path})"
  if tokenizer.vocab_size > sizes.vocab_size:
    raise Pi0RagError(f"the tokenizer is {name}, of {tokenizer.vocab_size} tokens; the network has {sizes.vocab_size}: "
                      f"copy the {TOKENIZER_NAME} that the policy was trained with")
  return tokenizer


def _directory(name: str) -> pathlib.Path | None:
  """Returns the local directory of a path or address; None for what is a configuration's name or a file."""
  if download.is_remote(name):
    return download.local_checkpoint(name)
  path = pathlib.Path(name).expanduser()
  return path if path.is_dir() else None


def _described_directory(directory: pathlib.Path) -> PolicySpec:
  """Returns the spec of a directory: its own, one of an older format converted, or that of openpi's configuration."""
  if (directory / FILE_NAME).is_file():
    return PolicySpec.load(directory)
  if (directory / head.FILE_NAME).is_file():
    return head.describe(directory)
  recorded = _recorded(directory)
  if "openpi" in recorded:  # of train.launch, before it wrote policy.json
    logger.info("%s has no %s: read by its %s", directory, FILE_NAME, RECORD_NAME)
    return _spec(read_config(recorded["openpi"]), _sizes_in(directory))
  if error := _of_a_training(directory):
    raise error
  named = [part for part in reversed(directory.absolute().parts) if part in CONFIGS]
  if not named:
    raise Pi0RagError(f"{directory} has no {FILE_NAME} and no openpi configuration's name in its path: give the "
                      f"configuration as the policy and the directory as its checkpoint, --policy=NAME "
                      f"--checkpoint={directory}")
  return _spec(CONFIGS[named[0]], None)


def _of_a_training(path: pathlib.Path) -> Pi0RagError | None:
  """Returns the error for a place in the working directory of a training that is not its policy; None elsewhere."""
  for workdir in (path, *path.parents[:2]):  # itself, its policy or its checkpoints, one of these
    if (workdir / "config.json").is_file() and (workdir / "checkpoints").is_dir():
      made = workdir / "policy"
      return Pi0RagError(
        f"{path} is the working directory of a training, or a checkpoint of it: its policy is {made}"
        if (made / FILE_NAME).is_file() else
        f"the training in {workdir} has not finished: the command that began it continues it, and writes {made}")
  return None


def _of_config(config: TrainConfig, checkpoint, *, example=None) -> tuple[PolicySpec, pathlib.Path | str]:
  """Returns (spec, where the parameters are) of an openpi configuration."""
  checkpoint = config.checkpoint if checkpoint is None else checkpoint
  if checkpoint is None:
    raise Pi0RagError(f"no checkpoint of '{config.name}' is released: give the directory of one, as training writes "
                      "it: params/ and assets/ in it")
  if not download.is_remote(checkpoint):
    checkpoint = pathlib.Path(checkpoint).expanduser()
  spec = _spec(config, None if download.is_remote(checkpoint) else _sizes_in(pathlib.Path(checkpoint)))
  if example is not None:
    make = config.data.robot
    data = dataclasses.replace(config.data, robot=lambda data, family: dataclasses.replace(
      make_robot(dataclasses.replace(data, robot=make), family), example=example))
    spec = dataclasses.replace(spec, data=data)
  return spec, checkpoint


def _spec(config: TrainConfig, sizes: PaliGemmaConfig | None) -> PolicySpec:
  """Returns the spec of an openpi configuration; openpi's policies start from new noise at every decision."""
  sizes = sizes or config.model.build()
  return PolicySpec(
    name=config.name, model=config.model, sizes=sizes, data=config.data, start=NEW,
    control_hz=1 / make_robot(config.data, config.model.family).tick_s,
    execute_steps=max(sizes.action_horizon // OPENPI_EXECUTE_SHARE, 1), metadata=config.policy_metadata or {})


def _sizes_in(directory: pathlib.Path) -> PaliGemmaConfig | None:
  """Returns the sizes that a directory of ours says of itself; None for one of openpi."""
  if (directory / FILE_NAME).is_file():
    return PolicySpec.load(directory).sizes
  recorded = _recorded(directory)
  if "openpi" not in recorded or "model" not in recorded:
    return None
  return family.named(read_config(recorded["openpi"]).model.family).read_sizes(recorded["model"])


def _recorded(directory: pathlib.Path) -> dict:
  """Returns what a training's record says; nothing where there is none."""
  path = directory / RECORD_NAME
  return schema.read(path, dict[str, Any]) if path.is_file() else {}


def _robot(spec: PolicySpec, stats: Mapping[str, NormStats]) -> Robot:
  """Returns the robot; one without entries of its own gets an example with its model's."""
  robot, sizes = make_robot(spec.data, spec.model.family), spec.network
  if robot.name not in ("fake", plain.NAME):
    return robot
  state_dim = stats["state"].dim if stats else sizes.action_dim
  return plain.with_example(robot, sizes.image_keys, state_dim, sizes.image_size)


def _local(directory) -> pathlib.Path:
  return download.cached_path(directory) if download.is_remote(directory) else pathlib.Path(directory)


def _key_stats(directory: pathlib.Path, name: str, sizes: PaliGemmaConfig) -> keys.KeyStats:
  """Returns a policy's own keys, or those of a name; the default of a policy without demonstrations at hand."""
  if name or keys.stats_path(directory).is_file():
    loaded = keys.KeyStats.load(directory, name)
    keys.feature_width(loaded.recipe, sizes)  # refuses a head's
    return loaded
  return keys.KeyStats.uncalibrated(sizes)


@functools.lru_cache(maxsize=16)
def _parameter_shapes(sizes: PaliGemmaConfig) -> Params:
  return jax.eval_shape(functools.partial(registry.init, sizes), jax.random.key(0))
