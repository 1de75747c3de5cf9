"""Recorded training steps of openpi: `train_*` cases of `eval.parity`.

Such a case has the parameters before and after three steps, the gradients of the first and each step's noise and
time. Run here with the project's own step, optimizer and freeze rule.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from eval.recorded import BF16_GATE, STAGE_GATE, Deviation, read_config, read_observation
from pi0rag_jax import schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters, pi0, pi0_fast, registry
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from train import optimizer, partition, step

# Adam divides by the size of a gradient: where one is nearly zero (a key's bias has none but rounding) its rounding
# decides a whole step. So parameters are held to the gate entry by entry where every step's clipped gradient was larger
# than this, and all of them by how far the whole is off, as a part of the way it went.
SMALLEST_GRADIENT = 1e-6
UPDATE_GATE = 2e-3
PARAMS_FILES = {"init": "params_init.npz", "grads": "grads_step0.npz", "params": "params_step3.npz"}
EMA_FILE = "ema_params_step3.npz"


def is_train_case(path) -> bool:
  """Returns whether a directory holds recorded training steps."""
  path = pathlib.Path(path)
  return (path / "case.json").is_file() and (path / PARAMS_FILES["init"]).is_file()


def run_case(path) -> Iterator[Deviation]:
  """Yields the deviations of losses, norms, learning rates, gradients, parameters and their average."""
  path = pathlib.Path(path)
  facts, io, config = read_case(path)
  arrays = {name: _load(path / file) for name, file in PARAMS_FILES.items()}
  names = {key for key in arrays["init"] if adapters.is_trainable(key, config)}
  yield _count("trainable", names ^ set(facts["trainable"]))
  params = traverse_util.unflatten_dict(arrays["init"], sep="/")
  trainable, frozen = partition.split(params, names.__contains__)
  frozen = jax.device_put(partition.cast(frozen, facts["frozen_dtype"]))
  bf16 = config.dtype == "bfloat16"
  schedule = read_schedule(facts["lr_schedule"])
  adam = dict(facts["optimizer"])
  optimize = optimizer.adamw(schedule, clip_norm=adam.pop("clip_gradient_norm"), **adam)
  loss_fn = functools.partial(recorded_loss, registry.network(config))
  state = step.init_state(jax.device_put(trainable), optimize, ema=facts["ema"] is not None)
  differentiate = jax.jit(functools.partial(step.gradients, loss_fn))
  update = jax.jit(functools.partial(step.apply_gradients, optimizer=optimize, ema_decay=facts["ema"] or 0.0))
  smallest = {}
  for number, recorded in enumerate(facts["history"]):
    grads, seen = differentiate(state.params, frozen, _batch(io, number), None)
    if number == 0:
      yield from _compare_gradients("grads_step0", grads, arrays["grads"], bf16=bf16)
    state = update(state, grads)
    whole = partition.join(state.params, frozen)
    seen |= {"grad_norm": optax.tree.norm(grads), "param_norm": step.parameter_norm(whole), "lr": schedule(number)}
    for name in sorted(recorded):
      error = abs(float(seen[name]) - recorded[name]) / abs(recorded[name])
      gate = BF16_GATE if bf16 else STAGE_GATE
      yield Deviation(f"step{number}/{name}", error, gate, "relative")
    clipping = max(float(seen["grad_norm"]) / facts["optimizer"]["clip_gradient_norm"], 1.0)
    sizes = {path: np.abs(leaf) / clipping for path, leaf in _flat(grads).items()}
    smallest = {path: np.minimum(size, smallest.get(path, size)) for path, size in sizes.items()}
  compare = functools.partial(_compare_params, start=arrays["init"], smallest=smallest, bf16=bf16)
  yield from compare("params_step3", _flat(whole), arrays["params"])
  if state.ema is not None:
    averaged = _flat(partition.join(state.ema, frozen))
    yield from compare("ema_params_step3", averaged, _load(path / EMA_FILE))


def read_case(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray], PaliGemmaConfig]:
  """Returns (facts, inputs, configuration) of a case."""
  facts = schema.read(path / "case.json", dict[str, Any])
  missing = [key for key in ("config", "history", "lr_schedule", "optimizer", "trainable") if key not in facts]
  missing += [file for file in (*PARAMS_FILES.values(), "io.npz") if not (path / file).is_file()]
  if missing:
    raise Pi0RagError(f"{path} is no whole recording of training steps: {', '.join(missing)} missing")
  io = _load(path / "io.npz")
  recorded = facts["config"]
  kind = "fast" if "in/token_loss_mask" in io else "pi05" if recorded["kw"].get("pi05") else "pi0"
  model = {name: recorded[name] for name in ("action_dim", "action_horizon", "max_token_len")}
  model = {"paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m", "dtype": "float32",
           "pi05": kind == "pi05"} | model | recorded["kw"]
  return facts, io, read_config(kind, {**recorded, "model": model}, io)


def read_schedule(recorded: dict) -> optax.Schedule:
  """Returns the schedule that a case describes in openpi's words."""
  shared = {"peak": recorded["peak_lr"], "warmup_steps": recorded["warmup_steps"]}
  if "timescale" in recorded:
    return optimizer.rsqrt(**shared, timescale=recorded["timescale"])
  return optimizer.cosine(**shared, decay_steps=recorded["decay_steps"], end=recorded["decay_lr"])


def recorded_loss(model, trainable, frozen, batch, rng):
  """Returns (loss, metrics) of a batch that brings its own noise and time: a LossFn of `train.step`."""
  del rng
  params = partition.join(trainable, frozen)
  if isinstance(model, pi0_fast.Pi0Fast):
    loss = jnp.mean(pi0_fast.loss(model, params, batch["observation"]))
  else:
    loss = jnp.mean(
      pi0.loss(model, params, batch["observation"], batch["actions"], batch["noise"], batch["time"]))
  return loss, {"loss": loss}


def _batch(io, number: int) -> dict:
  drawn = {name: jnp.asarray(io[key]) for name in ("noise", "time") if (key := f"in/step{number}/{name}") in io}
  return {"observation": read_observation(io), "actions": jnp.asarray(io["in/actions"]), **drawn}


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path) as arrays:
    return {key: arrays[key] for key in arrays.files}


def _count(name: str, different: set) -> Deviation:
  return Deviation(name, float(len(different)), 0.0, "other names")


def _flat(tree) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf, np.float32) for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def _compare_gradients(name: str, seen, wanted, *, bf16: bool) -> Iterator[Deviation]:
  """Yields the difference of the paths, and the worst entry's error; in bfloat16 that of all."""
  seen = _flat(seen)
  yield _count(f"{name}/paths", set(seen) ^ set(wanted))
  shared = sorted(set(seen) & set(wanted))
  off = np.concatenate([(seen[path] - wanted[path]).ravel() for path in shared])
  if bf16:
    size = float(np.linalg.norm(off) / np.linalg.norm(np.concatenate([wanted[path].ravel() for path in shared])))
    yield Deviation(name, size, BF16_GATE, "relative rms")
  else:
    yield Deviation(name, float(np.abs(off).max()), STAGE_GATE, "max abs")


def _compare_params(name: str, seen, wanted, *, start, smallest, bf16: bool) -> Iterator[Deviation]:
  """Yields the difference of the paths, the worst entry's error where gradients count, and that of the way."""
  yield _count(f"{name}/paths", set(seen) ^ set(wanted))
  shared = sorted(set(seen) & set(wanted))
  off = np.concatenate([(seen[path] - wanted[path]).ravel() for path in shared])
  way = np.concatenate([(wanted[path] - start[path]).ravel() for path in shared])
  gate = BF16_GATE if bf16 else UPDATE_GATE
  yield Deviation(f"{name}/way", float(np.linalg.norm(off) / np.linalg.norm(way)), gate, "relative rms")
  if bf16:
    return
  # What is frozen has no gradient, and must not move at all.
  size = np.concatenate([smallest.get(path, np.full(seen[path].shape, np.inf)).ravel() for path in shared])
  worst = float(np.abs(off[size > SMALLEST_GRADIENT]).max())
  yield Deviation(name, worst, STAGE_GATE, "max abs")
