"""The frozen backbone of a training of kind 'head': its weights, made where they are random, and its features.

Weights that are random, all or in part, are written to the run's folder and go with its policy: no checkpoint has them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import backbones
from pi0rag_jax.models.backbones import mobilenet_torch
from pi0rag_jax.models.backbones.base import Backbone
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.policy import backbone
from pi0rag_jax.policy.backbone import read_safetensors
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.spec import HEAD
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Config, Params
from train import metrics, parallel, tokenizers

# Of random weights: not the run's, so that runs of other seeds share their features.
RANDOM_SEED = 0


def make_extractor(config: Config, stats: NormStats, folder: Path, prompts: Iterable[str] = ()) -> FeatureExtractor:
  """Returns the extractor of features.

  Args:
    config: of kind 'head'.
    stats: of the robot's state.
    folder: of the run, where a tokenizer that is trained and weights that are random are kept.
    prompts: that such a tokenizer is trained on where there is none yet.
  """
  made, params = make_backbone(config, folder)
  return FeatureExtractor(
    made, params, stats, tokenizer=load_tokenizer(config, made, folder, prompts), quantile=config.quantile_norm,
    state_in_prompt=config.state_in_prompt, robot=make_robot(DataConfig(robot=config.robot), HEAD))


def make_backbone(config: Config, folder: Path) -> tuple[Backbone, Params]:
  """Returns the backbone of `config.backbone`, which reads the cameras of `config.fields.cameras`, and its weights."""
  made, checkpoint = backbone.make(config.backbone.to_dict(), tuple(config.fields.cameras))
  if backbone.is_kept(made, checkpoint):
    write_random(made, checkpoint, folder / backbone.FOLDER)
  return made, backbone.load_weights(made, checkpoint, folder)


def write_random(made: Backbone, checkpoint: str, folder: Path) -> None:
  """Writes random parameters, once, with torchvision's tensors as the trunk where the checkpoint is of those."""
  if parallel.is_first() and not (folder / checkpoints.PARAMS_DIR).exists():
    metrics.log.info("random weights of the backbone are written to '%s'", folder)
    tensors = read_safetensors(checkpoint) if backbone.torch_trunk(made, checkpoint) else None
    # The generator that compiles fastest; that others give other numbers does not matter, since these are kept.
    params = jax.jit(made.init)(jax.random.key(RANDOM_SEED, impl="rbg"))
    checkpoints.save_params(folder, params if tensors is None else mobilenet_torch.with_trunk(params, tensors))
  parallel.wait_for_all("backbone written")


def load_tokenizer(config: Config, made: Backbone, folder: Path, prompts: Iterable[str] = ()
                   ) -> SentencePieceTokenizer | None:
  """Returns the tokenizer of the backbone's prompts, None where it reads none.

  `config.text_tokenizer` is '' for PaliGemma's, a file, or 'train': one of the data's prompts, made once per folder.
  """
  if not made.max_token_len:
    return None
  size = made.config.vocab_size if isinstance(made, backbones.PaliGemmaBackbone) else getattr(made, "vocab_size", None)
  return tokenizers.load(config.text_tokenizer, folder, lambda: prompts, vocab_size=size)


def claim_features(workdir: Path, digests: Mapping[str, str]) -> None:
  """Notes which features a run is trained on; raises if it began on others.

  Args:
    workdir: of the run.
    digests: data set -> digest of its cache.
  """
  file = workdir / "features.json"
  if not file.exists():
    files.write_json(file, dict(digests))
    return
  found = schema.read(file, dict[str, str])
  if found != dict(digests):
    changed = sorted(name for name in {*found, *digests} if found.get(name) != digests.get(name))
    raise Pi0RagError(
      f"workdir '{workdir}' began with other features of {', '.join(changed)}: the data set, the backbone's weights or"
      f" the preprocessing changed; use another --workdir, or remove '{file}' to go on with these")
