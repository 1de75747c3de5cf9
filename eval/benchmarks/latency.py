"""`latency`: one chunk, ours against openpi's structure, in turn. `ablate`: ours with each change left out.

Both get the same parameters, the same pictures of three cameras of which some are masked, and the same steps. Each
share of the roofline is of the peaks that the same run measured. openpi itself has a process of its own and comes
before the others, since a process takes most of an accelerator's memory for itself.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from eval import naive
from eval.benchmarks import models, openpi_latency, peak, timing
from pi0rag_jax.models import packing, pi0
from pi0rag_jax.models.paligemma import apply
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.policy import compiling
from pi0rag_jax.typing import Params

# What is timed: its name, and the steps of the flow; 0 for what comes before them.
What = tuple[str, int]


def latency(flags: argparse.Namespace) -> Iterator[dict]:
  """Yields a row for each number of cameras, batch, steps of the flow and what was timed."""
  openpi = openpi_latency.measure(flags)
  params, config, packed, packed_config = _loaded(flags)
  for batch in flags.batches:
    for cameras in flags.cameras:
      obs, noise_BTA = models.observation(config, batch=batch, cameras=cameras), models.chunk(config, batch=batch)
      seen_config, seen = models.with_cameras(packed_config, obs, cameras)
      model = pi0.Pi0(seen_config)
      calls = _stages(model, packed, seen, noise_BTA, flags.steps) if flags.stages else {}
      for steps in flags.steps:
        calls["naive", steps] = _call(naive.sample_actions, pi0.Pi0(config), params, obs, noise_BTA, steps)
        calls["ours", steps] = _call(pi0.sample_actions, model, packed, seen, noise_BTA, steps)
      taken = timing.interleaved(calls, repeats=flags.repeats)
      if openpi is not None:
        taken |= {("openpi", steps): openpi.taken_ms[batch, cameras, steps] for steps in flags.steps}
      bounds = _bounds(model, packed, seen, noise_BTA, flags.steps)
      # openpi's model of the same name need not be ours: see `openpi_latency.VARIANTS`.
      same = openpi is not None and openpi.parameters == _count(params)
      for row in _rows(taken, bounds, ("naive", "openpi") if same else ("naive",)):
        yield {"size": flags.size, "batch": batch, "cameras": cameras, **row}


def _rows(taken: Mapping[What, np.ndarray], bounds: Mapping[What, float], peers: tuple[str, ...]) -> list[dict]:
  """Returns the times of each with its share of the roofline, then how many times slower the peers are."""
  rows = []
  for (name, steps), ms in taken.items():
    row = {"what": name, **({"steps": steps} if steps else {}), **timing.summary(ms)}
    if name in (*peers, *(known for known, _ in bounds)):
      bound_ms = bounds["ours" if name in peers else name, steps]  # of what there is to compute, however it is computed
      row |= {"bound_ms": round(bound_ms, 3), "of_roofline": round(bound_ms / float(np.median(ms)), 3)}
    rows.append(row)
  return rows + [{"what": f"{peer} / ours", "steps": steps, **timing.ratio(taken[peer, steps], ms)}
                 for (name, steps), ms in taken.items() if name == "ours" for peer in peers]


def ablate(flags: argparse.Namespace) -> list[dict]:
  """Returns the time of a chunk (batch 1, first of `cameras` and `steps`) with each change left out, and with all."""
  cameras, (params, config, packed, packed_config) = flags.cameras[0], _loaded(flags)
  obs, noise_BTA = models.observation(config, batch=1, cameras=cameras), models.chunk(config, batch=1)
  alone_config, alone = models.with_cameras(packed_config, obs, cameras)
  unpacked_config, _ = models.with_cameras(config, obs, cameras)
  call = functools.partial(_call, steps=flags.steps[0])
  calls = {
    "ours": call(pi0.sample_actions, pi0.Pi0(alone_config), packed, alone, noise_BTA),
    "without packed layers": call(pi0.sample_actions, pi0.Pi0(unpacked_config), params, alone, noise_BTA),
    "with masked cameras": call(pi0.sample_actions, pi0.Pi0(packed_config), packed, obs, noise_BTA),
    "with the last prefix layer's output": call(_with_hidden, pi0.Pi0(alone_config), packed, alone, noise_BTA),
    "state and time in each step": call(naive.sample_actions, pi0.Pi0(alone_config), packed, alone, noise_BTA),
    "naive": call(naive.sample_actions, pi0.Pi0(config), params, obs, noise_BTA)}
  taken = timing.interleaved(calls, repeats=flags.repeats)
  return [{"size": flags.size, "cameras": cameras, "what": name, **timing.summary(ms),
           **{f"{part}_vs_ours": value for part, value in timing.ratio(ms, taken["ours"]).items()}}
          for name, ms in taken.items()]


def _loaded(flags: argparse.Namespace) -> tuple[Params, Pi0Config, Params, Pi0Config]:
  """Returns parameters and model in openpi's layout, then the same in ours."""
  plain = models.SIZES[flags.size]
  config = dataclasses.replace(plain, attention_kernel=flags.kernel)
  compiling.check_layout(config, flags.weights)
  params = jax.device_put(models.params(plain))
  packed, config = packing.pack(params, config, weights=flags.weights, aligned=compiling.aligns())
  return params, plain, jax.device_put(packed), config


def _call(sample: Callable, model: pi0.Pi0, params: Params, obs, noise_BTA, steps: int) -> Callable:
  program = jax.jit(functools.partial(sample, model, num_steps=steps))
  return lambda: program(params, obs, noise_BTA)


def _with_hidden(model: pi0.Pi0, params: Params, obs, noise_BTA, *, num_steps: int):
  prefix = pi0.encode_prefix(model, params, obs)
  return pi0.denoise(model, params, prefix, obs.state, noise_BTA, num_steps=num_steps), prefix.hidden_BSD


def _stages(model: pi0.Pi0, params: Params, obs, noise_BTA, all_steps) -> dict[What, Callable]:
  """Returns the parts of a chunk as calls of their own."""
  encode = jax.jit(functools.partial(pi0.encode_prefix, model, keys_only=True))
  images = jax.jit(functools.partial(_images, model))
  prefix = encode(params, obs)

  def denoising(steps: int) -> Callable:
    denoise = jax.jit(functools.partial(pi0.denoise, model, num_steps=steps))
    return lambda: denoise(params, prefix, obs.state, noise_BTA)

  return {("vision", 0): lambda: images(params, obs), ("vision and prefix", 0): lambda: encode(params, obs),
          **{("denoising", steps): denoising(steps) for steps in all_steps}}


def _images(model: pi0.Pi0, params: Params, obs):
  return apply(model, params, lambda network, o: network.PaliGemma.embed_images(o), obs)


def _bounds(model: pi0.Pi0, params: Params, obs, noise_BTA, all_steps) -> dict[What, float]:
  """Returns the least time of each stage, in ms: products at the peak, or weights read at the speed of a copy."""
  towers = params["PaliGemma"]
  language = {name: part for name, part in towers["llm"].items() if name != "embedder"}
  expert, first = (_nbytes(part) for part in _by_expert(language))
  images, bound_ms = _nbytes(towers["img"]), functools.partial(peak.bound_ms, dtype=model.config.dtype)
  prefix_of = functools.partial(pi0.encode_prefix, model, keys_only=True)
  prefix = jax.eval_shape(prefix_of, params, obs)
  encode_ms = bound_ms(prefix_of, params, obs, weights=images + first)
  bounds = {("vision", 0): bound_ms(functools.partial(_images, model), params, obs, weights=images),
            ("vision and prefix", 0): encode_ms}
  for steps in all_steps:
    denoise = functools.partial(pi0.denoise, model, num_steps=steps)
    denoise_ms = bound_ms(denoise, params, prefix, obs.state, noise_BTA, weights=expert, passes=steps)
    bounds |= {("denoising", steps): denoise_ms, ("ours", steps): encode_ms + denoise_ms}
  return bounds


def _by_expert(language: Params) -> tuple[list, list]:
  """Returns the arrays of the action expert, and those of the prefix's."""
  leaves = jax.tree_util.tree_leaves_with_path(language)
  is_second = lambda path: any(str(key.key).endswith("_1") and not str(key.key).startswith("layers_") for key in path)  # noqa: E731
  return [x for path, x in leaves if is_second(path)], [x for path, x in leaves if not is_second(path)]


def _nbytes(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _count(tree) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))
