"""Brings a robot's run together: its driver, a policy here or behind a server, people, limits and a recording."""

import contextlib
import dataclasses
import importlib
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.control import hands
from pi0rag_jax.control.driver import Driver
from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.policies import TaughtHere, Untaught
from pi0rag_jax.control.recording import Recording
from pi0rag_jax.control.replanning import Replanning
from pi0rag_jax.control.setting import Setting, Teacher, Told
from pi0rag_jax.control.world import WorldDriver
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.robots.limits import Limits
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.serving import server
from pi0rag_jax.serving.client import TeachingClient
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.world import EXPERT, WorldConfig

# Modules with `driver(options)`; each imports its middleware only then.
DRIVERS = {"franka": "pi0rag_jax.control.franka", "ros1": "pi0rag_jax.control.ros1",
           "ros2": "pi0rag_jax.control.ros2", "trossen": "pi0rag_jax.control.trossen"}
_HZ, _HORIZON = 20.0, 50  # of a server's policy that does not tell


@dataclasses.dataclass(frozen=True)
class Asked:
  """A policy as the loop asks it, and what there is to know of its chunks."""

  teacher: Teacher
  hz: float
  execute_steps: int
  horizon: int
  tasks: tuple[str, ...] = ()
  space: ActionSpace | None = None  # None behind a server: the robot has to declare it


def run(values: Any) -> dict[str, Any]:
  """Returns the figures of a run; `values` are the flags of `robots.run`.

  Errors: Pi0RagError for what cannot be, before anything moves where that can be known.
  """
  by_hand = [hand for hand in values.takeover if hand]
  _check(values, by_hand)
  limits = options_of(values.limits)
  with contextlib.ExitStack() as opened:
    if values.server:
      asked = _behind_server(values, opened)
      driver, task, has_expert = _driver(values, None, asked.tasks, limits, opened)
    else:
      spec, _ = directory.describe(values.policy, values.checkpoint)
      driver, task, has_expert = _driver(values, spec, spec.tasks, limits, opened)
      asked = _in_process(values, spec, driver, opened)
    space = driver.robot.actions or asked.space
    if space is None:
      raise Pi0RagError(f"what the actions of '{values.robot}' mean is not known behind a server: give --policy")
    driver.robot.limits.check(space)
    hz = values.hz or asked.hz
    operator = Operator(expert=has_expert)
    operator.auto = values.auto or not by_hand
    setting = Setting(
      task, space, 1 / hz, Replanning(values.replan, asked.execute_steps, asked.horizon), driver.robot.teleop,
      has_expert, robot=values.name or values.robot, teacher=values.teacher, prompt=values.prompt, apart=True,
      real_time=values.real_time, stale_s=values.stale_ms / 1000, answer_s=(values.answer_ms or math.inf) / 1000,
      give_up_s=values.give_up_s, limit_ticks=(values.seconds or math.inf) * hz, auto_s=values.pause_s)
    recorder = None if not values.record else opened.enter_context(contextlib.closing(
      Recording(values.record, fps=hz, robot=values.robot)))
    opened.enter_context(hands.listening(operator, by_hand, values.gamepad_device))
    print(f"{values.robot} at {hz:g} Hz: {task or 'no task'}{f'. {hands.HELP}' if by_hand else ''}", flush=True)
    loop = ControlLoop(driver, asked.teacher, operator, setting, Teller(), recorder=recorder)
    return _live(loop, values, episodes=values.episodes or (math.inf if by_hand else 1), recorder=recorder)


def _check(values: Any, by_hand: list[str]) -> None:
  for hand in by_hand:
    if hand not in hands.HANDS:
      raise unknown_name("way to take over", hand, hands.HANDS)
  if bool(values.server) == bool(values.policy):
    raise Pi0RagError("give either --policy, which then runs in this process, or --server, ws://HOST:PORT")
  if values.server and values.memory:
    raise Pi0RagError("the server has the memory: give --memory to it, or leave out --server")
  if values.learn and not (values.memory or values.server):
    raise Pi0RagError("--learn needs a --memory to put into what is learned; the folder is made if there is none")


def _live(loop: ControlLoop, values: Any, *, episodes: float, recorder: Recording | None) -> dict[str, Any]:
  began_s, figures = time.monotonic(), {}
  try:
    loop.run(values.seed, episodes=episodes)
  finally:
    loop.waiting = True
    loop.look()
    figures = figures_of(loop, time.monotonic() - began_s)
    print(json.dumps({name: value for name, value in figures.items() if name != "told"}), flush=True)
    if recorder is not None and recorder.columns:
      print(f"columns of {values.record}: {json.dumps(recorder.columns)}", flush=True)
    if values.report:
      files.write_json(values.report, figures)
  return figures


class Teller:
  """Prints a line for each episode that is over."""

  def __init__(self):
    self._told = 0

  def __call__(self, loop: ControlLoop) -> None:
    """Tells what there is to tell."""
    for told in loop.episodes:
      if told.number > self._told and loop.waiting:
        self._told = told.number
        print(_line(told), flush=True)


def _line(told: Told) -> str:
  acted = ", ".join(f"{who} {ticks}" for who, ticks in told.acted)
  said = [f"episode {told.number} (seed {told.seed}): {told.outcome} after {told.ticks} ticks ({acted or 'nobody'})"]
  said += [f"{told.taught} records taught"] if told.taught else []
  said += [f"held for {told.held} ticks"] if told.held else []
  said += [f"limited in {told.limited}"] if told.limited else []
  said += told.faults
  return "; ".join(said)


def figures_of(loop: ControlLoop, seconds: float) -> dict[str, Any]:
  """Returns what a run came to; of latencies the median and the 99th percentile."""
  answers_ms = 1000 * np.asarray(loop.answers_s or [math.nan])
  executed = sum(told.ticks for told in loop.episodes)
  successes = sum(told.outcome == "success" for told in loop.episodes)
  moved_s = loop.pacer.ticks * loop.pacer.tick_s
  number = lambda value: None if math.isnan(value) else round(float(value), 3)  # noqa: E731
  return {
    "episodes": len(loop.episodes), "successes": successes, "seconds": round(seconds, 2),
    "ticks": loop.pacer.ticks, "executed": executed, "overruns": loop.pacer.overruns,
    "late_ms_max": round(1000 * loop.pacer.late_s, 2), "holds": loop.holds, "inferences": len(loop.answers_s),
    "inferences_per_s": number(len(loop.answers_s) / moved_s) if moved_s else None,
    "answer_ms_p50": number(np.percentile(answers_ms, 50)), "answer_ms_p99": number(np.percentile(answers_ms, 99)),
    "told": [dataclasses.asdict(told) for told in loop.episodes]}


def options_of(text: str) -> dict[str, Any]:
  """Returns what a flag says: JSON, or a file of it."""
  if not text:
    return {}
  path = pathlib.Path(text).expanduser()
  try:
    found = json.loads(text if text.lstrip().startswith("{") else path.read_text("utf8"))
  except (OSError, ValueError) as error:
    raise Pi0RagError(f"'{text[:80]}' is neither JSON nor a file of it: {error}") from error
  if not isinstance(found, dict):
    raise Pi0RagError(f"'{text[:80]}' is no JSON object")
  return found


def limits_of(options: Mapping[str, Any], given: Limits) -> Limits:
  """Returns a robot's limits with those that the flags name instead."""
  names = [field.name for field in dataclasses.fields(Limits)]
  for name, value in options.items():
    if name not in names:
      raise unknown_name("limit", str(name), names)
    numbers = isinstance(value, list) and all(isinstance(one, int | float | None) for one in value)
    if not numbers:
      raise Pi0RagError(f"limits: {name} is {value!r}; allowed: a list of numbers, null where there is no bound")
  unbounded = {"low": -math.inf, "measured": -1, "unit": 1.0}
  said = {name: tuple(unbounded.get(name, math.inf) if one is None else one for one in value)
          for name, value in options.items()}
  return dataclasses.replace(given, **said)


def _driver(values: Any, spec: PolicySpec | None, tasks: Sequence[str], limits: Mapping[str, Any],
            opened: contextlib.ExitStack) -> tuple[Driver, str, bool]:
  """Returns (the driver of the robot that the flags name, the task, whether it has an expert)."""
  options = options_of(values.options)
  if values.robot in DRIVERS:
    driver = opened.enter_context(contextlib.closing(importlib.import_module(DRIVERS[values.robot]).driver(options)))
    driver.robot = _limited(driver.robot, limits)
    return driver, values.task or values.prompt, False
  if values.robot not in registry.FAMILIES and "/" not in values.robot:
    raise unknown_name("robot", values.robot, [*DRIVERS, *registry.FAMILIES])
  family = registry.family(values.robot, options)
  task, condition = values.task or (*tasks, *family.tasks)[0], values.condition
  if spec is not None:
    config = rollout.world_config(spec, task, condition, world=values.robot, options=options)
    robot = make_robot(spec.data, spec.model.family)
  else:
    config = WorldConfig(task, condition, values.robot, options)
    robot = make_robot(DataConfig(robot=family.robot), "pi0")
  driver = opened.enter_context(contextlib.closing(WorldDriver(registry.make_world(config), _limited(robot, limits))))
  return driver, task, EXPERT in family.abilities and not family.no_expert(task, condition)


def _limited(robot: Robot, limits: Mapping[str, Any]) -> Robot:
  return dataclasses.replace(robot, limits=limits_of(limits, robot.limits))


def _in_process(values: Any, spec: PolicySpec, driver: Driver, opened: contextlib.ExitStack) -> Asked:
  """Returns the policy, compiled for what the robot observes."""
  compiling.keep_programs()
  agent = opened.enter_context(server.open_agent(values, learn=values.learn))
  driver.begin(values.seed)  # what it sees has the pictures and the prompt that are to come
  told = {"prompt": values.prompt} if values.prompt else {}
  server.warm_up(agent, told | driver.observe(), all_prompts=False)
  teacher: Teacher = Untaught(agent.session())
  if values.learn:
    teacher = TaughtHere(opened.enter_context(server.teachable(agent, values)))
  return Asked(teacher, spec.control_hz, spec.execute_steps, agent.policy.chunk_shape[0], space=agent.policy.space)


def _behind_server(values: Any, opened: contextlib.ExitStack) -> Asked:
  client = opened.enter_context(contextlib.closing(TeachingClient(values.server, None, values.token)))
  told = client.get_server_metadata()
  horizon = int(told.get("action_horizon", _HORIZON))
  return Asked(client if values.learn else Untaught(client), float(told.get("control_hz", _HZ)),
               int(told.get("execute_steps", max(1, horizon // 2))), horizon, tuple(told.get("tasks", ())))
