"""A policy, with or without a memory, for the benchmarks of vla-eval: `python -m pi0rag_jax.serving.vla_eval
--policy=pi05_libero --memory=DIR --port=8000`, and `vla-eval run` connects to it.

Its harness sends one observation a step and wants one action back; a plan is asked for when the last one is used up.
`episode_start` begins anew what a policy carries. Memories are read as they are at the start.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax import cli
from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import gym_world

COMMAND = "serving.vla_eval"
_STATES = ("states", "state")  # what benchmarks call it


class Translator:
  """Makes a robot's observations of vla-eval's; cameras are matched once, by name, else in order."""

  def __init__(self, robot: str):
    self._robot = robot
    self._entries: dict[tuple, dict[str, Any]] = {}  # by the cameras and the size of the state

  def __call__(self, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the robot's observation of `images` {camera: uint8[H, W, 3]}, `states` and `task_description`.

    Errors: Pi0RagError where the entries of the robot are not in it.
    """
    seen = _seen(observation)
    kind = tuple(seen["pixels"]), np.shape(seen.get("state", 0.0))
    if kind not in self._entries:
      self._entries[kind] = gym_world.match(seen, self._robot)
    found = gym_world.filled(self._entries[kind], seen)
    prompt = str(observation.get("task_description") or "")
    return {**found, "prompt": prompt} if prompt.strip() else found


def _seen(observation: Mapping[str, Any]) -> dict[str, Any]:
  images = {name: np.asarray(image, np.uint8) for name, image in (observation.get("images") or {}).items()}
  state = next((observation[name] for name in _STATES if observation.get(name) is not None), None)
  return {"pixels": images, **({} if state is None else {"state": np.asarray(state, np.float64)})}


def make_server(agent: Agent):
  """Returns vla-eval's model server around an agent. Errors: Pi0RagError where the package is missing."""
  predict = import_extra("vla_eval.model_servers.predict", "serving vla-eval's benchmarks", "vla-eval")
  specs = import_extra("vla_eval.specs", "serving vla-eval's benchmarks", "vla-eval")
  policy, robot = agent.policy, agent.policy.robot

  class PolicyServer(predict.PredictModelServer):
    """Each session is a robot of its own."""

    def __init__(self):
      super().__init__(chunk_size=policy.spec.execute_steps)
      self._sessions: dict[str, Agent] = {}
      self._to_robot = Translator(robot.name)

    def get_observation_params(self) -> dict[str, Any]:
      """Returns what a benchmark is asked to send beside its first picture."""
      cameras = 0 if robot.example is None else sum(
        np.ndim(leaf) == 3 for _, leaf in gym_world.leaves(robot.example()))
      return {"send_state": True, "send_wrist_image": cameras != 1}

    def get_action_spec(self) -> dict[str, Any]:
      """Returns that actions are the robot's own numbers."""
      return {"actions": specs.RAW}

    def get_observation_spec(self) -> dict[str, Any]:
      """Returns what an observation must hold."""
      return {"image": specs.IMAGE_RGB, "state": specs.RAW, "language": specs.LANGUAGE}

    async def on_episode_start(self, config: dict[str, Any], ctx) -> None:
      """Begins anew what the policy carries."""
      self._sessions[ctx.session_id] = agent.session()
      await super().on_episode_start(config, ctx)

    async def on_episode_end(self, result: dict[str, Any], ctx) -> None:
      """Forgets it."""
      self._sessions.pop(ctx.session_id, None)
      await super().on_episode_end(result, ctx)

    def predict(self, obs: dict[str, Any], ctx) -> dict[str, Any]:
      """Returns the next actions of the session's robot."""
      if ctx.session_id not in self._sessions:
        self._sessions[ctx.session_id] = agent.session()
      return {"actions": self._sessions[ctx.session_id].infer(self._to_robot(obs))["actions"]}

  return PolicyServer()


def main(argv: list[str]) -> None:
  """Serves until Ctrl-C; a user's mistake ends in one line and status 2."""
  values = _parser().parse_args(argv[1:])
  with cli.user_errors(COMMAND):
    from pi0rag_jax.serving import server

    with server.open_agent(values) as agent:
      model_server = make_server(agent)
      example = server.example_of(agent, values.default_prompt)
      server.warm_up(agent, example, all_prompts=False)
      serve = import_extra("vla_eval.model_servers.serve", "serving vla-eval's benchmarks", "vla-eval")
      print(f"Serving vla-eval at ws://{values.host}:{values.port} (Ctrl-C ends it)", flush=True)
      try:
        serve.serve(model_server, values.host, values.port)
      except OSError as error:
        raise Pi0RagError(f"cannot listen at {values.host}:{values.port}: {error}") from error
      except KeyboardInterrupt:
        pass


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog=f"python -m pi0rag_jax.{COMMAND}", description=__doc__)
  parser.add_argument("--policy", required=True, help="as the server takes it")
  parser.add_argument("--checkpoint", help="of an openpi configuration")
  parser.add_argument("--memory", help="folder of a memory that steers the policy, or its address on a server")
  address.add_flags(parser)
  parser.add_argument("--key_name", default="", help="key statistics of the policy; its own by default")
  parser.add_argument("--start", help="where the flow starts: zero, draw:SEED or new")
  parser.add_argument("--default_prompt", help="where an observation has none")
  parser.add_argument("--denoising_steps", type=int, help="of the flow, instead of the policy's own")
  parser.add_argument("--weights", choices=("int8", "w8a8", "fp8", "bfloat16"), help="how the matrices are stored")
  parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
  parser.add_argument("--port", type=int, default=8000, help="TCP port")
  parser.set_defaults(config=None, real_time=False)
  return parser


if __name__ == "__main__":
  main(sys.argv)
