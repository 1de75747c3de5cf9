"""The steps between a robot's dictionaries and a model's, as openpi composes them.

A transform is a function from a dictionary to a dictionary; it never changes the one that it is given.
"""

import contextlib
import contextvars
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from flax import traverse_util

from pi0rag_jax import errors
from pi0rag_jax.robots import images, normalize

Transform: TypeAlias = Callable[[dict], dict]
# A state this far out, in normalized units, is of another robot, in other units, or of a broken sensor.
FAR_OUT = 10.0
SHOWN_DIMS = 4
# Several times what the longest model takes, which cuts the rest off.
PROMPT_CHARACTERS = 4096
_made_up = contextvars.ContextVar("made_up", default=False)


@contextlib.contextmanager
def made_up() -> Iterator[None]:
  """Says of the observations within the block that no robot saw them: their states may be anything, such as zeros."""
  token = _made_up.set(True)
  try:
    yield
  finally:
    _made_up.reset(token)


@dataclasses.dataclass(frozen=True)
class TransformGroup:
  """What is done to a model's inputs, and what undoes it on its outputs."""

  inputs: tuple[Transform, ...] = ()
  outputs: tuple[Transform, ...] = ()

  def push(self, *, inputs: Sequence[Transform] = (), outputs: Sequence[Transform] = ()) -> "TransformGroup":
    """Returns the group with steps nearer to the model: inputs go last, outputs first."""
    return TransformGroup((*self.inputs, *inputs), (*outputs, *self.outputs))


def compose(transforms: Sequence[Transform]) -> Transform:
  """Returns the transform that applies all of them in order."""

  def composed(data: dict) -> dict:
    for transform in transforms:
      data = transform(data)
    return data

  return composed


@dataclasses.dataclass(frozen=True)
class Repack:
  """Rebuilds a dictionary by a structure whose leaves name '/'-joined keys of the old one."""

  structure: Mapping[str, Any]

  def __call__(self, data: dict) -> dict:
    flat = traverse_util.flatten_dict(data, sep="/")

    def pick(structure: Mapping) -> dict:
      for source in structure.values():
        if not isinstance(source, Mapping) and source not in flat:
          raise errors.unknown_name("key of the data", source, flat)
      return {key: pick(source) if isinstance(source, Mapping) else flat[source] for key, source in structure.items()}

    return pick(self.structure)


@dataclasses.dataclass(frozen=True)
class InjectDefaultPrompt:
  """Adds a prompt where there is none; None adds nothing."""

  prompt: str | None

  def __call__(self, data: dict) -> dict:
    return data if self.prompt is None or "prompt" in data else {**data, "prompt": self.prompt}


@dataclasses.dataclass(frozen=True)
class Normalize:
  """Normalizes the entries that there are statistics for; a state far out is warned of once per dimension.

  Statistics are cut to the entry, as in openpi. With `padded_dim`, only those of just so many dims are: a model's
  action dim, to which openpi once padded them. Others are of another robot.
  """

  stats: Mapping[str, normalize.NormStats]
  quantile: bool = False
  padded_dim: int | None = None
  _warned: set = dataclasses.field(default_factory=set, repr=False, compare=False)

  def __call__(self, data: dict) -> dict:
    done = {}
    for key in self.stats.keys() & data.keys():
      x, allowed = np.asarray(data[key]), self.padded_dim
      try:
        if allowed is not None and self.stats[key].dim not in (x.shape[-1], allowed):
          raise normalize.other_robot(x, self.stats[key])
        done[key] = normalize.normalize(x, self.stats[key], quantile=self.quantile)
      except errors.Pi0RagError as error:
        raise errors.Pi0RagError(f"{key}: {error}") from None
    if "state" in done:
      self._warn_if_far_out(np.asarray(data["state"]), done["state"])
    return {**data, **done}

  def _warn_if_far_out(self, state, normalized) -> None:
    if _made_up.get() or (np.abs(normalized) <= FAR_OUT).all():
      return
    state_XP, normalized_XP = (np.reshape(x, (-1, x.shape[-1])) for x in (state, normalized))
    worst_P = np.argmax(np.abs(normalized_XP), axis=0)
    far = [dim for dim, row in enumerate(worst_P)
           if not abs(normalized_XP[row, dim]) <= FAR_OUT and dim not in self._warned]
    if not far:
      return
    self._warned.update(far)
    stats = self.stats["state"]
    shown = [f"dim {dim} is {state_XP[worst_P[dim], dim]:.4g}, the statistics have {stats.describe(dim)}"
             for dim in far[:SHOWN_DIMS]]
    more = f"; and {len(far) - SHOWN_DIMS} more" if len(far) > SHOWN_DIMS else ""
    warnings.warn(f"state lies far outside the normalization statistics ({'; '.join(shown)}{more}): "
                  "check units and robot", stacklevel=4)


@dataclasses.dataclass(frozen=True)
class Unnormalize:
  """Undoes `Normalize` on every entry that there are statistics for; all of them must be there."""

  stats: Mapping[str, normalize.NormStats]
  quantile: bool = False

  def __call__(self, data: dict) -> dict:
    missing = sorted(self.stats.keys() - data.keys())
    if missing:
      raise errors.Pi0RagError(f"outputs lack {', '.join(missing)}; there are {', '.join(sorted(data))}")
    return {**data, **{key: normalize.unnormalize(np.asarray(data[key]), stats, quantile=self.quantile)
                       for key, stats in self.stats.items()}}


@dataclasses.dataclass(frozen=True)
class CutActions:
  """Drops what a model pads actions with."""

  dim: int

  def __call__(self, data: dict) -> dict:
    return {**data, "actions": np.asarray(data["actions"])[..., : self.dim]}


@dataclasses.dataclass(frozen=True)
class ResizeImages:
  """Resizes every camera to (height, width) px."""

  height: int
  width: int

  def __call__(self, data: dict) -> dict:
    return {**data, "image": {name: images.resize_with_pad(image, self.height, self.width)
                              for name, image in data["image"].items()}}


@dataclasses.dataclass(frozen=True)
class DeltaActions:
  """Makes the masked entries of absolute actions relative to the state; None leaves all."""

  mask: Sequence[bool] | None

  def __call__(self, data: dict) -> dict:
    return _shift_actions(data, self.mask, -1.0) if "actions" in data else data


@dataclasses.dataclass(frozen=True)
class AbsoluteActions:
  """Undoes `DeltaActions`."""

  mask: Sequence[bool] | None

  def __call__(self, data: dict) -> dict:
    return _shift_actions(data, self.mask, 1.0) if "actions" in data else data


@dataclasses.dataclass(frozen=True)
class PadStatesAndActions:
  """Adds zeros to actions up to the model's action dim, and to states up to what it takes of them."""

  dim: int
  state_dim: int | None = None  # None: as many as the actions, as in openpi

  def __call__(self, data: dict) -> dict:
    widths = {"state": self.state_dim or self.dim, "actions": self.dim}
    return {**data, **{key: normalize.pad_last(np.asarray(data[key]), width, key)
                       for key, width in widths.items() if key in data}}


@dataclasses.dataclass(frozen=True)
class TokenizePrompt:
  """Replaces the prompt by pi0's or pi0.5's tokens; a discrete state goes into the text."""

  tokenizer: Any  # SentencePieceTokenizer
  max_len: int
  discrete_state: bool = False

  def __call__(self, data: dict) -> dict:
    state = data["state"] if self.discrete_state else None
    tokens_L, mask_L = self.tokenizer.encode_prompt(read_prompt(data), self.max_len, state=state)
    return {**_without_prompt(data), "tokenized_prompt": tokens_L, "tokenized_prompt_mask": mask_L}


@dataclasses.dataclass(frozen=True)
class TokenizeActionPrompt:
  """Replaces the prompt by pi0-FAST's tokens: prompt and state, then the actions where they are known."""

  tokenizer: Any  # ActionTokenizer
  max_len: int

  def __call__(self, data: dict) -> dict:
    return {**_without_prompt(data),
            **self.tokenizer.tokenize(read_prompt(data), data["state"], data.get("actions"), self.max_len)}


@dataclasses.dataclass(frozen=True)
class ExtractActions:
  """Replaces the tokens that pi0-FAST wrote by the actions that they mean."""

  tokenizer: Any  # ActionTokenizer
  horizon: int
  dim: int

  def __call__(self, data: dict) -> dict:
    tokens_M = np.asarray(data["actions"]).astype(np.int32)
    return {**data, "actions": self.tokenizer.extract_actions(tokens_M, self.horizon, self.dim)}


def make_bool_mask(*lengths: int) -> tuple[bool, ...]:
  """Returns a mask from run lengths: (2, -1) is (True, True, False)."""
  return tuple(length > 0 for length in lengths for _ in range(abs(length)))


def read_prompt(data: Mapping) -> str:
  """Returns the prompt of a dictionary as a string; data sets hold bytes or arrays of no dimension.

  Errors: Pi0RagError when there is none.
  """
  if "prompt" not in data:
    raise errors.Pi0RagError("the observation has no 'prompt' and the configuration no default_prompt: give either")
  prompt = data["prompt"]
  prompt = prompt.item() if isinstance(prompt, np.ndarray) and prompt.size == 1 else prompt
  if isinstance(prompt, str | bytes) and len(prompt) > PROMPT_CHARACTERS:
    raise errors.Pi0RagError(f"prompt has {len(prompt)} characters; allowed: {PROMPT_CHARACTERS}")
  try:
    prompt = prompt.decode("utf-8") if isinstance(prompt, bytes) else prompt
  except UnicodeDecodeError as error:
    raise errors.Pi0RagError(f"prompt is no UTF-8: {error}") from error
  if not isinstance(prompt, str):
    raise errors.Pi0RagError(f"prompt is {type(prompt).__name__}; allowed: one string")
  return prompt


def _without_prompt(data: dict) -> dict:
  return {key: value for key, value in data.items() if key != "prompt"}


def _shift_actions(data: dict, mask, sign: float) -> dict:
  """Returns the data with sign * state added to the masked entries of every action."""
  if mask is None:
    return data
  state, actions, dims = np.asarray(data["state"]), np.asarray(data["actions"]), len(mask)
  if min(state.shape[-1], actions.shape[-1]) < dims:
    raise errors.Pi0RagError(f"the mask of delta actions has {dims} entries, the state {state.shape[-1]} "
                             f"and the actions {actions.shape[-1]}")
  shift = np.where(mask, state[..., :dims], 0)
  head = actions[..., :dims] + sign * np.expand_dims(shift, axis=-2)
  return {**data, "actions": np.concatenate([head, actions[..., dims:]], axis=-1)}
