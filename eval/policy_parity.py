"""Recorded policies of openpi, from the robot's dictionary to its actions: `policy_e2e` cases of `eval.parity`.

Such a case holds several policies. Their weights are those of sibling cases, restored in bfloat16: of these only
`case.json` and `checkpoint/` are read. Prompts and FAST actions are tokenized by small tokenizers, a `*.model` and a
folder with `tokenizer.json` in one directory.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eval.recorded import SAMPLING_GATE, Deviation, read_config
from pi0rag_jax import schema
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.openpi.named_configs import ALOHA_DELTA, DROID_DELTA, LIBERO_DELTA, get_config
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import NEW, PolicySpec
from pi0rag_jax.robots.action_tokens import TOKENIZER_FILE, FastCodec
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer

# The data configurations that a case's may stand for: cases leave out these fields.
DATA_CONFIGS = {
  "LeRobotAlohaDataConfig": ("pi0_aloha", {"delta_mask": ALOHA_DELTA, "adapt_to_pi": True},
                             {"delta_mask": None, "adapt_to_pi": True},
                             {"delta_mask": ALOHA_DELTA, "adapt_to_pi": False},
                             {"delta_mask": None, "adapt_to_pi": False}),
  "LeRobotLiberoDataConfig": ("pi0_libero", {"delta_mask": LIBERO_DELTA}, {"delta_mask": None}),
  "SimpleDataConfig": ("pi0_droid", {"delta_mask": None}, {"delta_mask": DROID_DELTA}),
}
# Of PolicySpec, by openpi's names.
SAMPLING_FIELDS = {"num_steps": "denoising_steps", "max_decoding_steps": "decoding_steps", "temperature": "temperature"}
FAMILIES = {"pi0": "pi0", "pi05": "pi05", "fast": "pi0_fast"}
# '/' in the keys of a robot's dictionary is written so.
SLASH = "|"
IMAGE_STRIDE = 4
STATE_GATE = 1e-6


def is_policy_case(path) -> bool:
  """Returns whether a directory holds recorded policies."""
  file = pathlib.Path(path) / "case.json"
  facts = schema.read(file, dict[str, Any]) if file.is_file() else {}
  return bool(facts) and all(isinstance(entry, dict) and "data_config" in entry for entry in facts.values())


def run_case(path, tokenizers) -> Iterator[Deviation]:
  """Yields the deviations of every policy of a case: all that goes into the model, and the actions.

  Args:
    path: the case's directory, among those of the cases whose checkpoints it names.
    tokenizers: directory of the tokenizers.
  """
  path = pathlib.Path(path).resolve()
  if tokenizers is None:
    raise Pi0RagError(f"{path} starts from text: give --tokenizers, a directory with a *.model and a FAST folder")
  facts = schema.read(path / "case.json", dict[str, Any])
  with np.load(path / "io.npz") as arrays:
    io = {key: arrays[key] for key in arrays.files}
  for name, entry in facts.items():
    recorded = {key.removeprefix(f"{name}/"): array for key, array in io.items() if key.startswith(f"{name}/")}
    for found in run_policy(path.parent, entry, recorded, pathlib.Path(tokenizers)):
      yield dataclasses.replace(found, name=f"{name}/{found.name}")


def run_policy(siblings: pathlib.Path, entry: dict, recorded: dict, tokenizers: pathlib.Path):
  """Returns the deviations of one policy, under the configuration that fits it best."""
  observation = read_observation(entry, recorded)
  trials = {}
  for data in data_configs(entry):
    policy = load_policy(siblings, entry, data, recorded, tokenizers)
    trials[policy] = list(_compare_inputs(policy.model_input(observation), recorded))
  # The inputs tell most configurations apart; the actions need the model.
  fewest = min(_failures(found) for found in trials.values())
  complete = []
  for policy, found in trials.items():
    if _failures(found) == fewest:
      noise_TX = recorded.get("in/noise")
      _, chunk_BTA = policy.sample(policy.start(1), policy.prepare([observation]),
                                   None if noise_TX is None else noise_TX.reshape(1, *policy.noise_shape))
      complete.append([*found, _compare("out/actions", chunk_BTA[0], recorded["out/actions"], SAMPLING_GATE)])
  return min(complete, key=lambda found: (_failures(found), found[-1].value))


def read_observation(entry: dict, recorded: dict) -> dict:
  """Returns the robot's dictionary of a recorded policy."""
  flat = {key.removeprefix("in/").replace(SLASH, "/"): array for key, array in recorded.items()
          if key.startswith("in/") and key != "in/noise"}
  # ALOHA's cameras are a dictionary within; the keys of other robots have '/' in them.
  images = {key.removeprefix("images/"): array for key, array in flat.items() if key.startswith("images/")}
  observation = {key: array for key, array in flat.items() if not key.startswith("images/")}
  return observation | ({"images": images} if images else {}) | (
    {} if entry["prompt"] is None else {"prompt": entry["prompt"]})


def data_configs(entry: dict) -> list[DataConfig]:
  """Returns the data configurations that an entry of a case may stand for."""
  if entry["data_config"] not in DATA_CONFIGS:
    raise unknown_name("data configuration", entry["data_config"], DATA_CONFIGS)
  name, *variants = DATA_CONFIGS[entry["data_config"]]
  data = dataclasses.replace(get_config(name).data, asset_id=entry["asset_id"])
  return [dataclasses.replace(data, **fields) for fields in variants]


def load_policy(siblings: pathlib.Path, entry: dict, data: DataConfig, recorded: dict, tokenizers) -> Policy:
  """Returns the policy that an entry of a case describes."""
  case = siblings / entry["checkpoint"]
  if not (case / "case.json").is_file():
    raise Pi0RagError(f"the policies' weights are those of the case {entry['checkpoint']}: expected it at {case}")
  facts = schema.read(case / "case.json", dict[str, Any])
  family = FAMILIES[facts["kind"]]
  cameras = dict.fromkeys(f"in/image/{name}" for name in entry["image_keys"])
  text = SentencePieceTokenizer(_only(tokenizers, "*.model"))
  prompt = None if entry["prompt"] is not None else _recorded_prompt(text, recorded)
  codec = FastCodec(_only(tokenizers, f"*/{TOKENIZER_FILE}").parent) if family == "pi0_fast" else None
  drawn = entry["sample_kwargs"] or {}
  spec = PolicySpec(
    name=entry["checkpoint"], model=ModelConfig(family=family, **entry["model_kw"]), data=data, start=NEW,
    sizes=read_config(facts["kind"], facts["config"], cameras), control_hz=1.0, execute_steps=1,
    **{SAMPLING_FIELDS[name]: value for name, value in drawn.items()})
  return directory.build(spec, case / "checkpoint", text_tokenizer=text, action_codec=codec, default_prompt=prompt,
                         dtype="bfloat16")


def _compare_inputs(inputs: dict, recorded: dict) -> Iterator[Deviation]:
  """Yields the deviations of all that goes into the model."""
  for key in sorted(k for k in recorded if k.startswith("model_input/")):
    gate = STATE_GATE if key == "model_input/state" else 0.0
    yield _compare(key, _look_up(inputs, key.split("/")[1:]), recorded[key], gate)


def _failures(found: list[Deviation]) -> int:
  return sum(not deviation.passed for deviation in found)


def _recorded_prompt(text: SentencePieceTokenizer, recorded: dict) -> str:
  """Returns the default prompt of a policy, which only its tokens tell."""
  tokens = recorded["model_input/tokenized_prompt"][recorded["model_input/tokenized_prompt_mask"]]
  found = re.match(r"(?:Task: )?(.*?)(?:, State: .*)?\Z", text.decode(tokens).strip(), re.DOTALL)
  return found.group(1) if found else ""


def _look_up(inputs: dict, path: Sequence[str]):
  """Returns what a recorded input is of: pictures were thinned out to every fourth pixel."""
  if path[0] == "image_s4":
    return inputs["image"][path[1]][::IMAGE_STRIDE, ::IMAGE_STRIDE]
  return inputs[path[0]][path[1]] if len(path) > 1 else inputs[path[0]]


def _compare(name: str, seen, wanted, gate: float) -> Deviation:
  seen, wanted = np.asarray(seen), np.asarray(wanted)
  if seen.shape != wanted.shape:
    raise Pi0RagError(f"{name} has shape {seen.shape}, recorded is {wanted.shape}")
  return Deviation(name, float(np.abs(seen.astype(float) - wanted.astype(float)).max()), gate, "max abs")


def _only(directory: pathlib.Path, pattern: str) -> pathlib.Path:
  """Returns the one file of a pattern."""
  found = sorted(directory.glob(pattern))
  if len(found) != 1:
    raise Pi0RagError(f"{directory} holds {len(found)} files {pattern}, one is needed")
  return found[0]
