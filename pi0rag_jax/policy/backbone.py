"""The frozen backbone that a description names, and where its weights are found again.

A description is plain values: the backbone's `name`, its `checkpoint` and its own fields, as `config.backbone` of a
training has them. No checkpoint has weights that are random, all or in part: they lie in the folder `backbone` of
the run or the policy.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import backbones, family
from pi0rag_jax.models.backbones.base import BACKBONES, Backbone
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import checkpoints, download
from pi0rag_jax.openpi.named_configs import get_config
from pi0rag_jax.typing import Params

RANDOM = "none"  # as `checkpoint`: random weights
FOLDER = "backbone"


def make(description: Mapping[str, Any], cameras: Sequence[str]) -> tuple[Backbone, str]:
  """Returns (the backbone that reads some of these cameras, where its weights are: see `load_weights`)."""
  fields = {name: as_tuple(value) for name, value in description.items()}
  name, checkpoint = fields.pop("name"), fields.pop("checkpoint")
  if name == "paligemma":
    model, published = read_model(fields.pop("openpi"), fields.pop("model"), tuple(cameras))
    return backbones.backbone(name, config=model, **fields), _absolute(checkpoint or published or RANDOM)
  if name in BACKBONES and "image_keys" in {field.name for field in dataclasses.fields(BACKBONES[name])}:
    fields.setdefault("image_keys", tuple(cameras))
  made = backbones.backbone(name, **fields)
  for camera in made.image_keys:
    if camera not in cameras:
      raise Pi0RagError(f"the backbone '{name}' reads the camera '{camera}', fields.cameras names {', '.join(cameras)}")
  return made, _absolute(checkpoint or RANDOM)


def read_model(openpi: str, sizes: Mapping, cameras: tuple[str, ...]) -> tuple[PaliGemmaConfig, str | None]:
  """Returns the sizes of openpi's configuration, or those that are given, and where its weights are.

  Cameras that a robot lacks are left out, which gives the same features as openpi's black ones that are masked.
  """
  named = get_config(openpi)
  model = family.named(named.model.family).read_sizes(sizes) if sizes else named.model.build()
  return dataclasses.replace(model, image_keys=cameras), named.checkpoint or named.weights


def torch_trunk(made: Backbone, checkpoint: str) -> bool:
  """Returns whether a checkpoint is torchvision's mobilenet_v3_small for the light backbone, whose rest is random."""
  return isinstance(made, backbones.LightBackbone) and checkpoint.endswith(".safetensors")


def is_kept(made: Backbone, checkpoint: str) -> bool:
  """Returns whether a backbone's weights are beside its policy, since no checkpoint has them all."""
  return checkpoint == RANDOM or torch_trunk(made, checkpoint)


def load_weights(made: Backbone, checkpoint: str, folder: str | Path) -> Params:
  """Returns a backbone's parameters.

  Args:
    checkpoint: of `make`: RANDOM; a checkpoint's path or address; torchvision's mobilenet_v3_small.safetensors for the
      light one; PaliGemma's .npz.
    folder: of the run or the policy, beside which random ones lie.
  Errors: Pi0RagError where they are not there any more, or not this backbone's.
  """
  template = jax.eval_shape(made.init, jax.random.key(0))
  if is_kept(made, checkpoint):
    kept = Path(folder, FOLDER)
    if not kept.is_dir():
      raise Pi0RagError(f"the backbone's weights are missing: no {kept}, where training put them; copy that folder too")
    return checkpoints.load_params(kept, template=template)
  if not download.is_remote(checkpoint) and not Path(checkpoint).exists():
    raise Pi0RagError(f"the backbone's weights are missing: nothing at '{checkpoint}', the `checkpoint` of "
                      "config.backbone, or of a head's policy.json")
  dtype = made.config.dtype if isinstance(made, backbones.PaliGemmaBackbone) else None
  if checkpoint.endswith(".npz"):
    # What it lacks, such as the action expert, does not reach the features.
    zeros = lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), template)  # noqa: E731
    return checkpoints.load_partial(checkpoint, zeros, jax.random.key(0), fresh=checkpoints.ANY, dtype=dtype)
  return checkpoints.load_params(checkpoint, template=template, dtype=dtype, drop_extra=True)


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


def as_tuple(value: Any) -> Any:
  """Returns lists, as JSON has them, as tuples."""
  return tuple(as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def _absolute(checkpoint: str) -> str:
  """Returns a path that means the same wherever the policy is loaded."""
  if checkpoint == RANDOM or download.is_remote(checkpoint):
    return checkpoint
  return str(Path(checkpoint).expanduser().absolute())
