"""Runs recorded openpi cases through this project's models and says how far each output is off.

  python -m eval.parity --case=DIR [--case=DIR2] [--tokenizers=DIR] [--out=FILE.json] [--precision=highest]

A case is a directory with `checkpoint/`, `case.json` and `io.npz`, written by openpi; or recorded training steps as of
`eval.train_parity`; or recorded policies as of `eval.policy_parity`, which need `--tokenizers`. The exit status is 1
when an output is over its gate, 2 when a case cannot be run.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from eval import policy_parity, provenance, train_parity
from eval.recorded import BF16_GATE, SAMPLING_GATE, STAGE_GATE, Deviation, read_config, read_observation
from pi0rag_jax import cli, files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention, embedding, flow, pi0, pi0_fast, registry
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi.checkpoints import load_params

FLAGS = flags.FLAGS

# openpi drew these times in another compilation; one ulp of t moves the time embedding by 1e-4.
DRAWN_TIME_GATE = 1e-4
SUPPORTED_KINDS = ("pi0", "pi05", "fast")
# The recorded pi0-FAST models magnify rounding: evaluated in float64 from the recorded embeddings, their outputs are
# 3.1e-5 off the recorded ones at the worst entry. So these are held to the gate by their root mean square.
MAGNIFIED = ("pre_logits_targets", "logits_targets")
# Integers and masks, by the last part of an output's name: these agree exactly, as sampled tokens do.
EXACT = ("mask", "ar_mask", "positions", "attn_mask_rowsum")
SAMPLED_TOKENS = re.compile(r"sample_(greedy|temp(?P<temperature>[0-9.]+)_)(?P<steps>[0-9]+)/(?P<prompt>.+)")


@dataclasses.dataclass(frozen=True)
class Case:
  """A recorded case as read from disk."""

  name: str
  config: PaliGemmaConfig
  io: dict[str, np.ndarray]
  checkpoint: pathlib.Path


def load_case(path) -> Case:
  """Returns the case in a directory, or says why it cannot be run."""
  path = pathlib.Path(path)
  if not (path / "case.json").is_file() or not (path / "io.npz").is_file():
    raise Pi0RagError(f"{path} is no recorded case: expected case.json and io.npz in it")
  facts = schema.read(path / "case.json", dict[str, Any])
  name, kind = facts.get("case", path.name), facts.get("kind")
  if kind not in SUPPORTED_KINDS:
    raise Pi0RagError(f"case {name} is of kind {kind or name}; supported kinds: {', '.join(SUPPORTED_KINDS)}")
  with np.load(path / "io.npz") as arrays:
    io = {key: arrays[key] for key in arrays.files}
  return Case(name, read_config(kind, facts["config"], io), io, path / "checkpoint")


# One function, so that prompts share what is compiled.
SAMPLE_FAST = jax.jit(
  pi0_fast.sample_tokens, static_argnums=0, static_argnames=("max_decoding_steps", "temperature"))


def run_pi0(model: pi0.Pi0, params, io, recorded) -> Iterator[tuple[str, jax.Array]]:
  """Yields (output name, array) of all that a pi0 or pi0.5 case records."""
  del recorded
  yield from run_stages(model, params, io)
  yield from run_losses_and_samples(model, params, io)


def run_fast(model: pi0_fast.Pi0Fast, params, io, recorded) -> Iterator[tuple[str, jax.Array]]:
  """Yields (output name, array) of all that a pi0-FAST case records; `recorded` names the samples to draw."""
  obs = read_observation(io)

  def apply(method, *args):
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(params, *args)

  names = ("embed_inputs/tokens", "embed_inputs/mask", "embed_inputs/ar_mask")
  yield from zip(names, apply(pi0_fast.Pi0Fast.embed_prefix, obs))
  hidden_BLD = apply(pi0_fast.Pi0Fast.hidden_of_prompt, obs)
  yield "pre_logits_targets", hidden_BLD
  yield "logits_targets", apply(pi0_fast.Pi0Fast.logits, hidden_BLD)
  yield "loss", jax.jit(pi0_fast.loss, static_argnums=0)(model, params, obs)
  for name in sorted(recorded):
    if found := SAMPLED_TOKENS.fullmatch(name):
      yield name, SAMPLE_FAST(
        model, params, prompted(obs, io, found["prompt"]), jax.random.key(int(io["in/rng/seed"])),
        max_decoding_steps=int(found["steps"]), temperature=float(found["temperature"] or 0))


def shortfall(model: pi0_fast.Pi0Fast, params, case: Case, name: str, tokens_BM) -> float:
  """Returns how far, at worst, a recorded token was from being chosen, in root mean squares of the logits.

  In bfloat16 the two likeliest tokens may be closer than rounding, and all tokens after depend on which one wins.
  So the recorded tokens are read one by one, and each has to be as good as the best, up to the gate of the logits.
  """
  found = SAMPLED_TOKENS.fullmatch(name)
  assert found is not None, f"{name} are no sampled tokens"
  obs = prompted(read_observation(case.io), case.io, found["prompt"])
  tokens_BM = np.asarray(tokens_BM).astype(np.int32)
  ended = np.flatnonzero((tokens_BM == pi0_fast.EOS_TOKEN).all(axis=0))
  count = int(ended[0]) + 1 if len(ended) else tokens_BM.shape[1]
  logits_BMV = jax.jit(pi0_fast.token_logits, static_argnums=0)(model, params, obs, tokens_BM)[:, :count]
  unit = float(jnp.sqrt(jnp.mean(jnp.square(logits_BMV.astype(jnp.float32)))))
  if found["temperature"]:
    temperature, rng = float(found["temperature"]), jax.random.key(int(case.io["in/rng/seed"]))
    draws = []
    for _ in range(count):
      rng, step_rng = jax.random.split(rng)
      draws.append(jax.random.gumbel(step_rng, (len(tokens_BM), 1, logits_BMV.shape[-1]), logits_BMV.dtype))
    logits_BMV = logits_BMV + temperature * jnp.concatenate(draws, axis=1)
  logits_BMV = np.asarray(logits_BMV).astype(np.float64)
  chosen_BM = np.take_along_axis(logits_BMV, tokens_BM[:, :count, None], axis=-1)[..., 0]
  return float((logits_BMV.max(axis=-1) - chosen_BM).max() / unit)


def prompted(obs: Observation, io, prompt: str) -> Observation:
  """Returns the observation with one of the recorded prompts: `full_prompt`, `prefix_prompt`, or its `_ex0_only`."""
  if prompt.startswith("prefix_prompt"):
    prefix = {key.removeprefix("in/prefix/"): jnp.asarray(array)
              for key, array in io.items() if key.startswith("in/prefix/")}
    obs = obs.replace(**prefix)
  return jax.tree.map(lambda array: array[:1], obs) if prompt.endswith("_ex0_only") else obs


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
  """Returns the deviation of one output; only valid positions count where rows are don't-cares."""
  seen, wanted = np.asarray(seen).astype(np.float64), np.asarray(wanted).astype(np.float64)
  if seen.shape != wanted.shape:
    raise Pi0RagError(f"{name} has shape {seen.shape}, recorded is {wanted.shape}")
  if name in ("prefix_out", "pre_logits_targets", "logits_targets"):
    seen, wanted = seen[valid_BS], wanted[valid_BS]
  elif name.startswith("kv_cache/"):
    seen, wanted = seen[:, valid_BS], wanted[:, valid_BS]
  if not np.isfinite(seen).all():
    return Deviation(name, float("inf"), 0.0, "not finite")
  error = np.abs(seen - wanted)
  if name.split("/")[-1] in EXACT:
    return Deviation(name, float(error.max()), 0.0, "max abs")
  if SAMPLED_TOKENS.fullmatch(name):
    return Deviation(name, float((error > 0).sum()), 0.0, "other tokens")
  if bf16 or name in MAGNIFIED:
    gate = BF16_GATE if bf16 else STAGE_GATE
    return Deviation(name, float(np.sqrt((error**2).mean() / (wanted**2).mean())), gate, "relative rms")
  gate = SAMPLING_GATE if name.startswith("sample_actions") else STAGE_GATE
  gate = DRAWN_TIME_GATE if name.startswith("rng_loss") else gate
  return Deviation(name, float(error.max()), gate, "max abs")


def valid_positions(case: Case, group: str):
  """Returns bool[B, S]: the positions whose outputs count, of the prefix or, for pi0-FAST, of the prompt's targets."""
  if isinstance(case.config, pi0_fast.Pi0FastConfig):
    return case.io["in/tokenized_prompt_mask"][:, :-1]
  return case.io[f"{group}out/embed_prefix/mask"]


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
  model, bf16 = registry.network(case.config), case.config.dtype == "bfloat16"
  template = jax.eval_shape(lambda rng: registry.init(case.config, rng), jax.random.key(0))
  dtype = parameter_groups(case)[group]
  params = jax.device_put(load_params(case.checkpoint, dtype=dtype, template=template))
  start = f"{group}out/"
  recorded = {key.removeprefix(start) for key in case.io if key.startswith(start)}
  valid_BS = valid_positions(case, group)
  inputs = (params, case.io, frozenset(recorded))
  outputs = run_fast(model, *inputs) if isinstance(model, pi0_fast.Pi0Fast) else run_pi0(cast(pi0.Pi0, model), *inputs)
  for name, array in outputs:
    # The copies in tests/ leave out what other outputs contain.
    if name in recorded:
      recorded.remove(name)
      found = compare(name, array, case.io[start + name], valid_BS=valid_BS, bf16=bf16)
      if bf16 and not found.passed and isinstance(model, pi0_fast.Pi0Fast) and SAMPLED_TOKENS.fullmatch(name):
        value = shortfall(model, params, case, name, case.io[start + name])
        found = Deviation(name, value, BF16_GATE, "below the best")
      yield dataclasses.replace(found, name=f"{group}{name}")
  if recorded:
    raise Pi0RagError(f"case {case.name} records outputs that were not run: {', '.join(sorted(recorded))}")


def open_case(path) -> tuple[str, Iterator[Deviation]]:
  """Returns the title and the deviations of a case of any kind."""
  if train_parity.is_train_case(path):
    return f"{pathlib.Path(path).name} (training)", train_parity.run_case(path)
  if policy_parity.is_policy_case(path):
    return f"{pathlib.Path(path).name} (policies)", policy_parity.run_case(path, FLAGS.tokenizers)
  case = load_case(path)
  return f"{case.name} ({case.config.dtype})", run_case(case)


def main(argv):
  del argv
  # Reduced-precision matrix products of accelerators would hide real deviations.
  jax.config.update("jax_default_matmul_precision", FLAGS.precision)
  failures, rows = 0, []
  for path in FLAGS.case:
    title, deviations = open_case(path)
    print(f"case {title}")
    for found in deviations:
      failures += not found.passed
      rows.append({"case": title, **dataclasses.asdict(found)})
      verdict = "ok" if found.passed else "OVER"
      print(f"  {found.name:46s} {found.value:9.2e}  gate {found.gate:.0e} {found.measure:14s} {verdict}")
  if FLAGS.out:
    files.write_json(FLAGS.out, {
      "name": "parity", "precision": FLAGS.precision, "over": failures, "hardware": provenance.hardware(),
      "versions": provenance.versions(), "rows": provenance.plain(rows)})
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
  flags.DEFINE_string("out", None, "JSON file of all deviations; none is written without it.")
  flags.DEFINE_enum("precision", "highest", ["highest", "high", "default"], "Of float32 products on the device.")
  flags.DEFINE_string("tokenizers", None, "Directory of tokenizers, for cases that start from text.")
  app.run(run_main, flags_parser=cli.flags_parser("eval.parity"))
