"""What a backbone is: images and prompt to one row of features, and its parts; and the registry of them.

A backbone is a frozen dataclass of sizes, hashable, so that a compiled function takes it as a static argument; its
parameters are passed to every method. One's own is such a class under `register_backbone`:

    @register_backbone("mine")
    @dataclasses.dataclass(frozen=True)
    class Mine(Backbone): ...
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models.observation import Observation, to_float_image
from pi0rag_jax.typing import Array, Params

BACKBONES: dict[str, type["Backbone"]] = {}
Kind = TypeVar("Kind", bound=type)


@dataclasses.dataclass(frozen=True)
class Backbone(abc.ABC):
  """The interface; `encode` is what heads use, the parts serve those who build on them. All methods are pure."""

  @property
  @abc.abstractmethod
  def hidden_size(self) -> int:
    """D, the width of the features."""

  @property
  @abc.abstractmethod
  def image_keys(self) -> tuple[str, ...]:
    """The cameras that are read, in this order."""

  @property
  @abc.abstractmethod
  def image_size(self) -> tuple[int, int]:
    """(height, width) in px."""

  @property
  @abc.abstractmethod
  def max_token_len(self) -> int:
    """L of the prompt; 0 for a backbone that reads none."""

  @abc.abstractmethod
  def init(self, rng) -> Params:
    """Returns fresh float32 parameters; `jax.eval_shape` of it gives the template for a checkpoint."""

  @abc.abstractmethod
  def vision_tower(self, params: Params, image_BHWC) -> Array:
    """Returns tokens float[B, S, D'] of processed pictures."""

  @abc.abstractmethod
  def word_embedding(self, params: Params, tokens_BL) -> Array:
    """Returns float[B, L, D''] of token ids int32[B, L]."""

  @abc.abstractmethod
  def text_tower(self, params: Params, words_BLD, mask_BL) -> Array:
    """Returns what the text tower makes of embedded words [B, L, D''], with the mask of those that are there."""

  @abc.abstractmethod
  def encode(self, params: Params, obs: Observation) -> Array:
    """Returns the features float32[B, D] of images and prompt."""

  def image_processor(self, images: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the cameras that are read as float32[B, H, W, 3] in [-1, 1], from uint8 or such floats.

    Pictures of another size are refused: how they are resized is the policy's business (robots/images.py).
    """
    for name in self.image_keys:
      if name not in images:
        raise unknown_name("camera", name, images)
      if tuple(images[name].shape[-3:]) != (*self.image_size, 3):
        raise Pi0RagError(f"camera {name} gives {tuple(images[name].shape[-3:])}, the backbone takes "
                          f"{(*self.image_size, 3)}: resize it first, as robots.images.resize_with_pad does")
    return {name: to_float_image(images[name]) for name in self.image_keys}

  def encode_images(self, params: Params, images: Mapping[str, Array]) -> dict[str, Array]:
    """Returns {camera: tokens float[B, S, D']} of raw pictures."""
    processed = self.image_processor(images)
    return {name: self.vision_tower(params, image) for name, image in processed.items()}

  def describe(self) -> dict[str, Any]:
    """Returns plain values that name the backbone and all that decides its features, its weights apart."""
    return {"backbone": name_of(self), **dataclasses.asdict(self)}


def register_backbone(name: str) -> Callable[[Kind], Kind]:
  """Returns a class decorator that adds a backbone under `name`."""

  def register(kind: Kind) -> Kind:
    if name in BACKBONES:
      raise Pi0RagError(f"there is a backbone '{name}' already; taken: {', '.join(sorted(BACKBONES))}")
    if not issubclass(kind, Backbone) or not dataclasses.is_dataclass(kind):
      raise Pi0RagError(f"backbone '{name}': {kind.__name__} must be a frozen dataclass derived from Backbone")
    BACKBONES[name] = kind
    return kind

  return register


def backbone(name: str, **fields) -> Backbone:
  """Returns the backbone `name` with its fields; an error names an unknown or missing one."""
  if name not in BACKBONES:
    raise unknown_name("backbone", name, BACKBONES)
  known = {f.name: f for f in dataclasses.fields(BACKBONES[name])}
  for field in fields:
    if field not in known:
      raise unknown_name(f"field of the backbone '{name}'", field, known)
  missing = [f.name for f in known.values() if f.default is dataclasses.MISSING and f.name not in fields]
  if missing:
    raise Pi0RagError(f"backbone '{name}': missing field(s) {', '.join(missing)}")
  return BACKBONES[name](**fields)


def name_of(made: Backbone) -> str:
  """Returns the name under which a backbone's class is registered."""
  for name, kind in BACKBONES.items():
    if type(made) is kind:
      return name
  raise Pi0RagError(f"{type(made).__name__} is not registered; backbones: {', '.join(sorted(BACKBONES))}")
