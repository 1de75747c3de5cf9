"""What the project's own steering does to a path of the flow: `steering.rules`, run on a flow in the plane.

A memory of one record, exactly here, asks for an action. Everything but the field is the code that steers robots.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, KINDS
from pi0rag_jax.models import flow
from pi0rag_jax.models.flow import Ode
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import rules
from pi0rag_jax.study.plane import Field, velocity_of

NUM_STEPS = 10  # of openpi's policies
ITERATIONS = 5  # as `learning.fits` inverts records: FlowDAgger's `fp_per_step`
SPACE = ActionSpace((False, False), (1.0, 1.0), (-math.inf, -math.inf), (math.inf, math.inf), ((0, 1),))
# Presets by what they do to a path.
PRESETS = {
  "residual": "the end is displaced, after the flow (the default)",
  "guidance": "each step's foreseen action is pulled to the one that is asked for",
  "traceflow": "the same, bounded, and only in the first half",
  "injection": "half way, the state is put on the way to the action that is asked for",
  "warm_start": "the flow starts half way, on the way to that action",
  "noise_memory": "the flow starts from the noise of which it would make that action (inverted)",
}


class Steered(NamedTuple):
  """What came of a rule."""

  path_NTA: np.ndarray  # where the flow came by, from its start; jumps are the rule's
  end_TA: np.ndarray  # the action to execute, which a rule after the flow displaces once more


def ode(field: Field, start_BTA) -> Ode:
  """Returns a flow in the plane as rules take a policy's."""
  run = functools.partial(flow.euler, velocity_of(field, NUM_STEPS), num_steps=NUM_STEPS)
  same = lambda chunk_BTA: chunk_BTA  # noqa: E731
  return Ode(run, start_BTA, NUM_STEPS, to_model=same, to_robot=same)


def traced(observed: Ode, visited: list) -> Ode:
  """Returns the same flow, which notes where every step begins and where its runs end."""

  def run(x_BTA, *, first=0, last=None, **options):
    visited.append(x_BTA)
    for step in range(first, observed.num_steps if last is None else last):
      x_BTA = observed.run(x_BTA, first=step, last=step + 1, **options)
      visited.append(x_BTA)
    return x_BTA

  return dataclasses.replace(observed, run=run)


@functools.partial(jax.jit, static_argnames="iterations")
def inverted(field: Field, action_BTA, *, iterations: int = ITERATIONS):
  """Returns the noise of which the flow makes actions, float[B, T, A], as nearly as it is found."""
  return flow.invert(velocity_of(field, NUM_STEPS), action_BTA, num_steps=NUM_STEPS, iterations=iterations)


@jax.jit
def end(field: Field, start_BTA):
  """Returns the actions that the flow makes of some noise, float[B, T, A]."""
  return ode(field, start_BTA).run(start_BTA)


def round_trip(field: Field, action_BTA, *, iterations: int) -> np.ndarray:
  """Returns how far from actions the flow ends that starts from their inverted noise, float[B]; infinite where lost."""
  noise_BTA = inverted(field, action_BTA, iterations=iterations)
  apart_B = np.linalg.norm(np.asarray(end(field, noise_BTA) - action_BTA), axis=(-2, -1))
  return np.where(np.isfinite(apart_B), apart_B, np.inf)


def steer(field: Field, asked_TA, preset: str, **changes) -> Steered:
  """Returns what a rule makes of z = 0 where one record asks for an action.

  Args:
    preset: of `rules.PRESETS`.
    changes: of its fields.
  """
  path_NTA, end_TA = _steer(field, jnp.asarray(asked_TA, jnp.float32), rules.preset(preset, **changes))
  return Steered(np.asarray(path_NTA), np.asarray(end_TA))


@functools.partial(jax.jit, static_argnames="rule")
def _steer(field: Field, asked_TA, rule: rules.SteeringConfig):
  start_BTA, visited = jnp.zeros((1, *asked_TA.shape)), []
  observed = ode(field, start_BTA)
  base_BTA = observed.run(start_BTA)
  neighbours = _record(field, base_BTA, asked_TA[None], start_BTA, rule)
  end_BTA, _, _ = rules.steer(base_BTA, neighbours, rule, SPACE, flow=traced(observed, visited))
  if not visited:  # a rule after the flow, whose path is the policy's own
    traced(observed, visited).run(start_BTA)
  return jnp.stack(visited)[:, 0], end_BTA[0]


def _record(field: Field, base_BTA, asked_BTA, start_BTA, rule: rules.SteeringConfig) -> dict:
  """Returns the neighbours of a decision: one record right here, a correction or what such a rule reads instead."""
  kind = CORRECTION if CORRECTION in rule.kinds else ANCHOR
  own_BTA = base_BTA if kind == CORRECTION else asked_BTA
  found = {
    "base_BKTA": own_BTA[:, None], "corrected_BKTA": asked_BTA[:, None], "distance_BK": jnp.zeros((1, 1)),
    "kind_BK": jnp.full((1, 1), KINDS.index(kind)), "trust_BK": jnp.ones((1, 1)), "mask_BK": jnp.ones((1, 1), bool)}
  if rules.asks_for_noise(rule):
    found["noise_BKTX"] = (inverted(field, asked_BTA) - start_BTA)[:, None]
  if FAILURE in rule.kinds:  # what the policy did itself
    other = {**found, "base_BKTA": base_BTA[:, None], "corrected_BKTA": base_BTA[:, None],
             "kind_BK": jnp.full((1, 1), KINDS.index(FAILURE))}
    found = {name: jnp.concatenate([found[name], other[name]], axis=1) for name in found}
  return found
