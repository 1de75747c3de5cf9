"""The study of a policy as its command asks for it: where its moments come from, its memory, and its page."""

import contextlib
import pathlib
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import interventions
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import NEW, ZERO, PolicySpec
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.steering.agent import Agent, start_with
from pi0rag_jax.study import chunks, chunks_page, report
from pi0rag_jax.study.chunks import Moment
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.world import WorldConfig


def run(values: Any, spec: PolicySpec, steps: tuple[int, ...]) -> tuple[pathlib.Path, str]:
  """Returns (the page, its headline) of the command's flags.

  Errors: Pi0RagError for moments that cannot be had, or a memory of another policy.
  """
  config = None if values.data else _world(values, spec)
  seen_in = values.data if config is None else (f"{config.world}, {config.task_name}, {config.condition}, seed "
                                                f"{values.seed}")
  start = start_with(values.memory, spec, None) or (ZERO if spec.start == NEW else spec.start)
  policy = directory.load(values.policy, checkpoint=values.checkpoint, start=start)
  with contextlib.ExitStack() as opened:
    agent = None
    if values.memory:
      memory = opened.enter_context(Memory.open(pathlib.Path(values.memory).expanduser(), create=False, read_only=True,
                                                **policy.memory_header()))
      agent = Agent(policy, memory, values.rule)
      opened.callback(agent.close)
    moments = (_recorded(values, policy) if config is None else
               chunks.in_world(policy, config, seed=values.seed, count=values.moments))
    found = chunks.study(policy, moments, draws=values.draws, steps=steps, agent=agent)
  rows = chunks.rows(policy, found)
  settings = {"policy": policy.spec.name, "start": start, "denoising_steps": policy.spec.denoising_steps,
              "draws": values.draws, "moments": len(moments), "seen_in": seen_in,
              "memory": None if agent is None else {"records": len(memory), "rule": values.rule}}
  headline = chunks_page.headline(policy, rows)
  return report.write(
    values.out, kicker="pi0rag_jax study: the flow of a policy", headline=headline,
    facts={"policy": policy.spec.name, "draws": str(values.draws), "moments": str(len(moments))},
    sections=chunks_page.sections(policy, found, rows), rows=rows, settings=settings), headline


def _world(values: Any, spec: PolicySpec) -> WorldConfig:
  """Returns the world of the flags, or the one whose robot is the policy's, and whose tasks it was trained on."""
  robot = make_robot(spec.data, spec.model.family).name
  own = [name for name in registry.FAMILIES if registry.family(name).robot == robot]
  if not values.world and not own:
    raise Pi0RagError(f"policy '{spec.name}' is for the robot '{robot}', of which no world is known: give --world, or "
                      "--data with recorded episodes")
  world = values.world or min(own, key=lambda name: (
    not set(spec.tasks) <= set(registry.family(name).tasks), name != robot))
  task = values.task or (*spec.tasks, *registry.family(world).tasks)[0]
  return rollout.world_config(spec, task, values.condition, world=world)


def _recorded(values: Any, policy: Policy) -> list[Moment]:
  """Returns frames of a recorded episode, evenly spread."""
  values.fps, values.skip_bad = None, False
  dataset, to_robot = interventions.opened(values, policy)
  if not 0 <= values.episode < dataset.num_episodes:
    raise Pi0RagError(f"--episode is {values.episode}; {values.data} has episodes 0 to {dataset.num_episodes - 1}")
  seen = interventions.Seen(dataset, values.episode, dataset.read_episode(values.episode, images=False), to_robot)
  frames = np.unique(np.linspace(0, len(seen.data) - 1, values.moments).astype(int)).tolist()
  return [Moment(f"frame {frame}", raw) for frame, raw in zip(frames, seen.observations(frames))]
