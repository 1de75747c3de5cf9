"""The frozen backbone that a configuration of kind 'head' names, with its weights, and the extractor of its features.

Weights that are random, all or in part, are written to the run's folder and go with its policy: no checkpoint has them.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import backbones
from pi0rag_jax.models.backbones import mobilenet_torch
from pi0rag_jax.models.backbones.base import BACKBONES, Backbone
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config, Pi0FastConfig
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.named_configs import get_config
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Config, Params
from train import metrics, parallel, tokenizers

FRESH = "none"  # as `checkpoint`: random weights
FRESH_FOLDER = "backbone"
# Of random weights: not the run's, so that runs of other seeds share their features.
FRESH_SEED = 0


def make_backbone(config: Config, folder: Path) -> tuple[Backbone, Params]:
  """Returns the backbone of `config.backbone`, which reads the cameras of `config.fields.cameras`, and its weights.

  Random ones are kept in `folder`.
  """
  fields = {name: as_tuple(value) for name, value in config.backbone.to_dict().items()}
  name, checkpoint = fields.pop("name"), fields.pop("checkpoint")
  cameras = tuple(config.fields.cameras)
  if name == "paligemma":
    model, published = read_model(fields.pop("openpi"), fields.pop("model"), cameras)
    backbone = backbones.backbone(name, config=model, **fields)
    return backbone, load_weights(backbone, checkpoint or published or FRESH, folder, dtype=model.dtype)
  if name in BACKBONES and "image_keys" in {field.name for field in dataclasses.fields(BACKBONES[name])}:
    fields.setdefault("image_keys", cameras)
  backbone = backbones.backbone(name, **fields)
  for camera in backbone.image_keys:
    if camera not in cameras:
      raise Pi0RagError(f"the backbone '{name}' reads the camera '{camera}', fields.cameras names {', '.join(cameras)}")
  return backbone, load_weights(backbone, checkpoint, folder)


def read_model(openpi: str, sizes: Mapping, cameras: tuple[str, ...]) -> tuple[PaliGemmaConfig, str | None]:
  """Returns the sizes of openpi's configuration, or those that are given, and where its weights are.

  Cameras that a robot lacks are left out, which gives the same features as openpi's black ones that are masked.
  """
  named = get_config(openpi)
  if sizes:
    kind = Pi0FastConfig if named.model.family == "pi0_fast" else Pi0Config
    model = kind.from_dict({**sizes, **({"pi05": named.model.family == "pi05"} if kind is Pi0Config else {})})
  else:
    model = named.model.build()
  return dataclasses.replace(model, image_keys=cameras), named.checkpoint or named.weights


def load_weights(backbone: Backbone, checkpoint: str, folder: Path, *, dtype: str | None = None) -> Params:
  """Returns a backbone's parameters.

  Args:
    backbone: whose they are.
    checkpoint: '' or 'none' for random ones; a checkpoint; torchvision's mobilenet_v3_small.safetensors for the light
      one, whose other layers are random; PaliGemma's .npz.
    folder: where random ones are kept.
    dtype: that checkpoints are cast to; None keeps theirs.
  """
  trunk = isinstance(backbone, backbones.LightBackbone) and checkpoint.endswith(".safetensors")
  if trunk or checkpoint in ("", FRESH):
    return fresh_weights(backbone, folder / FRESH_FOLDER, read_safetensors(checkpoint) if trunk else None)
  template = jax.eval_shape(backbone.init, jax.random.key(FRESH_SEED))
  if checkpoint.endswith(".npz"):
    # What it lacks, such as the action expert, does not reach the features.
    zeros = lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), template)  # noqa: E731
    return checkpoints.load_partial(checkpoint, zeros, jax.random.key(0), fresh=checkpoints.ANY, dtype=dtype)
  return checkpoints.load_params(checkpoint, template=template, dtype=dtype, drop_extra=True)


def fresh_weights(backbone: Backbone, folder: Path, tensors: Mapping[str, np.ndarray] | None) -> Params:
  """Returns random parameters, written once, with torchvision's tensors as the trunk where they are given."""
  # The generator that compiles fastest; that others give other numbers does not matter, since these are kept.
  key = jax.random.key(FRESH_SEED, impl="rbg")
  if parallel.is_first() and not (folder / checkpoints.PARAMS_DIR).exists():
    metrics.log.info("random weights of the backbone are written to '%s'", folder)
    params = jax.jit(backbone.init)(key)
    checkpoints.save_params(folder, params if tensors is None else mobilenet_torch.with_trunk(params, tensors))
  parallel.wait_for_all("backbone written")
  return checkpoints.load_params(folder, template=jax.eval_shape(backbone.init, key))


def read_safetensors(path: str) -> Mapping[str, np.ndarray]:
  """Returns the tensors of a file, by name."""
  try:
    from safetensors.numpy import load_file
  except ImportError as error:
    raise Pi0RagError(f"'{path}' needs safetensors: install the extra torch, pip install 'pi0rag-jax[torch]'"
                      ) from error
  if not Path(path).is_file():
    raise Pi0RagError(f"no weights at '{path}'")
  return load_file(path)


def load_tokenizer(config: Config, backbone: Backbone, folder: Path, prompts: Iterable[str] = ()
                   ) -> SentencePieceTokenizer | None:
  """Returns the tokenizer of the backbone's prompts, None where it reads none.

  `config.text_tokenizer` is '' for PaliGemma's, a file, or 'train': one of the data's prompts, made once per folder.
  """
  if not backbone.max_token_len:
    return None
  size = backbone.config.vocab_size if isinstance(backbone, backbones.PaliGemmaBackbone) else (
    getattr(backbone, "vocab_size", None))
  return tokenizers.load(config.text_tokenizer, folder, lambda: prompts, vocab_size=size)


def make_extractor(config: Config, stats: NormStats, folder: Path, prompts: Iterable[str] = ()) -> FeatureExtractor:
  """Returns the extractor of features.

  Args:
    config: of kind 'head'.
    stats: of the robot's state.
    folder: where a tokenizer that is trained and weights that are random are kept: the run's or the policy's.
    prompts: that such a tokenizer is trained on where there is none yet.
  """
  backbone, params = make_backbone(config, folder)
  return FeatureExtractor(
    backbone, params, stats, tokenizer=load_tokenizer(config, backbone, folder, prompts),
    quantile=config.quantile_norm, state_in_prompt=config.state_in_prompt)


def as_tuple(value: Any) -> Any:
  """Returns lists, as JSON has them, as tuples."""
  return tuple(as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def claim_features(workdir: Path, digests: Mapping[str, str]) -> None:
  """Notes which features a run is trained on; raises if it began on others.

  Args:
    workdir: of the run.
    digests: data set -> digest of its cache.
  """
  file = workdir / "features.json"
  if not file.exists():
    file.write_text(json.dumps(dict(digests), indent=2) + "\n", encoding="utf8")
    return
  found = json.loads(file.read_text(encoding="utf8"))
  if found != dict(digests):
    changed = sorted(name for name in {*found, *digests} if found.get(name) != digests.get(name))
    raise Pi0RagError(
      f"workdir '{workdir}' began with other features of {', '.join(changed)}: the data set, the backbone's weights or"
      f" the preprocessing changed; use another --workdir, or remove '{file}' to go on with these")
