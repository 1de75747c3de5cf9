"""openpi's policies by name: `create_policy(name, checkpoint).infer(observation)` returns what openpi's returns."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models import packing, pi0, pi0_fast, registry
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config, Pi0FastConfig
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.config import DataConfig, ModelConfig, TrainConfig
from pi0rag_jax.openpi.named_configs import get_config
from pi0rag_jax.policy import compiling
from pi0rag_jax.robots import action_tokens, checks, fsq, normalize, transforms
from pi0rag_jax.robots.robot import robot_transforms
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.robots.transforms import TransformGroup
from pi0rag_jax.typing import Params

OBSERVATION_KEYS = ("image", "image_mask", "state", "tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask",
                    "token_loss_mask")
PROMPT_BUCKET = 16  # tokens


class OpenpiPolicy:
  """A frozen model between the transforms of a robot; one observation at a time, as openpi's server runs it."""

  def __init__(self, model: PaliGemmaConfig, params: Params, group: TransformGroup, *,
               sample_kwargs: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
               seed: int = 0):
    """Takes the model's sizes, its parameters (packed or not, as these say) and all transforms to and from the robot.

    Args:
      sample_kwargs: see `checks.SAMPLE_OPTIONS`.
      metadata: what a server tells its clients.
      seed: of the noise, or of the tokens drawn, where a caller gives none.
    """
    self.model = model
    self.params = params
    self.metadata = dict(metadata or {})
    self._inputs = transforms.compose(group.inputs)
    self._outputs = transforms.compose(group.outputs)
    self._options = tuple(sorted((sample_kwargs or {}).items()))
    checks.check_options(dict(self._options), model)
    self._rng = jax.random.key(seed)
    self._leaves, self._tree = jax.tree.flatten(params)
    self._compiler_options = tuple(sorted(compiling.options(params).items()))

  def model_input(self, observation: Mapping) -> dict:
    """Returns the model's dictionary of a robot's, one sample: `image`, `image_mask`, `state`, `tokenized_prompt`."""
    if not isinstance(observation, Mapping):
      raise errors.Pi0RagError(f"the observation is {type(observation).__name__}; allowed: a robot's dictionary")
    return self._inputs(dict(observation))

  def infer(self, observation: Mapping, *, noise=None) -> dict:
    """Returns `actions` float64[T, A] in the robot's units and `policy_timing` {`infer_ms`}, the model's time.

    Args:
      observation: the robot's dictionary, see pi0rag_jax.robots.robot. It is not changed.
      noise: float[T, A'], or with a leading axis of 1, where the flow starts, A' the model's action dim; None draws
        it. pi0-FAST has no noise.
    Errors: Pi0RagError when an entry is missing or not of the robot's shape or range, with what is allowed.
    """
    inputs = self.model_input(observation)
    sample, batch = self._program(inputs)
    start = self._draw() if noise is None else self._given(noise)
    began = time.perf_counter()
    actions = np.asarray(sample(self._leaves, batch, start))[0]
    infer_ms = (time.perf_counter() - began) * 1000
    outputs = self._outputs({"state": np.asarray(inputs["state"], np.float32), "actions": actions})
    return {**outputs, "policy_timing": {"infer_ms": infer_ms}}

  def compile(self, observation: Mapping, *, all_prompts: bool = False) -> None:
    """Compiles what `infer` runs for observations with the cameras of this one, so that none waits for it.

    Each program runs once, since a device loads programs at their first call.

    Args:
      all_prompts: for prompts of every length; else of about the length of this one's, see `only_valid`.
    """
    inputs, start = self.model_input(observation), self._draw()
    longest = self.model.max_token_len
    lengths = range(PROMPT_BUCKET, longest + PROMPT_BUCKET, PROMPT_BUCKET) if all_prompts else ()
    for mask_L in (inputs["tokenized_prompt_mask"], *(np.arange(longest) < length for length in lengths)):
      sample, batch = self._program({**inputs, "tokenized_prompt_mask": mask_L})
      jax.block_until_ready(sample(self._leaves, batch, start))

  def _program(self, inputs: dict) -> tuple[Callable, dict]:
    """Returns the sampler of a model's dictionary, and what it takes of that beside the parameters."""
    given = {key: inputs[key] for key in OBSERVATION_KEYS if key in inputs}
    if isinstance(self.model, Pi0Config):
      given = only_valid(given, self.model.image_keys)
    sample = _sampler(self.model, tuple(sorted(given["image"])), self._options, self._compiler_options, self._tree)
    return sample, jax.tree.map(_as_batch, given)

  def _draw(self):
    """Returns where sampling starts when nobody says: noise float32[1, T, A'], or a key for pi0-FAST."""
    self._rng, noise_BTA, rng = _draw(self._rng, (1, self.model.action_horizon, self.model.action_dim))
    return rng if isinstance(self.model, Pi0FastConfig) else noise_BTA

  def _given(self, noise) -> np.ndarray:
    """Returns a caller's noise as float32[1, T, A']."""
    if isinstance(self.model, Pi0FastConfig):
      raise errors.Pi0RagError("pi0-FAST writes tokens and starts from no noise: leave `noise` out")
    noise = np.asarray(noise)
    wanted = (self.model.action_horizon, self.model.action_dim)
    if noise.shape not in (wanted, (1, *wanted)):
      raise errors.Pi0RagError(f"noise has shape {noise.shape}; allowed: {wanted}, one row per action step")
    if noise.dtype.kind not in "fiu" or not np.isfinite(noise).all():
      raise errors.Pi0RagError(f"noise of type {noise.dtype} has NaN or infinity, or no numbers; allowed: finite ones")
    return noise.reshape(1, *wanted).astype(np.float32)


def only_valid(inputs: dict, cameras: tuple[str, ...]) -> dict:
  """Returns a pi0 model's dictionary, one sample, without what its masks hide: absent cameras and padding tokens.

  Masked tokens are seen by no other and count no position, so nothing changes but the work. Prompts keep a length that
  is a multiple of PROMPT_BUCKET: one executable for each, and for each set of cameras.
  """
  masks = inputs.get("image_mask", {})
  present = [name for name in cameras if masks.get(name, True)] or list(cameras[:1])
  valid = {**inputs, "image": {name: inputs["image"][name] for name in present},
           "image_mask": {name: masks.get(name, np.True_) for name in present}}
  if "tokenized_prompt" in inputs:
    count = max(int(np.sum(inputs["tokenized_prompt_mask"])), 1)
    kept = -(-count // PROMPT_BUCKET) * PROMPT_BUCKET
    for name in ("tokenized_prompt", "tokenized_prompt_mask"):
      valid[name] = inputs[name][:kept]
  return valid


def _as_batch(array):
  """Returns an array with a leading axis of 1; doubles become float32, as they do in jax."""
  array = np.asarray(array)
  return array[None].astype(np.float32 if array.dtype == np.float64 else array.dtype, copy=False)


@functools.partial(jax.jit, static_argnames="shape")
def _draw(rng, shape: tuple[int, ...]):
  """Returns the key of the next draw, noise float32[*shape] and the key that it was drawn with."""
  rng, own = jax.random.split(rng)
  return rng, jax.random.normal(own, shape), own


@functools.lru_cache(maxsize=64)
def _sampler(model: PaliGemmaConfig, cameras: tuple[str, ...], options: tuple, compiler_options: tuple,
             tree) -> Any:
  """Returns the jitted sampler (leaves of the parameters, inputs, start) -> chunk or tokens, the batch of 1 first.

  Policies of one size share it.
  """
  if isinstance(model, Pi0FastConfig):
    # openpi's pi0-FAST takes the cameras that there are, in the order of their names.
    network = pi0_fast.Pi0Fast(dataclasses.replace(model, image_keys=cameras))
    sample = functools.partial(pi0_fast.sample_tokens, network, **dict(options))
  elif isinstance(model, Pi0Config):
    present = tuple(name for name in model.image_keys if name in cameras)
    network = pi0.Pi0(dataclasses.replace(model, image_keys=present))
    sample = functools.partial(pi0.sample_actions, network, **dict(options))
  else:
    raise errors.Pi0RagError(f"no policy of a {type(model).__name__}; allowed: Pi0Config and Pi0FastConfig")
  from_dict = functools.partial(_from_dict, sample)
  return jax.jit(compiling.on_leaves(from_dict, tree), compiler_options=dict(compiler_options))


def _from_dict(sample: Callable, params, inputs, start):
  """Returns what a sampler makes of the model's dictionary: pictures become numbers on the device."""
  return sample(params, Observation.from_dict(inputs), start)


@functools.lru_cache(maxsize=16)
def _parameter_shapes(model: PaliGemmaConfig) -> Params:
  return jax.eval_shape(functools.partial(registry.init, model), jax.random.key(0))


def create_policy(config: str | TrainConfig, checkpoint_dir=None, *, repack: TransformGroup | None = None,
                  sample_kwargs: Mapping[str, Any] | None = None, default_prompt: str | None = None,
                  norm_stats: Mapping[str, normalize.NormStats] | None = None, model: PaliGemmaConfig | None = None,
                  text_tokenizer: SentencePieceTokenizer | None = None,
                  action_codec: action_tokens.ActionCodec | None = None, dtype: str | None = "bfloat16",
                  weights: str | None = None, seed: int = 0) -> OpenpiPolicy:
  """Returns the policy of an openpi checkpoint.

  Args:
    config: the name of a configuration, or one of one's own.
    checkpoint_dir: a directory or a gs:// address, with `params` and `assets`; None: the configuration's release.
    repack: transforms before and after those of the robot, for dictionaries with other keys.
    sample_kwargs: see `checks.SAMPLE_OPTIONS`.
    default_prompt: where an observation has none; the configuration's own comes after it.
    norm_stats: instead of those in the checkpoint's assets; an empty dictionary for data that need none.
    model: sizes that are not the configuration's, such as a small model's.
    text_tokenizer, action_codec: instead of the published ones in openpi's cache.
    dtype: of the parameters; openpi serves in bfloat16. None keeps what is stored.
    weights: how the matrices of a pi0 or pi0.5 are stored, see `packing.pack`; None is as `dtype` says.
  Errors: Pi0RagError for an unknown name (with the nearest), and when checkpoint, statistics or tokenizers are
    missing or do not fit, saying how to get them.
  """
  config = get_config(config) if isinstance(config, str) else config
  checkpoint_dir = config.checkpoint if checkpoint_dir is None else checkpoint_dir
  if checkpoint_dir is None:
    raise errors.Pi0RagError(f"no checkpoint of '{config.name}' is released: give the directory of one, as training "
                             "writes it: params/ and assets/ in it")
  model = model or config.model.build()
  checks.check_model(model, config.model.family)
  if weights is not None and not isinstance(model, Pi0Config):
    raise errors.Pi0RagError(f"weights '{weights}' of a {config.model.family} model; allowed: None, since only pi0 and "
                             "pi0.5 are packed")
  # Everything that can be wrong is found before the large arrays are read.
  norm_stats = load_stats(config, checkpoint_dir) if norm_stats is None else norm_stats
  group = policy_transforms(
    config.data, config.model, model, norm_stats, default_prompt=default_prompt,
    text_tokenizer=text_tokenizer or SentencePieceTokenizer.paligemma(), action_codec=action_codec)
  if repack is not None:
    group = TransformGroup((*repack.inputs, *group.inputs), (*group.outputs, *repack.outputs))
  params = checkpoints.load_params(checkpoint_dir, dtype=dtype, template=_parameter_shapes(model), drop_extra=True)
  # openpi's layout keep pi0-FAST, which writes its tokens into stacked caches, and what is converted layer by layer.
  if isinstance(model, Pi0Config) and (weights is not None or not compiling.converts(params)):
    params, model = packing.pack(params, model, weights=weights)
  params = jax.device_put(params, jax.devices()[0])
  return OpenpiPolicy(model, params, group, sample_kwargs=sample_kwargs, metadata=config.policy_metadata, seed=seed)


def policy_transforms(data: DataConfig, model: ModelConfig, sizes: PaliGemmaConfig,
                      norm_stats: Mapping[str, normalize.NormStats], *, text_tokenizer: SentencePieceTokenizer,
                      action_codec: action_tokens.ActionCodec | None = None,
                      default_prompt: str | None = None) -> TransformGroup:
  """Returns all transforms of a policy in openpi's order: robot, deltas, normalization, model; and back.

  Args:
    sizes: the network's, whose action dim, horizon, prompt length and image size count.
    action_codec: of pi0-FAST; None loads the one that the model names.
  """
  robot = robot_transforms(data, model.family)
  if norm_stats:
    norm_stats = checks.check_stats(norm_stats, source="the statistics", quantile=model.use_quantile_norm)
    _check_actions(data, robot, norm_stats["actions"], sizes.action_dim)
  # pi0-FAST takes the cameras that there are.
  needed = () if model.family == "pi0_fast" else sizes.image_keys
  robot = robot.push(inputs=(checks.CheckEntries(needed, floats=data.robot == "fake"),))
  if data.delta_mask is not None:
    robot = robot.push(inputs=(transforms.DeltaActions(data.delta_mask),),
                       outputs=(transforms.AbsoluteActions(data.delta_mask),))
  group = TransformGroup((transforms.InjectDefaultPrompt(default_prompt), *robot.inputs), robot.outputs)
  if norm_stats:
    quantile = model.use_quantile_norm
    group = group.push(inputs=(transforms.Normalize(norm_stats, quantile, padded_dim=sizes.action_dim),),
                       outputs=(transforms.Unnormalize(norm_stats, quantile),))
  return group.push(inputs=(transforms.InjectDefaultPrompt(data.default_prompt),
                            transforms.ResizeImages(*sizes.image_size))).push(
    **_tokenization(model, sizes, text_tokenizer, action_codec))


def load_stats(config: TrainConfig, checkpoint_dir) -> dict[str, normalize.NormStats]:
  """Returns the statistics of the configuration's robot in a checkpoint; none for the debug configurations."""
  if config.data.robot == "fake":
    return {}
  if config.data.stats_id is None:
    raise errors.Pi0RagError(f"configuration '{config.name}' names no statistics: set asset_id or repo_id")
  loaded = checkpoints.load_norm_stats(checkpoint_dir, config.data.stats_id)
  return checks.check_stats(loaded, source=f"the statistics for '{config.data.stats_id}' in {checkpoint_dir}",
                            quantile=config.model.use_quantile_norm)


def load_codec(model: ModelConfig) -> action_tokens.ActionCodec:
  """Returns the codec of a pi0-FAST model's actions."""
  if model.action_tokenizer == "binning":
    return action_tokens.BinningCodec()
  if model.action_tokenizer == "fast":
    return action_tokens.FastCodec.load(model.action_tokenizer_path or action_tokens.FAST_REPOSITORY)
  if model.action_tokenizer_path is None:
    raise errors.Pi0RagError("the action tokenizer 'fsq' is a learned one: set action_tokenizer_path")
  return fsq.FsqCodec.load(model.action_tokenizer_path)


def _check_actions(data: DataConfig, robot: TransformGroup, stats: normalize.NormStats, model_dim: int) -> None:
  """Raises Pi0RagError for statistics of actions that a named robot does not have; one's own says nothing of them."""
  if isinstance(data.robot, str):
    chunk_TA = transforms.compose(robot.outputs)({"actions": np.zeros((1, model_dim))})["actions"]
    checks.check_action_stats(stats, chunk_TA.shape[-1], robot=data.robot, model_dim=model_dim)


def _tokenization(model: ModelConfig, sizes: PaliGemmaConfig, text: SentencePieceTokenizer, codec) -> dict:
  """Returns the transforms nearest to the model, as arguments of `TransformGroup.push`."""
  if model.family != "pi0_fast":
    return {"inputs": (transforms.TokenizePrompt(text, sizes.max_token_len, bool(model.discrete_state_input)),
                       transforms.PadStatesAndActions(sizes.action_dim))}
  tokenizer = action_tokens.ActionTokenizer(text, codec or load_codec(model))
  return {"inputs": (transforms.TokenizeActionPrompt(tokenizer, sizes.max_token_len),),
          "outputs": (transforms.ExtractActions(tokenizer, sizes.action_horizon, sizes.action_dim),)}
