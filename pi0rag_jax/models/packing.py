"""Parameters laid out for inference, once, as a policy is loaded: the same mathematics in another rounding order.

Against openpi's tree, adapters are merged; each layer's parameters are arrays of their own, so that no loop has to cut
them out of a stack; queries, keys and values come from one matrix [in, out], gate and up projection from another; and
what is multiplied in the computing type is stored in it. `pack` returns the configuration whose network takes them.
"""

import dataclasses

import jax
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters
from pi0rag_jax.models.adapters import Config
from pi0rag_jax.models.gemma import PACKED_OUT, PACKED_QKV, GemmaConfig, expert_name
from pi0rag_jax.models.siglip import ATTENTION
from pi0rag_jax.typing import Array, Params


def pack(params: Params, config: Config, *, dtype=None) -> tuple[Params, Config]:
  """Returns (parameters, configuration) of the model laid out for inference.

  Args:
    params: in openpi's tree, of a model of `config`, with adapters or without.
    dtype: of all floating parameters; None keeps each one's own.
  Raises:
    Pi0RagError: the parameters are packed already, or their adapters are not those of the configuration.
  """
  if config.packed:
    raise Pi0RagError("the parameters are packed already: give those of openpi's tree")
  params, config = adapters.merge(params, config, dtype=dtype)
  towers = params["PaliGemma"]
  packed = {"img": _image_tower(towers["img"], config.siglip.depth),
            "llm": _language_model(towers["llm"], config.experts)}
  return {**params, "PaliGemma": packed}, dataclasses.replace(config, packed=True)


def _image_tower(params: Params, depth: int) -> Params:
  transformer = dict(params["Transformer"])
  stack = transformer.pop("encoderblock")
  layers = {f"encoderblock_{i}": _image_layer(layer) for i, layer in enumerate(_layers(stack, depth))}
  return {**params, "Transformer": {**transformer, **layers}}


def _image_layer(layer: Params) -> Params:
  attention = layer[ATTENTION]
  parts = [attention[name] for name in ("query", "key", "value")]
  width = parts[0]["kernel"].shape[0]
  qkv = {"kernel": _joined([part["kernel"].reshape(width, -1) for part in parts]),
         "bias": _joined([part["bias"].reshape(-1) for part in parts])}
  out = {"kernel": attention["out"]["kernel"].reshape(width, -1), "bias": attention["out"]["bias"]}
  return {**layer, ATTENTION: {"qkv": qkv, "out": out}}


def _language_model(params: Params, experts: tuple[GemmaConfig, ...]) -> Params:
  rest = {name: part for name, part in params.items() if name != "layers"}
  layers = _layers(params["layers"], experts[0].depth)
  return {**rest, **{f"layers_{i}": _language_layer(layer, experts) for i, layer in enumerate(layers)}}


def _language_layer(layer: Params, experts: tuple[GemmaConfig, ...]) -> Params:
  packed = {name: part for name, part in layer.items() if name.startswith(("pre_attention_norm", "pre_ffw_norm"))}
  packed["attn"] = {}
  for i, c in enumerate(experts):
    weight = lambda name, i=i: layer["attn"][expert_name(name, i)]["w"]  # noqa: E731
    # Each [..., heads, in, head_dim].
    fused = c.num_kv_heads == c.num_heads
    stack = weight("qkv_einsum") if fused else [weight("q_einsum"), *weight("kv_einsum")]
    heads = [_side_by_side(part_KDH) for part_KDH in stack]
    packed["attn"][expert_name(PACKED_QKV, i)] = _joined(heads)
    packed["attn"][expert_name(PACKED_OUT, i)] = weight("attn_vec_einsum").reshape(-1, c.width)
    mlp = layer[expert_name("mlp", i)]
    packed[expert_name("mlp", i)] = {"gating": _joined(list(mlp["gating_einsum"])), "linear": mlp["linear"]}
  return packed


def _side_by_side(weight_KDH):
  """Returns the matrix [D, K * H] of K heads."""
  return weight_KDH.transpose(1, 0, 2).reshape(weight_KDH.shape[1], -1)


def _layers(stack: Params, depth: int) -> list[Params]:
  """Returns the parameters of each layer of a stack."""
  arrays, tree = jax.tree.flatten(stack)
  return [tree.unflatten([np.asarray(array[i]) for array in arrays]) for i in range(depth)]


def _joined(parts: list[Array]):
  return np.concatenate(parts, axis=-1)
