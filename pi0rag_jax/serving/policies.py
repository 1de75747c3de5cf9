"""What a server can serve: openpi's policies by name or configuration file, and one's own directory with a memory."""

import contextlib
import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.openpi.named_configs import get_config
from pi0rag_jax.policy import shipped
from pi0rag_jax.policy.openpi_policy import OpenpiPolicy, create_policy
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.robots import fields
from pi0rag_jax.serving import examples
from pi0rag_jax.steering.agent import SteeredPolicy


@dataclasses.dataclass(frozen=True)
class Served:
  """A policy, what clients are told of it, and an observation to compile it with (None where none is known)."""

  policy: "OpenpiPolicy | RobotPolicy"
  metadata: dict[str, Any]
  example: dict | None


def openpi_policy(config: str, checkpoint: str | None, *, default_prompt: str | None = None,
                  denoising_steps: int | None = None, weights: str | None = None) -> Served:
  """Returns the policy of a configuration: one of openpi's names, or a Python file with `get_config()`.

  The file may have `example_observation()` too, which the policy of a robot of one's own is then compiled with.

  Args:
    checkpoint, weights: see create_policy.
    denoising_steps: of the flow; None is openpi's ten.
  Errors: Pi0RagError for an unknown name, a file that is none, and as create_policy.
  """
  module = _load_module(pathlib.Path(config).expanduser()) if config.endswith(".py") else None
  chosen = get_config(config) if module is None else _config_of(module)
  policy = create_policy(chosen, checkpoint, default_prompt=default_prompt, weights=weights,
                         sample_kwargs={"num_steps": denoising_steps} if denoising_steps else None)
  own_example = getattr(module, "example_observation", None)
  if own_example is not None:
    example = own_example()
  elif chosen.data.robot == "fake":
    example = examples.model_example(policy)
  else:
    make = examples.ROBOTS.get(chosen.data.robot) if isinstance(chosen.data.robot, str) else None
    example = make() if make else None
  if example is not None and default_prompt is not None:  # its length counts, see OpenpiPolicy.compile
    example = {**example, "prompt": default_prompt}
  return Served(policy, policy.metadata, example)


@contextlib.contextmanager
def own_policy(name_or_dir: str, memory_dir: str | None, *, default_prompt: str | None = None,
               denoising_steps: int | None = None, weights: str | None = None) -> Iterator[Served]:
  """Yields a shipped policy, or one of a directory that `train.launch` exported, steered by a memory.

  Args:
    memory_dir: opened for reading, as it is now; None serves the base policy alone.
    denoising_steps, weights: see `Policy.load`.
  Errors: Pi0RagError for an unknown name, and for a memory that is missing or of another policy.
  """
  policy = Policy.load(shipped.directory(name_or_dir), denoising_steps=denoising_steps, weights=weights)
  with contextlib.ExitStack() as opened:
    memory = opened.enter_context(_open_memory(memory_dir, policy)) if memory_dir else None
    steered = SteeredPolicy(policy, memory)
    opened.callback(steered.close)
    yield Served(RobotPolicy(steered, default_prompt), _describe(steered), examples.own_example(policy))


class RobotPolicy:
  """A steered policy under openpi's interface: one observation in, a dictionary with `actions` out."""

  def __init__(self, policy: SteeredPolicy, default_prompt: str | None = None):
    self._policy = policy
    self._default_prompt = default_prompt

  def compile(self, observation: Mapping, *, all_prompts: bool = False) -> None:
    """Compiles what `infer` runs, whatever the prompt: all of them are padded to one length."""
    del all_prompts
    self.infer(observation)

  def infer(self, observation: Mapping) -> dict:
    """Returns the decision for one observation, from the deterministic z = 0.

    Args:
      observation: `image` {camera: uint8[S, S, 3]}, `state` float[P], `prompt` str.
    Returns:
      `actions` float32[T, A] in the robot's units; `neighbours_used`, how many records of the memory had a say, 0 for
      the base policy's own actions; `policy_timing` with `infer_ms` and each stage's.
    Errors: Pi0RagError when an entry is missing or does not fit the policy.
    """
    prediction = self._policy.infer([self._checked(observation)])
    stages = dict(prediction.latency_ms)
    timing = {"infer_ms": stages.pop("total"), **{f"{stage}_ms": ms for stage, ms in stages.items()}}
    return {"actions": prediction.actions_BTA[0], "neighbours_used": int(prediction.used_B[0]),
            "policy_timing": timing}

  def _checked(self, observation: Mapping) -> dict:
    spec = self._policy.policy.spec
    prompt = fields.passed_on(observation).get("prompt", self._default_prompt)
    if not isinstance(prompt, str):
      raise Pi0RagError(f"prompt is {prompt!r}: send a text, or start the server with --default_prompt")
    images = observation.get("image")
    if not isinstance(images, Mapping):
      raise Pi0RagError(f"the observation needs 'image', a map with the cameras {', '.join(spec.model.image_keys)}; it "
                        f"has {', '.join(map(str, observation)) or 'nothing'}")
    return {"image": {name: fields.read_image(images, name) for name in spec.model.image_keys},
            "state": fields.read_vector(observation, "state", spec.state_dim), "prompt": prompt}


def _describe(steered: SteeredPolicy) -> dict[str, Any]:
  """Returns what clients are told of a steered policy."""
  spec = steered.policy.spec
  horizon, action_dim = steered.policy.chunk_shape
  return {"name": spec.name, "task": spec.task, "cameras": list(spec.model.image_keys), "image_size": spec.image_size,
          "state_dim": spec.state_dim, "action_horizon": horizon, "action_dim": action_dim,
          "execute_steps": spec.execute_steps, "control_hz": spec.control_hz,
          "memory_records": 0 if steered.memory is None else len(steered.memory)}


def _open_memory(directory: str, policy: Policy) -> Memory:
  horizon, action_dim = policy.chunk_shape
  return Memory.open(pathlib.Path(directory).expanduser(), key_dim=policy.key_dim, action_horizon=horizon,
                     action_dim=action_dim, encoder=policy.key_stats.recipe.name, policy=policy.fingerprint,
                     create=False, read_only=True)


def _load_module(path: pathlib.Path) -> ModuleType:
  """Returns the module of a configuration file; its own errors keep their traceback."""
  if not path.is_file():
    raise Pi0RagError(f"no configuration file {path}; configs/my_robot.py is an example")
  spec = importlib.util.spec_from_file_location(f"served_{path.stem}", path)
  assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses in the file look themselves up
  spec.loader.exec_module(module)
  return module


def _config_of(module: ModuleType) -> TrainConfig:
  """Returns what the file's `get_config()` does, if that is a policy."""
  if not hasattr(module, "get_config"):
    raise Pi0RagError(f"{module.__file__} has no get_config(); configs/my_robot.py is an example")
  config = module.get_config()
  if not isinstance(config, TrainConfig):
    raise Pi0RagError(f"get_config() of {module.__file__} returns a {type(config).__name__}, serving needs a "
                      "TrainConfig as in configs/my_robot.py. What train.launch trained is served with --policy=DIR")
  return config
