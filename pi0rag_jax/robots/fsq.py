"""The learned quantizer of RoboArena's `paligemma_vq_droid`: from its codes back to an action chunk.

Only the decoder: openpi's policy never encodes. Modules and fields carry the names of the stored tree and
configuration. Letters beyond the project's key: `C` code.
"""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pi0rag_jax import errors, schema
from pi0rag_jax.openpi import download, orbax_source

# Levels of each number of a code, by the size of the codebook.
LEVELS = {2**8: (16, 16), 2**10: (32, 32), 2**12: (64, 64), 2**14: (128, 128), 2**16: (256, 256)}
HEAD_DIM = 64
CONFIG_FIELDS = ("embed_dim", "data_dim", "data_horizon", "num_tokens", "num_layers", "target_codebook_size")
TIMESCALE = 10_000.0


class Codebook(nn.Module):
  """Digits of a code, spread over [-1, 1] and projected to the decoder's width."""

  width: int
  levels: tuple[int, ...]

  @nn.compact
  def __call__(self, codes_BC):
    """Returns float[B, C, D]."""
    levels = np.array(self.levels)
    place = np.cumprod((1, *self.levels[:-1]))
    digits = (codes_BC[..., None] // place) % levels
    return nn.Dense(self.width, name="proj_up")(digits / (levels - 1) * 2 - 1)


class GatedUnit(nn.Module):
  """Half of a projection, gated by the gelu of the other half."""

  @nn.compact
  def __call__(self, x_BTD):
    value, gate = jnp.split(nn.Dense(2 * x_BTD.shape[-1], name="Dense_0")(x_BTD), 2, axis=-1)
    return value * nn.gelu(gate)


class Layer(nn.Module):
  """Attention among the actions, then to the codes, then a gated network; norms before each."""

  mlp_ratio: float
  causal: bool

  @nn.compact
  def __call__(self, x_BTD, codes_BCD):
    width = x_BTD.shape[-1]
    own_mask, code_mask = (_causal_masks(x_BTD, codes_BCD) if self.causal else (None, None))
    normed = nn.LayerNorm(name="LayerNorm_0")(x_BTD)
    attend = nn.MultiHeadDotProductAttention(num_heads=width // HEAD_DIM, name="MultiHeadDotProductAttention_0")
    x_BTD = x_BTD + attend(normed, normed, mask=own_mask)
    normed = nn.LayerNorm(name="LayerNorm_1")(x_BTD)
    attend = nn.MultiHeadDotProductAttention(num_heads=width // HEAD_DIM, name="MultiHeadDotProductAttention_1")
    x_BTD = x_BTD + attend(normed, codes_BCD, mask=code_mask)
    hidden = nn.Dense(int(width * self.mlp_ratio), name="Dense_0")(nn.LayerNorm(name="LayerNorm_2")(x_BTD))
    return x_BTD + nn.Dense(width, name="Dense_1")(GatedUnit(name="GeGLU_0")(hidden))


class Decoder(nn.Module):
  """Learned queries, one per action step, that read the codes."""

  horizon: int
  num_layers: int
  mlp_ratio: float
  causal: bool

  @nn.compact
  def __call__(self, codes_BCD):
    queries_TD = self.param("q_embed", _sinusoids, (self.horizon, codes_BCD.shape[-1]))
    x_BTD = jnp.broadcast_to(queries_TD, (len(codes_BCD), *queries_TD.shape))
    codes_BCD = codes_BCD + self.param("y_pos_enc", _sinusoids, codes_BCD.shape[-2:])
    for i in range(self.num_layers):
      x_BTD = Layer(self.mlp_ratio, self.causal, name=f"CrossAttentionLayer_{i}")(x_BTD, codes_BCD)
    return x_BTD


class FsqDecoder(nn.Module):
  """From codes int32[B, C] to normalized actions float32[B, T, A]."""

  embed_dim: int
  data_dim: int
  data_horizon: int
  num_tokens: int
  num_layers: int
  target_codebook_size: int
  mlp_ratio: float = 2.0
  causal: bool = False

  @nn.compact
  def __call__(self, codes_BC):
    codes_BCD = Codebook(self.embed_dim, LEVELS[self.target_codebook_size], name="codebook")(codes_BC)
    decoder = Decoder(self.data_horizon, self.num_layers, self.mlp_ratio, self.causal, name="decoder")
    mean_BTA = nn.Dense(self.data_dim, name="proj_mean")(decoder(codes_BCD))
    return mean_BTA * self.param("out_scale", nn.initializers.ones, ())


class FsqCodec:
  """The codec of `action_tokens.ActionTokenizer` around an `FsqDecoder`."""

  def __init__(self, config: dict, params):
    """Takes openpi's configuration of its quantizer and the stored parameters, of which the decoder's are used."""
    config = {key: value for key, value in config.items() if value is not None}
    missing = [key for key in CONFIG_FIELDS if key not in config]
    if missing:
      raise errors.Pi0RagError(f"the quantizer's configuration lacks {', '.join(missing)}; it has {sorted(config)}")
    if config["target_codebook_size"] not in LEVELS:
      raise errors.Pi0RagError(f"target_codebook_size is {config['target_codebook_size']}; allowed: {sorted(LEVELS)}")
    if config.get("use_state_conditioning"):
      raise errors.Pi0RagError("the quantizer is conditioned on the state; openpi's policies have none of this kind")
    self._num_codes = config["num_tokens"]
    module = FsqDecoder(**{key: config[key] for key in (*CONFIG_FIELDS, "mlp_ratio", "causal") if key in config})
    # On the host's processor: a few codes per chunk.
    self._params = jax.device_put(params, jax.devices("cpu")[0])
    self._decode = jax.jit(lambda params, codes_BC: module.apply({"params": params}, codes_BC))

  @classmethod
  def load(cls, url: str) -> "FsqCodec":
    """Returns the codec at an address or in a directory, laid out as openpi's: one step with `params` and `config`."""
    root = download.fetch(url) if download.is_remote(url) else pathlib.Path(url)
    steps = [int(p.name) for p in root.glob("*") if p.name.isdigit() and (p / "params").is_dir()]
    if not steps:
      raise errors.Pi0RagError(f"{root} holds no quantizer: expected a folder named by a step, with params/ and "
                               "config/ in it")
    step = root / str(max(steps))
    # JSON of Orbax: one file, named metadata in all versions.
    config = schema.read(step / "config" / "metadata", dict[str, Any])
    try:
      with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((step / "params").absolute())
    except Exception as error:  # of Orbax: what a broken item raises has no common base
      raise orbax_source.damaged(step / "params", str(error)) from error
    return cls(config, params)

  def encode(self, actions_TA) -> list[int]:
    raise errors.Pi0RagError("the quantizer of paligemma_vq_droid only decodes; train with FAST or with bins")

  def decode(self, ids, horizon: int, dim: int) -> np.ndarray:
    if len(ids) != self._num_codes:
      # As in openpi, whose learned positions fit one number of codes.
      return np.zeros((horizon, dim))
    with jax.default_device(jax.devices("cpu")[0]):
      actions_TA = np.asarray(self._decode(self._params, np.asarray(ids, np.int32)[None])[0])
    return actions_TA.reshape(horizon, dim) if actions_TA.size == horizon * dim else np.zeros((horizon, dim))


def _causal_masks(x_BTD, codes_BCD):
  """Returns the masks of openpi's causal layers."""
  steps, codes = x_BTD.shape[-2], codes_BCD.shape[-2]
  per_code, per_step = max(steps // codes, 1), max(codes // steps, 1)
  # openpi compares the first feature of both here, where positions were meant; stored weights were trained so.
  blocks = lambda q, k: q // per_step >= k // per_code  # noqa: E731
  own_mask = nn.make_causal_mask(x_BTD[..., 0])
  return own_mask, nn.make_attention_mask(x_BTD[..., 0], codes_BCD[..., 0], pairwise_fn=blocks)


def _sinusoids(rng, shape):
  """Returns sines then cosines of the position, float32[positions, D]."""
  del rng
  positions, width = shape
  rate = jnp.exp(-jnp.arange(0, width, 2) * (np.log(TIMESCALE) / width))
  angles = jnp.arange(positions)[:, None] * rate
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
