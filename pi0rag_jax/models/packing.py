"""Parameters laid out for inference, once, as a policy is loaded: the same mathematics in another rounding order.

Against openpi's tree, adapters are merged; each layer's parameters are arrays of their own, so that no loop has to cut
them out of a stack; queries, keys and values come from one matrix [in, out], gate and up projection from another; and
what is multiplied in the computing type is stored in it. `pack` returns the configuration whose network takes them.

The matrices may be stored with less precision. As int8, a GPU waits for half as many bytes as of bfloat16 where weights
are read more than they are multiplied, as in the flow's loop. As fp8 or bfloat16, what they are multiplied with is
rounded to the same type, and sums are of float32: what hardware with such products computes, wherever it runs. As w8a8
both are int8 and sums int32, from matrices that are turned, which is how cuBLAS takes such factors. Tables
of tokens and positions, norms and modulations, and the projections into and out of the towers stay as they are.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import adapters
from pi0rag_jax.models.adapters import Config
from pi0rag_jax.models.dense import FP8, INT8_MAX, TURNED
from pi0rag_jax.models.gemma import PACKED_OUT, PACKED_QKV, GemmaConfig, expert_name
from pi0rag_jax.models.siglip import ATTENTION, MLP
from pi0rag_jax.typing import Array, Params

Store = Callable[[Array], Params]


def pack(params: Params, config: Config, *, dtype=None, weights: str | None = None,
         aligned: bool = False) -> tuple[Params, Config]:
  """Returns (parameters, configuration) of the model laid out for inference.

  Args:
    params: in openpi's tree, of a model of `config`, with adapters or without.
    dtype: of all floating parameters; None keeps each one's own.
    weights: of the layers' matrices, one of WEIGHTS; None stores them in `dtype`.
    aligned: for an accelerator, see PaliGemmaConfig.
  Raises:
    Pi0RagError: the parameters are packed already, their adapters are not those of the configuration, or `weights` is
      unknown.
  """
  if weights is not None and weights not in WEIGHTS:
    raise unknown_name("storage of weights", weights, WEIGHTS)
  if config.packed:
    raise Pi0RagError("the parameters are packed already: give those of openpi's tree")
  params, config = adapters.merge(params, config, dtype=dtype)
  towers = params["PaliGemma"]
  store = _as_it_is if weights is None else WEIGHTS[weights]
  packed = {"img": _image_tower(towers["img"], config.siglip.depth, store),
            "llm": _language_model(towers["llm"], config.experts, store)}
  rest = {name: part for name, part in params.items() if name != "PaliGemma"}
  if aligned:  # multiplied in float32: else each step of the flow converts them
    rest = jax.tree.map(lambda x: np.asarray(x, np.float32), rest)
  return {**rest, "PaliGemma": packed}, dataclasses.replace(config, packed=True, aligned=aligned)


def quantize(kernel_DF) -> Params:
  """Returns {kernel: int8[D, F], scale: float32[F]} with kernel * scale within scale / 2 of a matrix."""
  kernel_DF = np.asarray(kernel_DF).astype(np.float32)
  largest_F = np.abs(kernel_DF).max(axis=0)
  scale_F = np.where(largest_F > 0, largest_F / INT8_MAX, 1).astype(np.float32)
  return {"kernel": np.rint(kernel_DF / scale_F).astype(np.int8), "scale": scale_F}


def quantize_fp8(kernel_DF) -> Params:
  """Returns {kernel: float8_e4m3fn[D, F], scale: float32[F]}, each column as large as the type allows."""
  kernel_DF = np.asarray(kernel_DF).astype(np.float32)
  largest_F = np.abs(kernel_DF).max(axis=0)
  scale_F = np.where(largest_F > 0, largest_F / np.float32(jnp.finfo(FP8).max), 1).astype(np.float32)
  return {"kernel": (kernel_DF / scale_F).astype(FP8), "scale": scale_F}


def _quantize_turned(kernel_DF) -> Params:
  """Returns {turned: int8[F, D], scale: float32[F]}, the numbers of `quantize`."""
  stored = quantize(kernel_DF)
  return {TURNED: np.ascontiguousarray(stored["kernel"].T), "scale": stored["scale"]}


def _bfloat16(kernel_DF) -> Params:
  return {"kernel": np.asarray(kernel_DF).astype(jnp.bfloat16), "scale": np.ones(kernel_DF.shape[1], np.float32)}


def _as_it_is(kernel) -> Params:
  return {"kernel": kernel}


WEIGHTS: dict[str, Store] = {
  "int8": quantize, "w8a8": _quantize_turned, "fp8": quantize_fp8, "bfloat16": _bfloat16}


def _image_tower(params: Params, depth: int, store: Store) -> Params:
  transformer = dict(params["Transformer"])
  stack = transformer.pop("encoderblock")
  layers = {f"encoderblock_{i}": _image_layer(layer, store) for i, layer in enumerate(_layers(stack, depth))}
  return {**params, "Transformer": {**transformer, **layers}}


def _image_layer(layer: Params, store: Store) -> Params:
  attention = layer[ATTENTION]
  parts = [attention[name] for name in ("query", "key", "value")]
  width = parts[0]["kernel"].shape[0]
  qkv = {**store(_joined([part["kernel"].reshape(width, -1) for part in parts])),
         "bias": _joined([part["bias"].reshape(-1) for part in parts])}
  out = {**store(attention["out"]["kernel"].reshape(-1, width)), "bias": attention["out"]["bias"]}
  mlp = {name: {**store(dense["kernel"]), "bias": dense["bias"]} for name, dense in layer[MLP].items()}
  return {**layer, ATTENTION: {"qkv": qkv, "out": out}, MLP: mlp}


def _language_model(params: Params, experts: tuple[GemmaConfig, ...], store: Store) -> Params:
  rest = {name: part for name, part in params.items() if name != "layers"}
  layers = _layers(params["layers"], experts[0].depth)
  return {**rest, **{f"layers_{i}": _language_layer(layer, experts, store) for i, layer in enumerate(layers)}}


def _language_layer(layer: Params, experts: tuple[GemmaConfig, ...], store: Store) -> Params:
  packed = {name: part for name, part in layer.items() if name.startswith(("pre_attention_norm", "pre_ffw_norm"))}
  packed["attn"] = {}
  for i, c in enumerate(experts):
    weight = lambda name, i=i: layer["attn"][expert_name(name, i)]["w"]  # noqa: E731
    # Each [..., heads, in, head_dim].
    fused = c.num_kv_heads == c.num_heads
    stack = weight("qkv_einsum") if fused else [weight("q_einsum"), *weight("kv_einsum")]
    heads = [_side_by_side(part_KDH) for part_KDH in stack]
    packed["attn"][expert_name(PACKED_QKV, i)] = store(_joined(heads))
    packed["attn"][expert_name(PACKED_OUT, i)] = store(weight("attn_vec_einsum").reshape(-1, c.width))
    mlp = layer[expert_name("mlp", i)]
    packed[expert_name("mlp", i)] = {
      "gating": store(_joined(list(mlp["gating_einsum"]))), "linear": store(mlp["linear"])}
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
