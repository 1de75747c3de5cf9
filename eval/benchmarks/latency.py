"""`latency`: one chunk, ours against openpi's structure, in turn. `ablate`: ours with each change left out.

Both get the same parameters, the same pictures of three cameras of which some are masked, and ten steps. Each share of
the roofline is of the peaks that the same run measured.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from eval import naive
from eval.benchmarks import models, peak, timing
from pi0rag_jax.models import packing, pi0
from pi0rag_jax.models.paligemma import apply
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.typing import Params

STEPS = 10


def latency(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each number of cameras, batch and what was timed."""
  config = models.SIZES[flags.size]
  params = jax.device_put(models.params(config))
  packed, packed_config = _packed(params, config, flags.kernel)
  rows = []
  for batch in flags.batches:
    for cameras in flags.cameras:
      obs, noise_BTA = models.observation(config, batch=batch, cameras=cameras), models.chunk(config, batch=batch)
      seen_config, seen = models.with_cameras(packed_config, obs, cameras)
      model = pi0.Pi0(seen_config)
      calls = {
        "naive": _call(naive.sample_actions, pi0.Pi0(config), params, obs, noise_BTA),
        "ours": _call(pi0.sample_actions, model, packed, seen, noise_BTA),
        **_stages(model, packed, seen, noise_BTA)}
      taken = timing.interleaved(calls, repeats=flags.repeats)
      bounds = _bounds(model, packed, seen, noise_BTA)
      here = {"size": flags.size, "batch": batch, "cameras": cameras}
      for name, ms in taken.items():
        bound_ms = bounds["ours" if name == "naive" else name]  # of what there is to compute, however it is computed
        rows.append({**here, "what": name, **timing.summary(ms), "bound_ms": round(bound_ms, 3),
                     "of_roofline": round(bound_ms / float(np.median(ms)), 3)})
      rows.append({**here, "what": "naive / ours", **timing.ratio(taken["naive"], taken["ours"])})
  return rows


def ablate(flags: argparse.Namespace) -> list[dict]:
  """Returns the time of a chunk (batch 1, the first of `cameras`) with each change left out, and of all and none."""
  config, cameras = models.SIZES[flags.size], flags.cameras[0]
  params = jax.device_put(models.params(config))
  packed, packed_config = _packed(params, config, flags.kernel)
  obs, noise_BTA = models.observation(config, batch=1, cameras=cameras), models.chunk(config, batch=1)
  alone_config, alone = models.with_cameras(packed_config, obs, cameras)
  unpacked_config, _ = models.with_cameras(config, obs, cameras)
  calls = {
    "ours": _call(pi0.sample_actions, pi0.Pi0(alone_config), packed, alone, noise_BTA),
    "without packed layers": _call(pi0.sample_actions, pi0.Pi0(unpacked_config), params, alone, noise_BTA),
    "with masked cameras": _call(pi0.sample_actions, pi0.Pi0(packed_config), packed, obs, noise_BTA),
    "with the last prefix layer's output": _call(_with_hidden, pi0.Pi0(alone_config), packed, alone, noise_BTA),
    "state and time in each step": _call(naive.sample_actions, pi0.Pi0(alone_config), packed, alone, noise_BTA),
    "naive": _call(naive.sample_actions, pi0.Pi0(config), params, obs, noise_BTA)}
  taken = timing.interleaved(calls, repeats=flags.repeats)
  return [{"size": flags.size, "cameras": cameras, "what": name, **timing.summary(ms),
           **{f"{part}_vs_ours": value for part, value in timing.ratio(ms, taken["ours"]).items()}}
          for name, ms in taken.items()]


def _packed(params: Params, config: Pi0Config, kernel: str) -> tuple[Params, Pi0Config]:
  packed, packed_config = packing.pack(params, config)
  return jax.device_put(packed), dataclasses.replace(packed_config, attention_kernel=kernel)


def _call(sample: Callable, model: pi0.Pi0, params: Params, obs, noise_BTA) -> Callable:
  program = jax.jit(functools.partial(sample, model, num_steps=STEPS))
  return lambda: program(params, obs, noise_BTA)


def _with_hidden(model: pi0.Pi0, params: Params, obs, noise_BTA, *, num_steps: int):
  prefix = pi0.encode_prefix(model, params, obs)
  return pi0.denoise(model, params, prefix, obs.state, noise_BTA, num_steps=num_steps), prefix.hidden_BSD


def _stages(model: pi0.Pi0, params: Params, obs, noise_BTA) -> dict[str, Callable]:
  """Returns the parts of a chunk as calls of their own."""
  encode = jax.jit(functools.partial(pi0.encode_prefix, model, keys_only=True))
  images = jax.jit(functools.partial(_images, model))
  denoise = jax.jit(functools.partial(pi0.denoise, model, num_steps=STEPS))
  prefix = encode(params, obs)
  return {"vision": lambda: images(params, obs), "vision and prefix": lambda: encode(params, obs),
          "denoising": lambda: denoise(params, prefix, obs.state, noise_BTA)}


def _images(model: pi0.Pi0, params: Params, obs):
  return apply(model, params, lambda network, o: network.PaliGemma.embed_images(o), obs)


def _bounds(model: pi0.Pi0, params: Params, obs, noise_BTA) -> dict[str, float]:
  """Returns the least time of each stage, in ms: products at the peak, or weights read at the speed of a copy."""
  config = model.config
  dtype, towers = config.dtype, params["PaliGemma"]
  language = {name: part for name, part in towers["llm"].items() if name != "embedder"}
  expert, first = (_nbytes(part) for part in _by_expert(language))
  prefix_of = functools.partial(pi0.encode_prefix, model, keys_only=True)
  prefix = jax.eval_shape(prefix_of, params, obs)
  vision_ms = peak.bound_ms(functools.partial(_images, model), params, obs, dtype=dtype, weights=_nbytes(towers["img"]))
  encode_ms = peak.bound_ms(prefix_of, params, obs, dtype=dtype, weights=_nbytes(towers["img"]) + first)
  denoise_ms = peak.bound_ms(functools.partial(pi0.denoise, model, num_steps=STEPS), params, prefix, obs.state,
                             noise_BTA, dtype=dtype, weights=expert, passes=STEPS)
  return {"vision": vision_ms, "vision and prefix": encode_ms, "denoising": denoise_ms, "ours": encode_ms + denoise_ms}


def _by_expert(language: Params) -> tuple[list, list]:
  """Returns the arrays of the action expert, and those of the prefix's."""
  leaves = jax.tree_util.tree_leaves_with_path(language)
  is_second = lambda path: any(str(key.key).endswith("_1") and not str(key.key).startswith("layers_") for key in path)  # noqa: E731
  return [x for path, x in leaves if is_second(path)], [x for path, x in leaves if not is_second(path)]


def _nbytes(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))

