"""A policy as StableHLO programs with its parameters beside, and a runner that needs none of this package.

`encode`, `decode` and `sample` (both in one call, without a key) are exported for one robot's observation and every
length that prompts are padded to, `steer` once. Retrieval is between `encode` and `steer`, on the host: the runner
searches the memory's file itself.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.memory.neighbours import shares
from pi0rag_jax.memory.record import KINDS
from pi0rag_jax.policy import compiling
from pi0rag_jax.policy.network import FlowPolicy
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.robots import normalize, transforms
from pi0rag_jax.serving import runner
from pi0rag_jax.steering import rules

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FILE_NAME = "export.json"
VERSION = 1


def write(policy: Policy, out, *, rule: rules.SteeringConfig | None = None, platforms: Sequence[str] = (),
          prompts: Sequence[str] = (), lengths: Sequence[int] = (), unit_distance: float | None = None,
          chunk_dtype: str = "float16") -> list[str]:
  """Writes a folder that `runner.Runner` runs, and returns the names of its programs.

  Args:
    out: a folder that does not exist, or is empty.
    rule: of the steering; None is 'residual'.
    platforms: of PLATFORMS; () is this machine's.
    prompts: whose tokens are kept, so that the runner needs no tokenizer for them.
    lengths: of prompts, in tokens, that programs are written for; () is all that there are.
    unit_distance: of the keys of a policy that nobody calibrated.
    chunk_dtype: of the memory's chunks.
  Errors: Pi0RagError for a policy or a rule that needs the host in between, an unknown platform, a folder with files.
  """
  import_extra("flatbuffers", "exporting a policy", extra="export")  # which jax writes programs with
  rule = rule or rules.preset("residual")
  _check_rule(rule)
  flow = _checked_policy(policy)
  platforms = tuple(platforms) or (jax.export.default_export_platform(),)
  for platform in platforms:
    if platform not in PLATFORMS:
      raise unknown_name("platform", platform, PLATFORMS)
  examples = {inputs["tokenized_prompt"].shape[1]: inputs for inputs in _inputs(flow)[1:]}
  if unknown := set(lengths) - examples.keys():
    raise unknown_name("length of prompts", str(min(unknown)), map(str, examples))
  examples = {length: examples[length] for length in lengths or examples}
  folder = pathlib.Path(out).expanduser()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise Pi0RagError(f"'{folder}' is there already: give a folder that does not exist, or is empty")
  folder.mkdir(parents=True, exist_ok=True)
  about = _described(flow, rule, platforms, unit_distance or policy.unit_distance, chunk_dtype)
  tokenize = _only(flow, transforms.TokenizePrompt)
  if not tokenize.discrete_state:
    about["prompts"] = _tokens(tokenize, prompts)
  names = _write_programs(flow, rule, platforms, examples, chunk_dtype, folder)
  about["dtypes"] = _write_arrays(flow, folder)
  shutil.copyfile(tokenize.tokenizer.path, folder / "tokenizer.model")
  shutil.copyfile(runner.__file__, folder / "run.py")
  _write_example(flow, folder)
  (folder / FILE_NAME).write_text(json.dumps(about, indent=1) + "\n", encoding="utf8")  # last: the folder is whole
  return names


def serialized(function: Callable, platforms: Sequence[str], *shapes) -> bytes:
  """Returns the StableHLO of a function of arguments like some arrays or shapes.

  Errors: Pi0RagError for a program that calls Python, or has an operation that a platform lacks.
  """
  try:
    return bytes(jax.export.export(jax.jit(function), platforms=platforms)(*_shapes(shapes)).serialize())
  except (NotImplementedError, ValueError) as error:
    text = " ".join(str(error).split())
    if "callback" in text:
      raise Pi0RagError("the program has a callback: it calls Python of this process, which no file can hold. Leave it "
                        "to the host, as the runner's search between `encode` and `steer`") from error
    raise Pi0RagError(f"the program cannot be exported for {', '.join(platforms)}: {text[:300]}") from error


def _check_rule(rule: rules.SteeringConfig) -> None:
  reasons = {
    f"runs the policy's flow once more (flow '{rule.flow}')": rule.flow != rules.AFTER,
    "asks what was fitted to a whole memory": rules.is_fitted(rule),
    "aligns paths in time, which the host does": rules.reads_residuals(rule),
    "trusts records by how episodes ended, which the package counts":
      bool(rule.utility or rule.silenced_at or rule.half_life),
    "shuffles records": rule.shuffle_seed is not None,
  }
  for reason, applies in reasons.items():
    if applies:
      raise Pi0RagError(f"this rule cannot be exported: it {reason}; allowed: rules after the flow that read the "
                        "records as they are, such as 'residual' and 'textbook'")


def _checked_policy(policy: Policy) -> FlowPolicy:
  """Returns the policy. Errors: Pi0RagError for one whose decision is no program of pi0 or pi0.5 alone."""
  name = policy.spec.name
  if not isinstance(policy, FlowPolicy):
    why = {"pi0_fast": "a pi0-FAST, which writes tokens that the host reads as a chunk",
           "head": "a head, whose backbone has a host path of its own"}.get(policy.spec.family, policy.spec.family)
    raise Pi0RagError(f"policy '{name}' cannot be exported: it is {why}; allowed: pi0 and pi0.5")
  if not policy.has_flow:
    raise Pi0RagError(f"policy '{name}' cannot be exported: its robot '{policy.robot.name}' mixes entries of its "
                      "actions, which Python does on the host; allowed: robots whose actions are the model's entries, "
                      "each scaled and shifted")
  return policy


def _described(policy: FlowPolicy, rule: rules.SteeringConfig, platforms: Sequence[str], unit: float | None,
               chunk_dtype: str) -> dict[str, Any]:
  """Returns `export.json`, without what is known of the arrays."""
  spec, tokenize = policy.spec, _only(policy, transforms.TokenizePrompt)
  observation = _example(policy)
  inputs = _inputs(policy)[0]
  prompts = [step.prompt for step in policy.transforms.inputs if isinstance(step, transforms.InjectDefaultPrompt)]
  stats = [step for step in policy.transforms.inputs if isinstance(step, transforms.Normalize)]
  return {
    "version": VERSION, "name": spec.name, "jax": jax.__version__, "platforms": list(platforms),
    "control_hz": spec.control_hz, "execute_steps": spec.execute_steps, "denoising_steps": spec.denoising_steps,
    "cameras": {name: list(picture.shape[1:]) for name, picture in inputs["image"].items()},
    "state_dim": observation["state"].shape[-1], "state_size": inputs["state"].shape[-1],
    "raw": _sees_entries(policy), "default_prompt": next((prompt for prompt in prompts if prompt is not None), None),
    "quantile": bool(stats and stats[0].quantile), "max_tokens": tokenize.max_len,
    "discrete_state": tokenize.discrete_state, "prompts": {},
    "memory": {**policy.memory_header(), "chunk_dtype": chunk_dtype}, "unit_distance": unit,
    "shares": dict(shares(rule.k, rule.kinds)), "kinds": list(KINDS),
    # As the policy's own are compiled, so that the answers are the same bits.
    "compiler_options": {"policy": {jax.default_backend(): compiling.options(policy.params)},
                         "steer": {"cpu": compiling.UNSPLIT}},
  }


def _write_programs(policy: FlowPolicy, rule: rules.SteeringConfig, platforms: Sequence[str],
                    examples: Mapping[int, dict], chunk_dtype: str, folder: pathlib.Path) -> list[str]:
  leaves, tree = jax.tree.flatten(policy.params)
  start_BTX = jax.ShapeDtypeStruct((1, *policy.noise_shape), np.float32)
  programs = {}
  for length, inputs in examples.items():
    encode = compiling.on_leaves(lambda params, inputs: jax.tree.leaves(policy.encode_fn(params, (), inputs)[1]), tree)
    encoded = jax.eval_shape(lambda inputs: policy.encode_fn(policy.params, (), inputs)[1], inputs)
    structure = jax.tree.structure(encoded)
    decode = compiling.on_leaves(
      lambda params, parts, start_BTX, structure=structure: policy.decode_fn(
        params, jax.tree.unflatten(structure, parts), start_BTX), tree)
    sample = compiling.on_leaves(lambda params, *given: policy.sample_fn(params, (), *given)[1], tree)
    programs |= {f"encode_{length}": (encode, leaves, inputs),
                 f"decode_{length}": (decode, leaves, jax.tree.leaves(encoded), start_BTX),
                 f"sample_{length}": (sample, leaves, inputs, start_BTX)}
  programs["steer"] = (
    lambda base_BTA, neighbours, trust_B: rules.steer(base_BTA, neighbours, rule, policy.space, trust_B=trust_B),
    np.zeros((1, *policy.chunk_shape), np.float32), _no_neighbours(rule.k, policy.chunk_shape, chunk_dtype),
    np.ones(1, np.float32))
  for name, (function, *arguments) in programs.items():
    (folder / f"{name}.stablehlo").write_bytes(serialized(function, platforms, *arguments))
  return list(programs)


def _no_neighbours(k: int, chunk_shape: tuple[int, int], chunk_dtype: str) -> dict[str, np.ndarray]:
  chunks_BKTA = np.zeros((1, k, *chunk_shape), chunk_dtype)
  numbers_BK = np.zeros((1, k), np.float32)
  return {"base_BKTA": chunks_BKTA, "corrected_BKTA": chunks_BKTA, "kind_BK": np.zeros((1, k), np.int8),
          "distance_BK": numbers_BK, "mask_BK": np.zeros((1, k), bool), "trust_BK": numbers_BK}


def _write_arrays(policy: FlowPolicy, folder: pathlib.Path) -> list[str]:
  """Writes parameters, start and statistics; returns the parameters' types, of which .npz does not know all."""
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(policy.params)]
  plain: dict[str, Any] = {str(i): leaf.view(np.uint16) if leaf.dtype == jax.numpy.bfloat16 else leaf
                           for i, leaf in enumerate(leaves)}
  np.savez(folder / "params.npz", **plain)
  width = _example(policy)["state"].shape[-1]
  stats = [step for step in policy.transforms.inputs if isinstance(step, transforms.Normalize)]
  low_P, scale_P = normalize.low_and_scale(stats[0].stats["state"], width, stats[0].quantile) if stats else (
    np.zeros(width), np.ones(width))
  start_TX = np.zeros(policy.noise_shape, np.float32) if policy.spec.start == "new" else np.asarray(
    policy.start_of_flow(1))[0]
  np.savez(folder / "arrays.npz", start=start_TX, state_low=low_P, state_scale=scale_P)
  return [str(leaf.dtype) for leaf in leaves]


def _write_example(policy: FlowPolicy, folder: pathlib.Path) -> None:
  """Writes an observation with what the policy answers."""
  observation, inputs = _example(policy), _inputs(policy)[0]
  noise = {} if policy.spec.start != "new" else {"noise": np.zeros(policy.noise_shape, np.float32)}
  _, chunk_BTA = policy.sample((), inputs, noise["noise"][None] if noise else None)
  np.savez(folder / "example.npz", actions=np.asarray(chunk_BTA)[0], state=observation["state"],
           prompt=observation["prompt"], **noise,
           **{f"image/{name}": picture[0] for name, picture in inputs["image"].items()})


def _tokens(tokenize: transforms.TokenizePrompt, prompts: Sequence[str]) -> dict[str, list[int]]:
  """Returns the tokens of prompts, as the runner looks them up."""
  found = {}
  for prompt in prompts:
    tokens_L, mask_L = tokenize.tokenizer.encode_prompt(prompt, tokenize.max_len)
    found[prompt.strip().replace("_", " ").replace("\n", " ")] = tokens_L[mask_L].tolist()
  return found


def _inputs(policy: FlowPolicy) -> list[dict]:
  """Returns inputs of one row: the robot's example, and the same for prompts of other lengths."""
  with transforms.made_up():
    return policy.examples(_raw(policy), all_prompts=True)


def _example(policy: FlowPolicy) -> dict:
  """Returns the model's entries of the robot's example, before they are normalized."""
  return policy.robot.observe(_raw(policy))


def _sees_entries(policy: FlowPolicy) -> bool:
  """Returns whether the robot's own dictionary is what the runner takes."""
  raw = _raw(policy)
  return set(raw) <= {"image", "image_mask", "state", "prompt"} and set(raw["image"]) == set(_example(policy)["image"])


def _raw(policy: FlowPolicy) -> dict:
  assert policy.robot.example is not None, "every robot of a policy has an example"
  return policy.robot.example()


def _only(policy: FlowPolicy, kind: type) -> Any:
  return next(step for step in policy.transforms.inputs if isinstance(step, kind))


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
