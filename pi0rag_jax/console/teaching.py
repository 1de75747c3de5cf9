"""Brings a console together: a world, a policy server that learns, the loop between them, and its page."""

import contextlib
import dataclasses
import socket
import sys
from collections.abc import Callable
from typing import Any

from pi0rag_jax.console.site import ConsoleSite, beside
from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.replanning import OWN, Replanning
from pi0rag_jax.control.setting import Setting
from pi0rag_jax.control.world import WorldDriver
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.serving import LOOPBACK, server
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.client import TeachingClient
from pi0rag_jax.serving.memory_page import PATH
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.world import EXPERT, FILMS, WorldConfig


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a console runs, all of it known to be possible."""

  config: WorldConfig
  robot: Robot
  policy: str
  execute_steps: int
  abilities: tuple[str, ...]


def plan(policy: str, checkpoint: str | None, world: str, task: str, condition: str) -> Plan:
  """Returns what is to run.

  Errors: Pi0RagError for a world, a task, a condition or a policy that is not there or does not fit, and for a robot
    that keys cannot drive.
  """
  family = registry.family(world)
  spec, _ = directory.describe(policy, checkpoint)
  robot = make_robot(spec.data, spec.model.family)
  if robot.teleop is None:
    raise Pi0RagError(f"taking over by keyboard is not available for the robot '{robot.name}': its actions are not "
                      "displacements of the tool; it is for panda, metaworld and libero")
  task = task or (spec.tasks or family.tasks)[0]
  config = rollout.world_config(spec, task, condition, world=world)
  lacks_expert = EXPERT in family.abilities and family.no_expert(task, condition)
  abilities = tuple(name for name in family.abilities if not (name == EXPERT and lacks_expert))
  return Plan(config, robot, spec.name, spec.execute_steps, abilities)


def run(chosen: Plan, values: Any, reserved: socket.socket, *, token: str, seed: int,
        ready: Callable[[str], object]) -> None:
  """Serves the console until Ctrl-C.

  Args:
    values: of the policy server, as `server.open_agent` reads them.
    reserved: of the page.
    token: of the policy server, which nobody else on this machine need know.
    seed: of the first episode.
    ready: called with the page's address once it is there.
  """
  compiling.keep_programs()
  with contextlib.ExitStack() as opened:
    agent = opened.enter_context(server.open_agent(values, learn=True))
    example = server.example_of(agent, None)
    server.warm_up(agent, example, all_prompts=False)
    taught = opened.enter_context(server.teachable(agent, values))
    admission = Admission(token=token)
    shown = opened.enter_context(server.memory_page(values, admission, taught))
    served = WebsocketPolicyServer(taught, LOOPBACK[0], metadata=agent.metadata, admission=admission, pages=[shown])
    port = served.port
    sys.setswitchinterval(server.SWITCH_S)  # between decisions, pictures and pages
    opened.enter_context(beside(served.run))
    driver = opened.enter_context(contextlib.closing(
      WorldDriver(registry.make_world(chosen.config), chosen.robot, apart=False)))
    client = opened.enter_context(contextlib.closing(TeachingClient(LOOPBACK[0], port, token)))
    operator = Operator(expert=EXPERT in chosen.abilities)
    replanning = Replanning(OWN, chosen.execute_steps, agent.policy.chunk_shape[0])
    setting = Setting(chosen.config.task_name, agent.policy.space, chosen.robot.tick_s, replanning,
                      _teleop(chosen.robot), EXPERT in chosen.abilities)
    site = ConsoleSite(operator, facts(chosen, f"http://{LOOPBACK[0]}:{port}{PATH}#token={token}"),
                       lambda raw: chosen.robot.observe(raw)["image"], films=FILMS in chosen.abilities)
    loop = ControlLoop(driver, client, operator, setting, site.show)
    opened.enter_context(beside(lambda ready: site.run(reserved, ready)))
    ready(f"http://{LOOPBACK[0]}:{reserved.getsockname()[1]}/")
    try:
      loop.run(seed)
    finally:
      loop.stopping = True


def facts(chosen: Plan, memory: str) -> dict[str, Any]:
  """Returns what the page says of what runs."""
  family = registry.family(chosen.config.world)
  condition = str(chosen.config.condition)
  return {"world": chosen.config.world, "task": chosen.config.task_name, "condition": condition,
          "condition_says": family.conditions.get(condition, ""), "policy": chosen.policy, "memory": memory,
          "expert": EXPERT in chosen.abilities, "turns": _teleop(chosen.robot).turn is not None}


def _teleop(robot: Robot):
  assert robot.teleop is not None, "`plan` refuses others"
  return robot.teleop
