"""Runs recorded openpi cases through this project's models and says how far each output is off.

  python -m eval.parity --case=DIR [--case=DIR2]

A case is a directory with `checkpoint/`, `case.json` and `io.npz`, written by openpi. The exit status is 1
when an output is over its gate, 2 when a case cannot be run.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention, embedding, flow, pi0
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.siglip import SiglipConfig
from pi0rag_jax.openpi.checkpoints import load_params

FLAGS = flags.FLAGS

STAGE_GATE = 2e-5  # float32, absolute
SAMPLING_GATE = 1e-4  # float32, absolute
BF16_GATE = 2e-2  # relative root mean square
# openpi drew these times in another compilation; one ulp of t moves the time embedding by 1e-4.
DRAWN_TIME_GATE = 1e-4
SUPPORTED_KINDS = ("pi0", "pi05")


@dataclasses.dataclass(frozen=True)
class Case:
  """A recorded case as read from disk."""

  name: str
  config: pi0.Pi0Config
  io: dict[str, np.ndarray]
  checkpoint: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Deviation:
  """How far one output is from the recorded one, and how far it may be."""

  name: str
  value: float
  gate: float
  measure: str  # "max abs" or "relative rms"

  @property
  def passed(self) -> bool:
    return self.value <= self.gate


def load_case(path) -> Case:
  """Returns the case in a directory, or says why it cannot be run."""
  path = pathlib.Path(path)
  if not (path / "case.json").is_file() or not (path / "io.npz").is_file():
    raise Pi0RagError(f"{path} is no recorded case: expected case.json and io.npz in it")
  facts = json.loads((path / "case.json").read_text())
  name, kind = facts.get("case", path.name), facts.get("kind")
  if kind not in SUPPORTED_KINDS:
    raise Pi0RagError(f"case {name} is of kind {kind or name}; supported kinds: {', '.join(SUPPORTED_KINDS)}")
  if facts["config"]["lora"] is not None:
    raise Pi0RagError(f"case {name} has LoRA parameters; supported: {', '.join(SUPPORTED_KINDS)} without LoRA")
  with np.load(path / "io.npz") as arrays:
    io = {key: arrays[key] for key in arrays.files}
  return Case(name, read_config(facts["config"]), io, path / "checkpoint")


def read_config(recorded: dict) -> pi0.Pi0Config:
  """Returns the model configuration that a case.json describes in openpi's words."""
  model, siglip = recorded["model"], recorded["siglip"]
  return pi0.Pi0Config(
    action_dim=model["action_dim"], action_horizon=model["action_horizon"], vocab_size=recorded["vocab"],
    max_token_len=model["max_token_len"], dtype=model["dtype"], pi05=model["pi05"],
    paligemma=GemmaConfig(**recorded["gemma_2b"]), expert=GemmaConfig(**recorded["gemma_300m"]),
    siglip=SiglipConfig(**{**siglip, "patch_size": siglip["patch_size"][0]}))


def read_observation(io) -> Observation:
  """Returns the recorded input observation, images converted as the model takes them."""
  data = {"state": io["in/state"], "image": {}, "image_mask": {}}
  for key in ("tokenized_prompt", "tokenized_prompt_mask"):
    data[key] = jnp.asarray(io[f"in/{key}"])
  for key, array in io.items():
    parts = key.split("/")
    if parts[:2] in (["in", "image"], ["in", "image_mask"]):
      data[parts[1]][parts[2]] = jnp.asarray(array)
  return Observation.from_dict(data)


def run_stages(model: pi0.Pi0, params, io) -> Iterator[tuple[str, jax.Array]]:
  """Yields (output name, array) of every recorded stage of the training pass."""
  obs, time_B = read_observation(io), jnp.asarray(io["in/time"])

  def apply(method, *args):
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(params, *args)

  prefix = apply(pi0.Pi0.embed_prefix, obs)
  yield from zip(("embed_prefix/tokens", "embed_prefix/mask", "embed_prefix/ar_mask"), prefix)
  for camera, span in embedding.prefix_spans(model.config).items():
    if camera != embedding.LANGUAGE:
      yield f"siglip/{camera}", prefix[0][:, span]
  x_BTA, velocity_BTA = flow.interpolate(io["in/actions"], io["in/noise"], time_B)
  yield from (("x_t", x_BTA), ("u_t", velocity_BTA))
  suffix = apply(pi0.Pi0.embed_suffix, obs.state, x_BTA, time_B)
  names = ("tokens", "mask", "ar_mask", "adarms_cond")
  yield from ((f"embed_suffix/{n}", array) for n, array in zip(names, suffix) if array is not None)
  mask_BS = jnp.concatenate([prefix[1], suffix[1]], axis=1)
  yield "positions", attention.token_positions(mask_BS)
  rows_BSS = attention.attention_mask(mask_BS, jnp.concatenate([prefix[2], suffix[2]]))
  yield "attn_mask_rowsum", rows_BSS.sum(axis=-1)
  yield from zip(("prefix_out", "suffix_out", "v_t"), apply(pi0.Pi0.joint, obs, x_BTA, time_B))


def run_losses_and_samples(model: pi0.Pi0, params, io) -> Iterator[tuple[str, jax.Array]]:
  """Yields (output name, array) of the recorded losses, prefix cache and sampled chunks."""
  obs = read_observation(io)
  loss = jax.jit(lambda p, noise, time: pi0.loss(model, p, obs, io["in/actions"], noise, time))
  yield "loss_given_noise_time", loss(params, io["in/noise"], io["in/time"])
  yield "rng_loss/loss", loss(params, io["in/rng_loss/noise"], io["in/rng_loss/time"])
  prefix = jax.jit(pi0.encode_prefix, static_argnums=0)(model, params, obs)
  yield from zip(("kv_cache/k", "kv_cache/v"), prefix.kv_cache)
  denoise = jax.jit(pi0.denoise, static_argnums=0, static_argnames="num_steps")
  for steps in (1, 5, 10):
    chunk_BTA = denoise(model, params, prefix, obs.state, io["in/noise"], num_steps=steps)
    yield f"sample_actions/num_steps_{steps}", chunk_BTA


def compare(name: str, seen, wanted, *, valid_BS=None, bf16: bool = False) -> Deviation:
  """Returns the deviation of one output; only valid prefix positions count where rows are don't-cares."""
  seen, wanted = np.asarray(seen).astype(np.float64), np.asarray(wanted).astype(np.float64)
  if seen.shape != wanted.shape:
    raise Pi0RagError(f"{name} has shape {seen.shape}, recorded is {wanted.shape}")
  if name == "prefix_out":
    seen, wanted = seen[valid_BS], wanted[valid_BS]
  elif name.startswith("kv_cache/"):
    seen, wanted = seen[:, valid_BS], wanted[:, valid_BS]
  if not np.isfinite(seen).all():
    return Deviation(name, float("inf"), 0.0, "not finite")
  error = np.abs(seen - wanted)
  if name.split("/")[-1] in ("mask", "ar_mask", "positions", "attn_mask_rowsum"):
    return Deviation(name, float(error.max()), 0.0, "max abs")
  if bf16:
    return Deviation(name, float(np.sqrt((error**2).mean() / (wanted**2).mean())), BF16_GATE, "relative rms")
  gate = SAMPLING_GATE if name.startswith("sample_actions") else STAGE_GATE
  gate = DRAWN_TIME_GATE if name.startswith("rng_loss") else gate
  return Deviation(name, float(error.max()), gate, "max abs")


def parameter_groups(case: Case) -> dict[str, str]:
  """Returns {prefix of the recorded outputs: dtype of the parameters that made them}."""
  if case.config.dtype == "bfloat16":
    return {"params_f32/": "float32", "params_bf16/": "bfloat16"}
  return {"": "float32"}


def run_case(case: Case) -> Iterator[Deviation]:
  """Yields the deviation of every recorded output; bf16 cases run with float32 and with bf16 parameters."""
  for group in parameter_groups(case):
    yield from run_group(case, group)


def run_group(case: Case, group: str) -> Iterator[Deviation]:
  """Yields the deviations of one of `parameter_groups`."""
  model, bf16 = pi0.Pi0(case.config), case.config.dtype == "bfloat16"
  template = jax.eval_shape(lambda rng: pi0.init(case.config, rng), jax.random.key(0))
  dtype = parameter_groups(case)[group]
  params = jax.device_put(load_params(case.checkpoint, dtype=dtype, template=template))
  recorded = {key for key in case.io if key.startswith(f"{group}out/")}
  valid_BS = case.io[f"{group}out/embed_prefix/mask"]
  for run in (run_stages, run_losses_and_samples):
    for name, array in run(model, params, case.io):
      key = f"{group}out/{name}"
      # The copy in tests/ leaves out what other outputs contain.
      if key in recorded:
        recorded.remove(key)
        found = compare(name, array, case.io[key], valid_BS=valid_BS, bf16=bf16)
        yield dataclasses.replace(found, name=f"{group}{name}")
  if recorded:
    raise Pi0RagError(f"case {case.name} records outputs that were not run: {', '.join(sorted(recorded))}")


def main(argv):
  del argv
  # Reduced-precision matrix products of accelerators would hide real deviations.
  jax.config.update("jax_default_matmul_precision", "highest")
  failures = 0
  for path in FLAGS.case:
    case = load_case(path)
    print(f"case {case.name} ({case.config.dtype})")
    for found in run_case(case):
      failures += not found.passed
      verdict = "ok" if found.passed else "OVER"
      print(f"  {found.name:46s} {found.value:9.2e}  gate {found.gate:.0e} {found.measure:12s} {verdict}")
  print(f"{failures} outputs over their gate" if failures else "every output within its gate")
  return 1 if failures else 0


def run_main(argv):
  """Returns the exit status, with a user's mistake as one line on stderr."""
  try:
    return main(argv)
  except Pi0RagError as error:
    print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
  flags.DEFINE_multi_string("case", None, "Directory of a recorded case; repeatable.", required=True)
  flags.DEFINE_string("tokenizers", None, "Directory of tokenizers, for cases that start from text.")
  app.run(run_main)
