"""The configurations of the model families, and their form as JSON."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Self

import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import remat
from pi0rag_jax.models.attention import Kernel
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.siglip import SiglipConfig

PALIGEMMA_VOCABULARY = 257_152
DTYPES = ("float32", "bfloat16")
KERNELS = ("xla", "cudnn")
ALIGNED = 8  # rows of a TPU's registers; cuBLAS's and cuDNN's fast kernels want 16 bytes
OPENPI_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
# openpi's pi0-FAST takes whatever cameras an observation has, sorted by name; these are of its DROID policies.
FAST_CAMERAS = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig:
  """What all families share: the towers, the prefix they read and the sizes of an action chunk.

  `dtype` is the computing type of the towers; parameters are float32 unless the caller casts them.
  """

  action_dim: int
  action_horizon: int
  max_token_len: int
  paligemma: GemmaConfig
  siglip: SiglipConfig
  dtype: str = "bfloat16"
  vocab_size: int = PALIGEMMA_VOCABULARY
  image_size: tuple[int, int] = (224, 224)
  # The cameras of the prefix, in this order; an observation may hold others too.
  image_keys: tuple[str, ...] = OPENPI_CAMERAS
  # Size of the state; None stands for openpi's convention that it is padded to action_dim.
  state_dim: int | None = None
  # Compiles layers one by one instead of as a loop: faster where layers are small, slower to compile.
  unroll: bool = False
  # Parameters as `packing.pack` lays them out for inference, instead of openpi's tree.
  packed: bool = False
  # Of packed attention, one of KERNELS; 'cudnn' needs an NVIDIA GPU and bfloat16.
  attention_kernel: str = "xla"
  # Packed and for an accelerator: what the flow's loop reads is padded to multiples of ALIGNED and masked, and its
  # attention joined. The same function by less than half of the kernels; a CPU is faster without.
  aligned: bool = False
  # What training keeps of the forward pass, one of remat.POLICIES; changes memory and time alone.
  remat: str = "none"

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise unknown_name("dtype", self.dtype, DTYPES)
    if self.remat not in remat.POLICIES:
      raise unknown_name("remat", self.remat, remat.POLICIES)
    if self.attention_kernel not in KERNELS:
      raise unknown_name("attention_kernel", self.attention_kernel, KERNELS)
    if self.aligned and not self.packed:
      raise Pi0RagError("aligned is allowed for packed parameters alone: see packing.pack")
    if len(self.image_size) != 2:
      raise Pi0RagError(f"image_size must be (height, width) in pixels, got {self.image_size}")
    if not self.image_keys:
      raise Pi0RagError("image_keys is empty: a model needs the name of at least one camera")

  @property
  def experts(self) -> tuple[GemmaConfig, ...]:
    """The streams of the language model: the prefix's first."""
    return (self.paligemma,)

  @property
  def compute_dtype(self):
    return jnp.dtype(self.dtype)

  @property
  def kernel(self) -> Kernel:
    """How packed layers attend."""
    return Kernel(self.attention_kernel, joined=self.aligned)

  @property
  def multiple(self) -> int:
    """What numbers of tokens in the flow's loop are padded to a multiple of."""
    return ALIGNED if self.aligned else 1

  @property
  def state_size(self) -> int:
    """Number of state dims P that the model takes."""
    return self.action_dim if self.state_dim is None else self.state_dim

  @property
  def image_tokens(self) -> int:
    """Tokens per camera."""
    return self.siglip.num_tokens(self.image_size)

  @property
  def prefix_tokens(self) -> int:
    """Tokens of the whole prefix, S."""
    return len(self.image_keys) * self.image_tokens + self.max_token_len

  def to_dict(self) -> dict:
    """Returns the configuration as plain JSON values; `from_dict` is its inverse."""
    data = dataclasses.asdict(self)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

  @classmethod
  def from_dict(cls, data: Mapping) -> Self:
    """Returns the configuration of a JSON object; an error names the unknown, missing or mistyped field."""
    return _read_dataclass(cls, data, "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi0Config(PaliGemmaConfig):
  """All that decides the parameter tree and the computation of a pi0 or pi0.5 model."""

  expert: GemmaConfig
  # pi0.5: no state token, and the flow time enters through adaptive norms.
  pi05: bool = False

  def __post_init__(self):
    super().__post_init__()
    for field in ("depth", "num_heads", "num_kv_heads", "head_dim"):
      prefix, expert = getattr(self.paligemma, field), getattr(self.expert, field)
      if prefix != expert:
        raise Pi0RagError(f"paligemma.{field} is {prefix}, expert.{field} is {expert}: they must be equal")
    if self.expert.width % 2:
      raise Pi0RagError(f"expert.width {self.expert.width} is odd; the time embedding needs an even one")

  @property
  def experts(self) -> tuple[GemmaConfig, ...]:
    return (self.paligemma, self.expert)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi0FastConfig(PaliGemmaConfig):
  """All that decides the parameter tree and the computation of a pi0-FAST model: no action expert."""

  image_keys: tuple[str, ...] = FAST_CAMERAS


def _read_dataclass(cls, data, where: str):
  """Returns `cls` filled from a mapping, nested dataclasses included."""
  if not isinstance(data, Mapping):
    raise Pi0RagError(f"{where}: expected an object of {cls.__name__} fields, got {data!r}")
  types = typing.get_type_hints(cls)
  for name in data:
    if name not in types:
      raise unknown_name(f"field of {where}", name, types)
  required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
  missing = [name for name in required if name not in data]
  if missing:
    raise Pi0RagError(f"{where}: missing field(s) {', '.join(missing)}")
  return cls(**{name: _read_value(types[name], value, f"{where}.{name}") for name, value in data.items()})


def _read_value(kind, value, where: str):
  """Returns a checked field value: bool, positive int, float, string, tuple of those, or nested dataclass."""
  if dataclasses.is_dataclass(kind):
    return _read_dataclass(kind, value, where)
  options = typing.get_args(kind)
  if type(None) in options:
    return None if value is None else _read_value(options[0], value, where)
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (list, tuple)):
      raise Pi0RagError(f"{where}: expected a list, got {value!r}")
    return tuple(_read_value(options[0], item, f"{where}[{i}]") for i, item in enumerate(value))
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise Pi0RagError(f"{where}: expected {kind.__name__}, got {value!r}")
  if kind is int and value < 1:
    raise Pi0RagError(f"{where}: expected at least 1, got {value}")
  return value
