"""The whole way between a robot's dictionaries and a model's numbers, in openpi's order; training takes the same."""

from collections.abc import Mapping

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import family
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.robots import action_tokens, checks, fsq, normalize, transforms
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.robots.transforms import TransformGroup


def policy_transforms(data: DataConfig, model: ModelConfig, sizes: PaliGemmaConfig,
                      norm_stats: Mapping[str, normalize.NormStats], *, text_tokenizer: SentencePieceTokenizer,
                      action_codec: action_tokens.ActionCodec | None = None,
                      default_prompt: str | None = None) -> TransformGroup:
  """Returns all transforms of a policy in openpi's order: robot, deltas, normalization, model; and back.

  Args:
    sizes: the network's, whose action dim, horizon, prompt length and image size count.
    action_codec: of pi0-FAST; None loads the one that the model names.
    default_prompt: where an observation has none; the configuration's own comes after it.
  """
  robot, quantile = make_robot(data, model.family), model.use_quantile_norm
  if norm_stats:
    norm_stats = checks.check_stats(norm_stats, source="the statistics", quantile=quantile)
    _check_actions(robot, norm_stats["actions"], sizes.action_dim)
  needed = () if family.named(model.family).writes_tokens else sizes.image_keys
  group = TransformGroup(
    (transforms.InjectDefaultPrompt(default_prompt), robot.inputs,
     checks.CheckEntries(needed, floats=data.robot == "fake"), transforms.DeltaActions(robot.relative)),
    (transforms.AbsoluteActions(robot.relative), robot.outputs))
  if norm_stats:
    group = group.push(inputs=(transforms.Normalize(norm_stats, quantile, padded_dim=sizes.action_dim),),
                       outputs=(transforms.Unnormalize(norm_stats, quantile),
                                transforms.CutActions(norm_stats["actions"].dim)))
  return group.push(inputs=(transforms.InjectDefaultPrompt(data.default_prompt),
                            transforms.ResizeImages(*sizes.image_size))).push(
    **_tokenization(model, sizes, text_tokenizer, action_codec))


def load_codec(model: ModelConfig) -> action_tokens.ActionCodec:
  """Returns the codec of a pi0-FAST model's actions."""
  if model.action_tokenizer == "binning":
    return action_tokens.BinningCodec()
  if model.action_tokenizer == "fast":
    return action_tokens.FastCodec.load(model.action_tokenizer_path or action_tokens.FAST_REPOSITORY)
  if model.action_tokenizer_path is None:
    raise Pi0RagError("the action tokenizer 'fsq' is a learned one: set action_tokenizer_path")
  return fsq.FsqCodec.load(model.action_tokenizer_path)


def _check_actions(robot: Robot, stats: normalize.NormStats, model_dim: int) -> None:
  """Raises Pi0RagError for statistics of actions that the robot does not have; a robot that declares none may have any.
  """
  if robot.actions is not None:
    checks.check_action_stats(stats, robot.actions.dim, robot=robot.name, model_dim=model_dim)


def _tokenization(model: ModelConfig, sizes: PaliGemmaConfig, text: SentencePieceTokenizer, codec) -> dict:
  """Returns the transforms nearest to the model, as arguments of `TransformGroup.push`."""
  if not family.named(model.family).writes_tokens:
    return {"inputs": (transforms.TokenizePrompt(text, sizes.max_token_len, bool(model.discrete_state_input)),
                       transforms.PadStatesAndActions(sizes.action_dim, sizes.state_size))}
  tokenizer = action_tokens.ActionTokenizer(text, codec or load_codec(model))
  return {"inputs": (transforms.TokenizeActionPrompt(tokenizer, sizes.max_token_len),),
          "outputs": (transforms.ExtractActions(tokenizer, sizes.action_horizon, sizes.action_dim),)}


def as_stats(values: Mapping[str, Mapping]) -> dict[str, normalize.NormStats]:
  """Returns the statistics of a norm_stats.json by name."""
  return {name: normalize.NormStats.from_dict(each) for name, each in values.items()}
