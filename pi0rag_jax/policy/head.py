"""Policies of a frozen backbone and a small head that is trained on its features: LSTM, transformer, MLP, discrete.

What the head remembers is the policy's carry. It answers from the first observation on and is asked at the pace of the
training windows' steps, every `execute_steps` actions. `spec.head` says all that loading needs: the head's sizes
(`head`) and `units`, the `backbone` and its `cameras` (see policy.backbone), `image_size` of the pictures that it was
trained on, `state_in_prompt`, the `fields` of its data sets, and by which fingerprints the backbone is recognized.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import base, registry
from pi0rag_jax.models.heads.base import HeadConfig, HeadOutput
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.policy import backbone, keys
from pi0rag_jax.policy.feature_cache import fingerprint
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.policy import Carry, Encoded, Policy, params_digest
from pi0rag_jax.policy.spec import HEAD, TOKENIZER_NAME, PolicySpec
from pi0rag_jax.robots import checks, normalize, plain
from pi0rag_jax.robots.pipeline import as_stats
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.typing import Array, Params

# Of directories before policy.json: the head, and the record whose configuration names the backbone.
FILE_NAME, RECORD_NAME, ASSET_ID = "head.json", "record.json", "head"
FINGERPRINTS = ("weights", "preprocessing")
FIELDS = ("head", "units", "backbone", "cameras", "image_size", "state_in_prompt", "fields", *FINGERPRINTS)


@dataclasses.dataclass(frozen=True)
class HeadUnits:
  """How a head's numbers and the robot's actions turn into one another."""

  config: HeadConfig
  stats: normalize.NormStats  # of the robot's actions, the gripper's entries among them but unused
  quantile: bool = False
  closed: float = 0.0  # the gripper's action that means closed, and open
  open: float = 1.0

  def __post_init__(self):
    if self.stats.dim != self.config.action_dim:
      raise Pi0RagError(f"the norm stats have {self.stats.dim} action dims, the head {self.config.action_dim}: "
                        "they belong to another robot or data set")
    if self.closed == self.open:
      raise Pi0RagError(f"the gripper is open at {self.open} and closed at {self.closed}: they must differ")

  def labels(self, actions) -> np.ndarray:
    """Returns training labels float32[..., A] of the robot's actions: motion normalized, gripper 1 (open) or 0."""
    labels = normalize.normalize(np.asarray(actions, np.float64), self.stats, quantile=self.quantile)
    gripper = list(self.config.gripper_index)
    share_open = (np.asarray(actions)[..., gripper] - self.closed) / (self.open - self.closed)
    labels[..., gripper] = share_open > 0.5
    return labels.astype(np.float32)

  def to_robot(self, output: HeadOutput) -> Array:
    """Returns the robot's actions float32[..., T, A] of a head's answer, the gripper open or closed (device side)."""
    mean_A, scale_A = normalize.affine(self.stats, quantile=self.quantile)
    actions = base.to_actions(self.config, output) * scale_A + mean_A
    gripper = jnp.where(output.gripper_logits > 0, self.open, self.closed)
    return actions.at[..., list(self.config.gripper_index)].set(gripper)


class HeadPolicy(Policy):
  """See the head of this file; the context of a decision is the head's answer."""

  def __init__(self, spec: PolicySpec, params: Params, *, extractor: FeatureExtractor, units: HeadUnits,
               key_stats: keys.KeyStats | None = None, seed: int = 0):
    """Takes the parts.

    Args:
      params: of the head.
      extractor: of the backbone's features, with the robot.
      key_stats: of the features; None: nobody measured them.
    """
    width, config = extractor.backbone.hidden_size, units.config
    key_stats = key_stats or keys.KeyStats.identity(keys.KeyRecipe(source=keys.FEATURES), width, unit_distance=None)
    self._check(extractor, config, key_stats)
    self.extractor, self.units, self.key_stats = extractor, units, key_stats
    self._head = registry.make(config)
    self._reset_rows = jax.jit(functools.partial(base.reset_rows, self._head))
    robot = plain.with_example(extractor.robot, extractor.backbone.image_keys, extractor.state_stats.dim,
                               extractor.backbone.image_size)
    check_actions(robot, units)
    digests = lambda: [params_digest(params), *(getattr(extractor, name) for name in FINGERPRINTS)]  # noqa: E731
    super().__init__(
      spec, robot, robot.actions or ActionSpace.of_stats(units.stats),
      jax.device_put({"backbone": extractor.params, "head": params, "keys": key_stats.params}, jax.devices()[0]),
      digest=lambda: fingerprint(digests())[:16], key_name=key_stats.name,
      key_dim=key_stats.key_dim(extractor.state_stats.dim), unit_distance=key_stats.unit_distance, seed=seed)

  @staticmethod
  def _check(extractor: FeatureExtractor, config: HeadConfig, key_stats: keys.KeyStats) -> None:
    width, state_dim = extractor.backbone.hidden_size, extractor.state_stats.dim
    if config.feature_dim != width:
      raise Pi0RagError(f"the head reads {config.feature_dim} features, the backbone gives {width}: it was trained on "
                        "another one")
    if config.state_dim not in (0, state_dim):
      raise Pi0RagError(f"the head reads {config.state_dim} dims of state, the robot has {state_dim}; allowed: all of "
                        "them or 0")
    if key_stats.recipe.source != keys.FEATURES or len(key_stats.mean) != width:
      raise Pi0RagError(f"the keys '{key_stats.name}' are made of {len(key_stats.mean)} numbers; a head's are made of "
                        f"the backbone's {width} ('{keys.FEATURES}')")

  @property
  def noise_shape(self) -> tuple[int, ...]:
    return ()

  def model_input(self, raw: Mapping) -> dict:
    if not isinstance(raw, Mapping):
      raise Pi0RagError(f"the observation is {type(raw).__name__}; allowed: a robot's dictionary")
    return self.extractor.model_input(dict(raw))

  def batch(self, samples: Sequence[Mapping]) -> dict:
    return self.extractor.batch(samples)

  def examples(self, raw: Mapping, *, all_prompts: bool = False) -> list[dict]:
    del all_prompts  # they have one length
    return [self.batch([self.model_input(raw)])]

  def start(self, rows: int) -> Carry:
    return base.init_state(self._head, rows)

  def restart(self, carry: Carry, rows_B) -> Carry:
    return self._reset_rows(carry, np.asarray(rows_B))

  def encode_fn(self, params: Params, carry: Carry, inputs: dict) -> tuple[Carry, Encoded]:
    obs = Observation.from_dict(inputs)
    features_BD = self.extractor.backbone.encode(params["backbone"], obs)
    rows_BD = jnp.concatenate([features_BD, obs.state], axis=-1) if self.units.config.state_dim else features_BD
    carry, output = base.step(self._head, params["head"], carry, rows_BD)
    return carry, Encoded(output, obs.state, keys.make_key(features_BD, obs.state, self.key_stats, params["keys"]))

  def decode_fn(self, params: Params, encoded: Encoded, start_BTX) -> Array:
    del params, start_BTX
    return self.units.to_robot(encoded.context)


def check_actions(robot: Robot, units: HeadUnits) -> None:
  """Raises Pi0RagError for a head that was trained on another robot's actions."""
  if robot.actions is not None:
    checks.check_action_stats(units.stats, robot.actions.dim, robot=robot.name, model_dim=robot.actions.dim)


def description(extractor: FeatureExtractor, units: HeadUnits, **values) -> dict:
  """Returns a `PolicySpec.head`, plain JSON values.

  Args:
    values: `backbone`, `image_size`, `state_in_prompt` and `fields`.
  """
  return {"head": registry.to_dict(units.config),
          "units": {name: getattr(units, name) for name in ("quantile", "closed", "open")},
          "cameras": list(extractor.backbone.image_keys), **values,
          **{name: getattr(extractor, name) for name in FINGERPRINTS}}


def describe(directory: str | Path) -> PolicySpec:
  """Returns the spec of a directory from before policy.json. Errors: Pi0RagError where its record lacks something."""
  values, record = (_read(Path(directory, name)) for name in (FILE_NAME, RECORD_NAME))
  with _told_by(f"{RECORD_NAME} in '{directory}'"):
    return _spec_of_record(values, record["config"], Path(directory))


@contextlib.contextmanager
def _told_by(file: str) -> Iterator[None]:
  """Turns what absent and absurd values of a description raise into the error that names its file."""
  try:
    yield
  except KeyError as error:
    raise Pi0RagError(f"{file} is not of a head's training: it lacks {error}") from error
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    raise Pi0RagError(f"{file} is not of a head's training: {str(error)[:200]}".splitlines()[0]) from error


def _spec_of_record(values: Mapping, config: Mapping, directory: Path) -> PolicySpec:
  fields = config["fields"]
  data = DataConfig(robot=plain.NAME, asset_id=ASSET_ID, default_prompt=fields.get("default_prompt"))
  made, _ = backbone.make(config["backbone"], list(fields["cameras"]))
  head = {**values, "backbone": config["backbone"], "cameras": list(made.image_keys), "fields": fields,
          "image_size": list(made.image_size), "state_in_prompt": config["state_in_prompt"]}
  if config["text_tokenizer"] and not (directory / TOKENIZER_NAME).is_file():
    head["tokenizer"] = config["text_tokenizer"]
  return PolicySpec(name=config["name"], model=ModelConfig(), sizes=None, data=data, execute_steps=config["stride"],
                    control_hz=1 / make_robot(data, HEAD).tick_s, head=head)


def build(spec: PolicySpec, directory: str | Path, *, key_name: str = "", key_stats: keys.KeyStats | None = None,
          default_prompt: str | None = None, seed: int = 0) -> HeadPolicy:
  """Returns the policy of a spec, its head's parameters in a directory, on the backbone that it was trained on.

  Errors: Pi0RagError when a part is missing, or the backbone found is another one.
  """
  head = spec.head or {}
  if missing := [name for name in FIELDS if name not in head]:
    raise Pi0RagError(f"{directory}: its head lacks {', '.join(missing)}")
  stats = as_stats(checkpoints.load_norm_stats(directory, spec.data.stats_id or ""))
  with _told_by(f"the head's description in '{directory}'"):
    config = registry.from_dict(head["head"])
    units = HeadUnits(config, stats["actions"], **head["units"])
    template = jax.eval_shape(functools.partial(base.init, registry.make(config)), jax.random.key(0))
    made, checkpoint = backbone.make(head["backbone"], head["cameras"])
  if key_stats is None and (key_name or keys.stats_path(directory).is_file()):
    key_stats = keys.KeyStats.load(directory, key_name)
  params = checkpoints.load_params(directory, template=template)
  extractor = FeatureExtractor(
    made, backbone.load_weights(made, checkpoint, directory), stats["state"], quantile=units.quantile,
    tokenizer=_tokenizer(head, directory) if made.max_token_len else None, state_in_prompt=head["state_in_prompt"],
    robot=make_robot(spec.data, HEAD), default_prompt=default_prompt or spec.data.default_prompt)
  for name in FINGERPRINTS:
    if head[name] != getattr(extractor, name):
      raise Pi0RagError(f"{directory}: the head was trained with other {name} of the backbone ({head[name][:16]}, "
                        f"given {getattr(extractor, name)[:16]})")
  return HeadPolicy(spec, params, extractor=extractor, units=units, key_stats=key_stats, seed=seed)


def _tokenizer(head: Mapping, directory: str | Path) -> SentencePieceTokenizer:
  """Returns the tokenizer in a directory, the file that an older head names, or PaliGemma's."""
  path = head.get("tokenizer") or Path(directory, TOKENIZER_NAME)
  return SentencePieceTokenizer(path) if Path(path).is_file() else SentencePieceTokenizer.paligemma()


def _read(path: Path) -> dict:
  if not path.is_file():
    raise Pi0RagError(f"no {path.name} in '{path.parent}': a head's directory without policy.json has {FILE_NAME}, "
                      f"{RECORD_NAME}, params/ and assets/")
  return schema.read(path, dict[str, Any])
