"""What a policy directory says about itself: `policy.json` beside `params/`, `assets/` and `tokenizer.model`.

openpi reads `params/` and `assets/` of the same directory; the rest is what it keeps in code.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import family
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.openpi.config_file import robot_of
from pi0rag_jax.robots import panda

FILE_NAME = "policy.json"
TOKENIZER_NAME = "tokenizer.model"
ROBOT_FILE = "robot.py"  # in a directory: a copy of the configuration file whose robot the policy is for
VERSION = 2
HEAD = "head"
# Where the flow starts: at zero, at one draw of noise that a seed fixes, or at a new draw for every decision.
ZERO, NEW = "zero", "new"
_DRAW = re.compile(r"draw:(\d+)")
# Fields of DataConfig and of ModelConfig that decide how a policy runs, and which columns its data have; the rest is
# for training.
_DATA_FIELDS = ("default_prompt", "delta_mask", "adapt_to_pi", "action_space", "asset_id", "repack")
_MODEL_FIELDS = ("family", "discrete_state_input", "action_tokenizer", "action_tokenizer_path")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySpec:
  """Everything needed to run a policy beside its parameters and statistics."""

  name: str
  model: ModelConfig  # family, prompt and action tokens; the sizes that count are below
  sizes: PaliGemmaConfig | None  # of the network; None for a head
  data: DataConfig  # robot, statistics, default prompt
  control_hz: float  # actions per second
  execute_steps: int  # of a chunk, before the next decision
  start: str = ZERO  # where the flow starts: 'zero', 'draw:SEED' or 'new'
  denoising_steps: int = 10  # of the flow
  decoding_steps: int = 256  # at most so many tokens of a pi0-FAST
  temperature: float = 0.0  # of a pi0-FAST's tokens; 0 takes the likeliest
  tasks: tuple[str, ...] = ()  # simulated tasks that it was trained on; () for a real robot
  renderer: str = ""  # of the pictures that it was trained on; another one's are another distribution
  head: Mapping[str, Any] | None = None  # a head on a frozen backbone, see policy.head
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # told to clients of a server

  def __post_init__(self):
    check_start(self.start)
    if min(self.execute_steps, self.denoising_steps, self.decoding_steps) < 1 or not 0 < self.control_hz < np.inf:
      raise Pi0RagError(f"policy '{self.name}': execute_steps {self.execute_steps}, denoising_steps "
                        f"{self.denoising_steps}, decoding_steps {self.decoding_steps} and control_hz "
                        f"{self.control_hz} must be above 0")

  def executing(self, count: int) -> "PolicySpec":
    """Returns the policy that executes so many actions of a chunk before the next decision.

    Errors: Pi0RagError for more than a chunk has, and for heads, which learned at one pace.
    """
    if count == self.execute_steps:
      return self
    if self.head is not None:
      raise Pi0RagError(f"policy '{self.name}' is a head, which learned to decide every {self.execute_steps} actions, "
                        f"not every {count}")
    if not 1 <= count <= self.horizon:
      raise Pi0RagError(f"policy '{self.name}' cannot execute {count} actions of a chunk; allowed: 1 to {self.horizon}")
    return dataclasses.replace(self, execute_steps=count)

  @property
  def family(self) -> str:
    """'pi0', 'pi05', 'pi0_fast' or 'head'."""
    return HEAD if self.head is not None else self.model.family

  @property
  def horizon(self) -> int:
    """T, the actions of a chunk."""
    return self.head["head"]["chunk"] if self.head is not None else self.network.action_horizon

  @property
  def network(self) -> PaliGemmaConfig:
    """The sizes, of a policy that has a network of its own."""
    assert self.sizes is not None, "a head has no network of its own"
    return self.sizes

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the pictures that it was trained on, px."""
    height, width = self.head["image_size"] if self.head is not None else self.network.image_size
    return height, width

  @property
  def cameras(self) -> tuple[str, ...]:
    """The model's cameras."""
    return tuple(self.head["cameras"]) if self.head is not None else self.network.image_keys

  def save(self, directory, *, robot_file=None) -> None:
    """Writes `policy.json`.

    Args:
      robot_file: the configuration file of a robot that is a function; it is copied beside.
    """
    robot = self.data.robot
    if callable(robot):
      if robot_file is None:
        raise Pi0RagError("the robot is a function: say which file it is from, so that the policy can take it along")
      pathlib.Path(directory, ROBOT_FILE).write_text(pathlib.Path(robot_file).read_text(encoding="utf8"),
                                                     encoding="utf8")
      robot = ROBOT_FILE
    plain = dataclasses.asdict(dataclasses.replace(self, sizes=None, data=DataConfig(robot="")))
    values = {"version": VERSION, "name": self.name, "robot": robot,
              **{name: getattr(self.model, name) for name in _MODEL_FIELDS}, "family": self.family,
              **{name: getattr(self.data, name) for name in _DATA_FIELDS}, "asset_id": self.data.stats_id,
              "sizes": None if self.sizes is None else self.sizes.to_dict(),
              **{name: plain[name] for name in _OWN_FIELDS}}
    path = pathlib.Path(directory, FILE_NAME)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")

  @classmethod
  def load(cls, directory) -> "PolicySpec":
    """Returns the spec of a policy directory; one of version 1 is converted.

    Errors: Pi0RagError when the file is missing, is no JSON, or has other fields than these.
    """
    path = pathlib.Path(directory, FILE_NAME)
    if not path.is_file():
      raise Pi0RagError(f"no {FILE_NAME} in {directory}: a policy directory has params/, assets/ and {FILE_NAME} "
                        "(train.launch writes one)")
    values = schema.read(path, dict[str, Any])
    try:
      if "version" not in values:
        return cls._of_version_1(schema.convert(values, _Version1, "version 1"))
      if values["version"] != VERSION:
        raise Pi0RagError(f"version {values['version']!r}; this code reads versions 1 and {VERSION}")
      return cls._of_file(schema.convert(values, _File, f"version {VERSION}"), pathlib.Path(directory))
    except Pi0RagError as error:
      raise Pi0RagError(f"{path}: {error}") from error

  @classmethod
  def _of_file(cls, file: "_File", directory: pathlib.Path) -> "PolicySpec":
    robot = robot_of(directory / ROBOT_FILE) if file.robot == ROBOT_FILE else file.robot
    data = DataConfig(robot=robot, **{name: getattr(file, name) for name in _DATA_FIELDS})
    if file.sizes is None and file.head is None:
      raise Pi0RagError("sizes is null; allowed for heads alone")
    kind = "pi0" if file.head is not None else file.family
    sizes = None if file.head is not None else family.named(kind).read_sizes(file.sizes or {})
    model = _model_config(sizes, **{**{name: getattr(file, name) for name in _MODEL_FIELDS}, "family": kind})
    return cls(name=file.name, model=model, sizes=sizes, data=data,
               **{name: getattr(file, name) for name in _OWN_FIELDS})

  @classmethod
  def _of_version_1(cls, file: "_Version1") -> "PolicySpec":
    space = panda.ACTIONS
    if list(space.low) != file.action_layout.get("low") or list(space.high) != file.action_layout.get("high"):
      raise Pi0RagError("a policy of version 1 for another robot than the simulated Panda: train or export it anew")
    sizes = Pi0Config.from_dict(file.model)
    return cls(
      name=file.name, sizes=sizes, model=_model_config(sizes, family=family.of(sizes).name),
      data=DataConfig(robot="panda", asset_id=file.asset_id), control_hz=file.control_hz,
      execute_steps=file.execute_steps, denoising_steps=file.denoising_steps,
      tasks=tuple(filter(None, file.task.split("+"))), renderer=file.renderer)


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
  """What `policy.json` holds."""

  version: int
  name: str
  robot: str
  family: str
  sizes: dict[str, Any] | None
  default_prompt: str | None
  delta_mask: tuple[bool, ...] | None
  adapt_to_pi: bool
  action_space: str | None
  asset_id: str | None
  repack: dict[str, Any] | None = None
  discrete_state_input: bool
  action_tokenizer: str
  action_tokenizer_path: str | None
  control_hz: float
  execute_steps: int
  start: str
  denoising_steps: int
  decoding_steps: int
  temperature: float
  tasks: tuple[str, ...]
  renderer: str
  head: dict[str, Any] | None
  metadata: dict[str, Any]


class _Version1(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
  """The same of version 1, which knew the simulated Panda alone."""

  name: str
  model: dict[str, Any]
  state_dim: int
  action_layout: dict[str, list[float]]
  asset_id: str
  task: str
  renderer: str
  image_size: int
  control_hz: float
  execute_steps: int
  denoising_steps: int


_OWN_FIELDS = tuple(field.name for field in dataclasses.fields(PolicySpec)
                    if field.name not in ("name", "model", "sizes", "data"))


def check_start(start: str) -> None:
  """Raises Pi0RagError for what is no start of a flow."""
  if not isinstance(start, str) or (start not in (ZERO, NEW) and not _DRAW.fullmatch(start)):
    raise Pi0RagError(f"the flow starts at {start!r}; allowed: 'zero', 'draw:SEED' (one draw of noise for all "
                      "decisions) or 'new' (another one for each)")


def draw_seed(start: str) -> int | None:
  """Returns the seed of a fixed draw, None for the other starts."""
  found = _DRAW.fullmatch(start)
  return int(found[1]) if found else None


def _model_config(sizes: PaliGemmaConfig | None, **fields) -> ModelConfig:
  """Returns a model's configuration with the lengths of its sizes."""
  if sizes is None:
    return ModelConfig(**fields)
  return ModelConfig(action_dim=sizes.action_dim, action_horizon=sizes.action_horizon,
                     max_token_len=sizes.max_token_len, dtype=sizes.dtype, image_keys=sizes.image_keys, **fields)
