"""How the parameters of openpi's PyTorch port map to openpi's own tree.

Facts: the tensor names and layouts that openpi's converter (examples/convert_jax_model_to_pytorch.py) writes to
model.safetensors. PyTorch keeps one tensor per layer and dense weights as [out, in]; openpi stacks the layers of a
tower on axis 0, keys with values and gate with up on the next one, and splits attention heads.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

PALIGEMMA = "paligemma_with_expert.paligemma"
VISION = f"{PALIGEMMA}.model.vision_tower.vision_model"
LANGUAGE = f"{PALIGEMMA}.model.language_model"
EXPERT = "paligemma_with_expert.gemma_expert.model"
EMBEDDING = f"{LANGUAGE}.embed_tokens.weight"
# The same tensor as EMBEDDING: the library that saves keeps the name that sorts first.
TIED_EMBEDDING = f"{PALIGEMMA}.lm_head.weight"
# A vocabulary head that an action expert never uses; it holds random numbers.
UNUSED = frozenset({"paligemma_with_expert.gemma_expert.lm_head.weight"})
# Of every pi0 and pi0.5; what precedes it in a file precedes all names there.
ACTION_HEAD = "action_out_proj.weight"
# Statistics that LeRobot once kept beside the weights.
LEROBOT_STATISTICS = re.compile(r"(un)?normalize_(inputs|targets|outputs)\..*")
# Where transformers before 4.52, and so LeRobot's older checkpoints, had parts of PaliGemma.
OLDER_NAMES = {
  f"{PALIGEMMA}.language_model.model.": f"{LANGUAGE}.",
  f"{PALIGEMMA}.language_model.lm_head.": f"{PALIGEMMA}.lm_head.",
  f"{PALIGEMMA}.vision_tower.": f"{PALIGEMMA}.model.vision_tower.",
  f"{PALIGEMMA}.multi_modal_projector.": f"{PALIGEMMA}.model.multi_modal_projector.",
}
# There in pi0.5 only.
ADAPTIVE_NORM = f"{EXPERT}.norm.dense.weight"

Layout = Callable[[np.ndarray, int], np.ndarray]


def ported_name(name: str, prefix: str) -> str | None:
  """Returns a stored tensor's name in openpi's port, None for what is no weight.

  Args:
    name: as stored; wrappers (`model.` of LeRobot, `module.`, `_orig_mod.`) put a prefix before every name.
    prefix: that of the file.
  """
  if LEROBOT_STATISTICS.fullmatch(name.removeprefix(prefix)):
    return None
  name = name.removeprefix(prefix)
  older = next((old for old in OLDER_NAMES if name.startswith(old)), None)
  return name if older is None else OLDER_NAMES[older] + name.removeprefix(older)


def same(tensor, heads):
  return tensor


def transposed(tensor, heads):
  """Dense weight [out, in] -> kernel [in, out]."""
  return tensor.T


def patches(tensor, heads):
  """Convolution [D, channels, height, width] -> [height, width, channels, D]."""
  return tensor.transpose(2, 3, 1, 0)


def positions(tensor, heads):
  """[tokens, D] -> [1, tokens, D]."""
  return tensor[None]


def split_bias(tensor, heads):
  """[N*H] -> [N, H]."""
  return tensor.reshape(heads, -1)


def split_outputs(tensor, heads):
  """Projection to heads [N*H, D] -> [D, N, H], as flax's attention has it."""
  return tensor.reshape(heads, -1, tensor.shape[1]).transpose(2, 0, 1)


def split_outputs_first(tensor, heads):
  """Projection to heads [N*H, D] -> [N, D, H], as Gemma's einsums have it."""
  return tensor.reshape(heads, -1, tensor.shape[1]).transpose(0, 2, 1)


def split_inputs(tensor, heads):
  """Projection from heads [D, N*H] -> [N, H, D]."""
  return tensor.reshape(tensor.shape[0], heads, -1).transpose(1, 2, 0)


@dataclasses.dataclass(frozen=True)
class Rule:
  """How one array of openpi's tree is made of tensors."""

  path: str  # '/'-joined
  names: tuple[str, ...]  # two are stacked; '{}' stands for the layer, and layers are stacked in front
  layout: Layout = same
  heads: str = "one"  # whose number of heads the layout splits by: one, vision, language or expert

  @property
  def layered(self) -> bool:
    return "{}" in self.names[0]


def rules(*, pi05: bool, embedding: str = EMBEDDING) -> list[Rule]:
  """Returns the rule of every array of a pi0 or pi0.5 model; `embedding` is the token table's name in the file."""
  projections = ["action_in_proj", "action_out_proj"]
  projections += ["time_mlp_in", "time_mlp_out"] if pi05 else [
    "state_proj", "action_time_mlp_in", "action_time_mlp_out"]
  return [
    *_vision_rules(),
    Rule("PaliGemma/llm/embedder/input_embedding", (embedding,)),
    *_gemma_rules(LANGUAGE, "", "language", adaptive=False),
    *_gemma_rules(EXPERT, "_1", "expert", adaptive=pi05),
    *(rule for name in projections for rule in _dense(name, name)),
  ]


def _vision_rules() -> list[Rule]:
  image = "PaliGemma/img"
  block, layer = f"{image}/Transformer/encoderblock", VISION + ".encoder.layers.{}"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  found = [
    Rule(f"{image}/embedding/kernel", (f"{VISION}.embeddings.patch_embedding.weight",), patches),
    Rule(f"{image}/embedding/bias", (f"{VISION}.embeddings.patch_embedding.bias",)),
    Rule(f"{image}/pos_embedding", (f"{VISION}.embeddings.position_embedding.weight",), positions),
    Rule(f"{attention}/out/kernel", (f"{layer}.self_attn.out_proj.weight",), split_inputs, "vision"),
    Rule(f"{attention}/out/bias", (f"{layer}.self_attn.out_proj.bias",)),
    *_norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1"),
    *_norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2"),
    *_dense(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1"),
    *_dense(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2"),
    *_norm(f"{image}/Transformer/encoder_norm", f"{VISION}.post_layernorm"),
    *_dense(f"{image}/head", f"{PALIGEMMA}.model.multi_modal_projector.linear"),
  ]
  for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
    name = f"{layer}.self_attn.{theirs}"
    found.append(Rule(f"{attention}/{ours}/kernel", (f"{name}.weight",), split_outputs, "vision"))
    found.append(Rule(f"{attention}/{ours}/bias", (f"{name}.bias",), split_bias, "vision"))
  return found


def _gemma_rules(prefix: str, suffix: str, heads: str, *, adaptive: bool) -> list[Rule]:
  """Returns the rules of one expert; `suffix` marks its arrays in openpi's tree."""
  llm, layer = "PaliGemma/llm", prefix + ".layers.{}"
  attention, mlp = f"{llm}/layers/attn", f"{llm}/layers/mlp{suffix}"
  key_value = (f"{layer}.self_attn.k_proj.weight", f"{layer}.self_attn.v_proj.weight")
  found = [
    Rule(f"{attention}/q_einsum{suffix}/w", (f"{layer}.self_attn.q_proj.weight",), split_outputs_first, heads),
    Rule(f"{attention}/kv_einsum{suffix}/w", key_value, split_outputs_first),
    Rule(f"{attention}/attn_vec_einsum{suffix}/w", (f"{layer}.self_attn.o_proj.weight",), split_inputs, heads),
    Rule(f"{mlp}/gating_einsum", (f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"), transposed),
    Rule(f"{mlp}/linear", (f"{layer}.mlp.down_proj.weight",), transposed),
  ]
  norms = (
    (f"{llm}/layers/pre_attention_norm{suffix}", f"{layer}.input_layernorm"),
    (f"{llm}/layers/pre_ffw_norm{suffix}", f"{layer}.post_attention_layernorm"),
    (f"{llm}/final_norm{suffix}", f"{prefix}.norm"),
  )
  for ours, theirs in norms:
    scale = [Rule(f"{ours}/scale", (f"{theirs}.weight",))]
    found += _dense(f"{ours}/Dense_0", f"{theirs}.dense") if adaptive else scale
  return found


def _dense(ours: str, theirs: str) -> list[Rule]:
  return [Rule(f"{ours}/kernel", (f"{theirs}.weight",), transposed), Rule(f"{ours}/bias", (f"{theirs}.bias",))]


def _norm(ours: str, theirs: str) -> list[Rule]:
  return [Rule(f"{ours}/scale", (f"{theirs}.weight",)), Rule(f"{ours}/bias", (f"{theirs}.bias",))]
