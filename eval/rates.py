"""What planning more often costs, and what it is worth: `python -m eval.rates --policy=panda_small --out=FILE.json`.

The control loop of robots (`pi0rag_jax.control`) lives through the same episodes at each rate of planning: the policy's
own, a whole chunk, every tick, and as the situation asks. The robot waits for its policy: only the rate differs.
"""

import contextlib
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import app, flags, logging

from eval import provenance
from pi0rag_jax import cli, files
from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.policies import Untaught
from pi0rag_jax.control.replanning import ADAPTIVE, COARSE, FINE, OWN, RATES, Replanning
from pi0rag_jax.control.setting import Setting
from pi0rag_jax.control.world import WorldDriver
from pi0rag_jax.memory import address
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.statistics import bounds, wilson
from pi0rag_jax.steering.agent import Agent, start_with
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.world import EVALUATION_SEEDS

COMMAND = "eval.rates"
_CELL = ("world", "task", "condition", "memory", "rate", "n")


class _Clock:
  """Time that passes only where somebody waits for it."""

  def __init__(self):
    self.now_s = 0.0

  def __call__(self) -> float:
    return self.now_s

  def sleep(self, seconds: float) -> None:
    self.now_s += seconds


def measure(agent: Agent, world: str, task: str, condition: str, rate: str, episodes: int) -> dict[str, Any]:
  """Returns one row: how often a rate of planning succeeds, and what it asks of the policy."""
  spec, clock = agent.policy.spec, _Clock()
  config = rollout.world_config(spec, task, condition, world=world)
  driver = WorldDriver(registry.make_world(config), make_robot(spec.data, spec.model.family), apart=False)
  operator = Operator(expert=False)
  operator.auto = True
  setting = Setting(task, agent.policy.space, driver.robot.tick_s,
                    Replanning(rate, spec.execute_steps, agent.policy.chunk_shape[0]), auto_s=0.0)
  loop = ControlLoop(driver, Untaught(agent.session()), operator, setting, clock=clock, sleep=clock.sleep)
  with contextlib.closing(driver):
    loop.run(EVALUATION_SEEDS.start, episodes=episodes)
  told, ticks = loop.episodes, sum(one.ticks for one in loop.episodes)
  successes = sum(one.outcome == "success" for one in told)
  decisions = sum(one.decisions for one in told)
  return {"world": world, "task": task, "condition": condition, "memory": agent.memory is not None, "rate": rate,
          "n": len(told), "successes": successes, "success_rate": successes / len(told),
          "interval_95": bounds(wilson(successes, len(told))), "ticks_mean": round(ticks / len(told), 1),
          "inferences_per_episode": round(decisions / len(told), 1),
          "inferences_per_s": round(decisions / (ticks * driver.robot.tick_s), 2),
          "memory_spoke_share": round(sum(one.spoke for one in told) / decisions, 3)}


def main(_) -> None:
  """Writes a row for each rate and prints it; rows that are there are not measured again."""
  logging.set_verbosity(logging.WARNING)
  with cli.user_errors(COMMAND):
    values = flags.FLAGS
    compiling.keep_programs()
    path = pathlib.Path(values.out)
    rows = json.loads(path.read_text("utf8"))["rows"] if path.exists() else []
    known = {tuple(row[name] for name in _CELL) for row in rows}
    for agent in _agents(values):
      tasks = values.tasks or (*agent.policy.spec.tasks, *registry.family(values.world).tasks)[:1]
      for task, rate in itertools.product(tasks, values.rates):
        cell = (values.world, task, values.condition, agent.memory is not None, rate, values.episodes)
        if cell not in known:
          rows.append(measure(agent, *cell[:3], rate, values.episodes))
          print(rows[-1], flush=True)
          files.write_json(values.out, {"name": "rates", "policy": values.policy, "hardware": provenance.hardware(),
                                        "versions": provenance.versions(), "rows": rows})


def _agents(values) -> Iterator[Agent]:
  """Yields the policy alone, and with its memory where there is one."""
  spec, _ = directory.describe(values.policy)
  policy = directory.load(values.policy, start=start_with(address.given(values), spec, values.start))
  yield Agent(policy)
  if values.memory:
    with Memory.open(address.given(values), **policy.memory_header(), create=False, read_only=True) as memory, \
        contextlib.closing(Agent(policy, memory)) as agent:
      yield agent


if __name__ == "__main__":
  flags.DEFINE_string("policy", "panda_small", "As pi0rag_jax.serving.server takes it, for the world's robot.")
  cli.define_memory("Memory that is compared with the policy alone.", "")
  flags.DEFINE_string("start", "zero", "Where the flow starts.")
  flags.DEFINE_string("world", "panda", "Any family of worlds.")
  flags.DEFINE_list("tasks", [], "Of the world; by default the first that the policy was trained on.")
  flags.DEFINE_string("condition", "nominal", "What differs from the policy's demonstrations.")
  flags.DEFINE_list("rates", [OWN, COARSE, FINE, ADAPTIVE], f"Of {', '.join(RATES)}.")
  flags.DEFINE_integer("episodes", 50, "Of each rate, on the same seeds.", lower_bound=1)
  flags.DEFINE_string("out", None, "JSON file.", required=True)
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
