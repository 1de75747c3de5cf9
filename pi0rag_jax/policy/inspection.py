"""What a policy is made of, from names, shapes and types alone: no parameter is read, nothing is compiled."""

import functools
import itertools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import family, flops, registry
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import checkpoints, download
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import HEAD, NEW, ZERO, PolicySpec
from pi0rag_jax.robots import checks, normalize
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import ActionSpace, Robot

Shapes = Mapping[str, jax.ShapeDtypeStruct]  # by '/'-joined path
PARTS = ("vision", "embedding", "language", "expert", "projections", "adapters", "head")
STAGES = ("prepare", "encode", "decode", "sample")
# Of a latency, calls.
REPEATS = 20
# What a demonstration may exceed a robot's limits by, in shares of their range.
BEYOND_LIMITS = 0.1


def inspect(policy: str, checkpoint: str | None = None) -> dict[str, Any]:
  """Returns what a policy is made of, as JSON values.

  Args:
    policy, checkpoint: what `directory.load` takes; or a checkpoint alone, of which nothing but its arrays is known.
  Errors: Pi0RagError for what is neither. A part that is missing or does not fit is told under `doubts`.
  """
  if download.is_remote(policy) and not download.cached_path(policy).exists():
    raise Pi0RagError(f"'{policy}' is not on this machine, and inspecting downloads nothing: give the name of its "
                      "configuration, or load it once")
  try:
    spec, where = directory.describe(policy, checkpoint)
  except Pi0RagError as error:
    path = pathlib.Path(policy).expanduser()
    if checkpoint is not None or not path.exists() or path.suffix == ".py":
      raise
    try:
      return _of_arrays(path)
    except Pi0RagError:
      raise error from None
  return _of_spec(spec, where)


def latency(policy: Policy, repeats: int = REPEATS) -> dict[str, dict[str, float]]:
  """Returns the median and the 95 % quantile of each stage in ms, of one observation of zeros on this machine.

  `sample` is encoding and decoding in one program, as a policy without a memory runs.
  """
  if policy.robot.example is None:
    raise Pi0RagError(f"the robot '{policy.robot.name}' has no example observation to time the policy with")
  raw, carry = policy.robot.example(), policy.start(1)
  inputs = policy.prepare([raw])
  encoded = policy.encode(carry, inputs)[1]
  calls = {"prepare": lambda: policy.prepare([raw]), "encode": lambda: policy.encode(carry, inputs),
           "decode": lambda: policy.decode(encoded), "sample": lambda: policy.sample(carry, inputs)}
  found = {}
  for name in STAGES:
    jax.block_until_ready(calls[name]())  # compiles
    taken_ms = [_timed_ms(calls[name]) for _ in range(repeats)]
    found[name] = {"p50": float(np.median(taken_ms)), "p95": float(np.quantile(taken_ms, 0.95))}
  return found


def _timed_ms(call) -> float:
  started_s = time.perf_counter()
  jax.block_until_ready(call())
  return 1000 * (time.perf_counter() - started_s)


def _of_spec(spec: PolicySpec, where: pathlib.Path | str) -> dict[str, Any]:
  local = download.cached_path(str(where)) if download.is_remote(where) else pathlib.Path(where)
  doubts: list[str] = []
  if local.exists():
    shapes = checkpoints.stored(local).shapes
  elif download.is_remote(where):
    doubts.append(f"{where} is not on this machine: arrays are those of the configuration")
    shapes = _as_configured(spec.network)
  else:
    raise Pi0RagError(f"no checkpoint directory at {local}")
  stats = _stats(spec, local, doubts) if local.exists() else {}
  robot = make_robot(spec.data, spec.family)
  space = robot.actions or (ActionSpace.of_stats(stats["actions"]) if stats else None)
  return {
    "policy": spec.name, "family": spec.family, "directory": str(where),
    "parts": parts(shapes, head=spec.family == HEAD),
    **_costs(None if spec.family == HEAD else spec.network, shapes, _steps(spec, spec.family), doubts),
    "cameras": list(spec.cameras), "image_size": list(spec.image_size),
    "robot": robot.name, "tasks": list(spec.tasks), "control_hz": spec.control_hz, "horizon": spec.horizon,
    "execute_steps": spec.execute_steps, "start": spec.start, "steps": _steps(spec, spec.family),
    "actions": _entries(space, stats.get("actions")), "state": stats["state"].dim if stats else None,
    "doubts": doubts + [f"{name}{text}" for name in stats for text in normalize.doubts(_unpadded(stats[name]))]
    + _beyond_limits(robot, stats, spec)}


def _of_arrays(path: pathlib.Path) -> dict[str, Any]:
  """Returns what a checkpoint says that no configuration belongs to."""
  shapes = checkpoints.stored(path).shapes
  kind = ("pi0_fast" if "action_out_proj/kernel" not in shapes else
          "pi05" if any(name.startswith("time_mlp_in/") for name in shapes) else "pi0")
  adapted = any(_part(name) == "adapters" for name in shapes)
  doubts = [f"nothing says whose it is: the family is told by its arrays, sizes are those of '{kind}'"]
  costs = _costs(registry.model(f"{kind}_lora" if adapted else kind), shapes, _steps(PolicySpec, kind), doubts)
  return {"policy": path.name, "family": kind, "directory": str(path), "parts": parts(shapes), **costs,
          "doubts": doubts}


def _steps(spec: PolicySpec | type[PolicySpec], kind: str) -> int | None:
  """Returns the steps of a policy's flow, or how many tokens it may write; the defaults of the class."""
  if kind == HEAD:
    return None
  return spec.decoding_steps if family.named(kind).writes_tokens else spec.denoising_steps


def parts(shapes: Shapes, *, head: bool = False) -> dict[str, dict[str, Any]]:
  """Returns, for each part that there is and for `all`, its numbers, its bytes as stored and its types."""
  found: dict[str, dict[str, Any]] = {}
  for name, shape in shapes.items():
    for part in ("head" if head else _part(name), "all"):
      entry = found.setdefault(part, {"parameters": 0, "bytes": 0, "types": []})
      count = math.prod(shape.shape)
      entry["parameters"] += count
      entry["bytes"] += count * jnp.dtype(shape.dtype).itemsize
      if str(shape.dtype) not in entry["types"]:
        entry["types"].append(str(shape.dtype))
  return {part: found[part] for part in (*PARTS, "all") if part in found}


def _part(name: str) -> str:
  """Returns the part of an array: openpi's tree marks the action expert's by a trailing `_1`."""
  path = name.split("/")
  if any("lora" in key for key in path):
    return "adapters"
  if path[:2] == ["PaliGemma", "img"]:
    return "projections" if path[2] == "head" else "vision"
  if path[:2] == ["PaliGemma", "llm"]:
    return ("embedding" if path[2] == "embedder" else
            "expert" if any(key.endswith("_1") for key in path) else "language")
  return "projections"


def _costs(sizes: PaliGemmaConfig | None, shapes: Shapes, steps: int | None, doubts: list[str]) -> dict[str, Any]:
  """Returns `tokens` and `flops` of a decision; none of what has no network of its own, or does not fit."""
  if sizes is None or steps is None:
    doubts.append("a head's backbone is a policy of its own, and not counted here")
    return {"tokens": None, "flops": None}
  params = traverse_util.unflatten_dict(dict(shapes), sep="/")
  writes = family.of(sizes).writes_tokens
  tokens = {"each camera": sizes.image_tokens, "prompt, at most": sizes.max_token_len, "prefix": sizes.prefix_tokens,
            "written, at most" if writes else "actions": steps if writes else sizes.action_horizon}
  try:
    return {"tokens": tokens, "flops": flops.by_stage(sizes, params, steps=steps)}
  except (flax.errors.FlaxError, KeyError, TypeError, ValueError) as error:
    try:
      checkpoints.check_template(params, traverse_util.unflatten_dict(dict(_as_configured(sizes)), sep="/"),
                                 source="the checkpoint")
    except Pi0RagError as misfit:
      doubts.append(" ".join(map(str.strip, str(misfit).splitlines()[:2])))
      return {"tokens": None, "flops": None}
    raise error


def _as_configured(sizes: PaliGemmaConfig) -> Shapes:
  tree = jax.eval_shape(functools.partial(registry.init, sizes), jax.random.key(0))
  return cast(Shapes, traverse_util.flatten_dict(tree, sep="/"))


def _stats(spec: PolicySpec, local: pathlib.Path, doubts: list[str]) -> dict[str, NormStats]:
  """Returns the statistics; none, and a doubt, where they are missing or cannot be read."""
  try:
    return directory.load_stats(spec, local)
  except Pi0RagError as error:
    doubts.append(str(error))
    return {}


def _unpadded(stats: NormStats) -> NormStats:
  """Returns the statistics without what a model's padding leaves at their end."""
  used = np.flatnonzero((stats.std != 0) | (stats.mean != 0))
  count = int(used[-1]) + 1 if len(used) else stats.dim
  cut = lambda values: None if values is None else values[:count]  # noqa: E731
  return NormStats(stats.mean[:count], stats.std[:count], cut(stats.q01), cut(stats.q99))


def _beyond_limits(robot: Robot, stats: Mapping[str, NormStats], spec: PolicySpec) -> list[str]:
  """Returns which demonstrated actions are not the robot's, by their number or by its limits."""
  if robot.actions is None or not stats or spec.family == HEAD:
    return []
  actions, space = stats["actions"], robot.actions
  try:
    checks.check_action_stats(actions, space.dim, robot=robot.name, model_dim=spec.network.action_dim)
    if not robot.action_map(spec.network.action_dim).is_identity:
      return []  # they are other numbers than the robot's
  except Pi0RagError as error:
    return [str(error)]
  if actions.q01 is None or actions.q99 is None:
    return []
  found = []
  for dim, (low, high) in enumerate(zip(space.low, space.high)):
    margin = BEYOND_LIMITS * (high - low)
    if math.isfinite(margin) and (actions.q01[dim] < low - margin or actions.q99[dim] > high + margin):
      found.append(f"actions[{dim}] lie at {actions.describe(dim)}, the robot's limits are {low:g} to {high:g}: other "
                   "units?")
  return found


def _entries(space: ActionSpace | None, stats: NormStats | None) -> list[dict[str, Any]] | None:
  """Returns what each number of an action means, and where the demonstrations' lie in the model's units."""
  if space is None:
    return None
  finite = lambda value: value if math.isfinite(value) else None  # noqa: E731
  return [{"integrates": space.integrates[dim], "cost": space.cost[dim], "low": finite(space.low[dim]),
           "high": finite(space.high[dim]),
           "demonstrated": stats.describe(dim) if stats is not None and dim < stats.dim else None}
          for dim in range(space.dim)]


def in_words(found: Mapping[str, Any]) -> str:
  """Returns what `inspect` found, and `latency_ms` if it is there, as text for a terminal."""
  lines = [f"{found['policy']}: {found['family']}, in {found['directory']}", ""]
  lines += [f"  {'':12} {'parameters':>14} {'bytes':>10}"]
  lines += [f"  {name:12} {part['parameters']:>14,} {_size(part['bytes']):>10}  {', '.join(part['types'])}"
            for name, part in found["parts"].items()]
  lines += ["", *_decision_in_words(found)]
  if "robot" in found:
    lines += ["", *_robot_in_words(found)]
  lines += ["", *_labelled("doubts", found["doubts"] or ["none"])]
  return "\n".join(lines)


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
  """Returns lines, the first with a label before it."""
  return [f"{label if number == 0 else '':14} {line}" for number, line in enumerate(lines)]


def _decision_in_words(found: Mapping[str, Any]) -> list[str]:
  lines = []
  if found["tokens"]:
    lines.append(f"{'tokens':14} " + "; ".join(f"{name} {count}" for name, count in found["tokens"].items()))
  if found["flops"]:
    told = ", ".join(f"{name} {_count(value)}" for name, value in found["flops"].items())
    lines.append(f"{'FLOPs':14} {told} (encode with vision; one robot, all cameras, the longest prompt)")
  if "latency_ms" in found:
    told = [f"{name} {value['p50']:.3g} ({value['p95']:.3g})" for name, value in found["latency_ms"].items()]
    lines.append(f"{'ms':14} {', '.join(told)}: median and 95 % quantile, on {jax.devices()[0].device_kind}")
  return lines


def _robot_in_words(found: Mapping[str, Any]) -> list[str]:
  height, width = found["image_size"]
  start = {NEW: "new noise", ZERO: "z = 0"}.get(found["start"], found["start"])
  pace = f"every {found['execute_steps']} of {found['horizon']} actions, {found['control_hz']:g} a second"
  if found["family"] == "pi0_fast":
    pace += f", of at most {found['steps']} tokens"
  elif found["steps"] is not None:
    pace += f", from {start} in {found['steps']} steps"
  lines = [f"{'cameras':14} {', '.join(found['cameras'])}, {width} x {height} px",
           f"{'robot':14} {found['robot']}" + (f", trained on {', '.join(found['tasks'])}" if found["tasks"] else ""),
           f"{'decides':14} {pace}"]
  if found["state"] is not None:
    lines.append(f"{'state':14} {found['state']} numbers")
  entries = enumerate(map(_entry_in_words, found["actions"] or ()))
  for text, alike in itertools.groupby(entries, key=lambda entry: entry[1]):
    dims = [dim for dim, _ in alike]
    lines.append(f"{f'action[{dims[0]}]' if len(dims) == 1 else f'action[{dims[0]}-{dims[-1]}]':14} {text}")
  return lines


def _entry_in_words(entry: Mapping[str, Any]) -> str:
  low, high = ("?" if entry[name] is None else f"{entry[name]:g}" for name in ("low", "high"))
  meaning = "a change per tick" if entry["integrates"] else "a place"
  return (f"{meaning}, a unit costs {entry['cost']:.3g}, limits {low} to {high}"
          + (f", demonstrated {entry['demonstrated']}" if entry["demonstrated"] else ""))


def _size(count: int) -> str:
  return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _count(flops_: float) -> str:
  for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if flops_ >= unit:
      return f"{flops_ / unit:.3g} {name}"
  return f"{flops_:.3g}"
