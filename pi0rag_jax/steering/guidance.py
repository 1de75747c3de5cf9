"""How the policy's flow is led to what the records ask for: rules that run the ODE again. Pure.

The base chunk comes first, from a run of its own: what the records ask for is relative to it, and it is executed
where they have no say. A rule thus costs a second run (`best_of_n`: one per draw). The ODE knows flow times of whole
steps only, so `flow_time` is rounded to one.
"""

import jax
import jax.numpy as jnp

from pi0rag_jax.models import flow as flow_matching
from pi0rag_jax.models.flow import Ode
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import targets


def pulled(flow: Ode, base_BTA, target_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the chunk of an ODE each of whose steps goes to x0 + pull * (target - x0) instead of its own x0."""
  target_BTA = flow.to_model(target_BTA)
  # What pads a robot's actions to the model's is the model's own business.
  pull_A = jnp.where(jnp.arange(target_BTA.shape[-1]) < space.dim, config.pull, 0.0)
  correct = lambda clean_BTA: clean_BTA + pull_A * (target_BTA - clean_BTA)  # noqa: E731
  return flow.to_robot(flow.run(flow.start_BTA, correct=correct))


def early(flow: Ode, base_BTA, target_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the chunk of an ODE that is pulled to the target up to `flow_time`, by at most `bound`, and then let be.

  Source: the idea of TraceFlow (arXiv 2609.20646): guidance that is bounded and ends early leaves the rest to the
  policy.
  """
  target_BTA = flow.to_model(target_BTA)
  bound_A = jnp.where(jnp.arange(target_BTA.shape[-1]) < space.dim, config.bound, 0.0)
  step = _step(flow, config)
  x_BTA = flow.run(flow.start_BTA, last=step, correct=lambda clean_BTA: clean_BTA + jnp.clip(
    config.pull * (target_BTA - clean_BTA), -bound_A, bound_A))
  return flow.to_robot(flow.run(x_BTA, first=step))


def restarted(flow: Ode, base_BTA, target_BTX, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the chunk of the ODE from another start: what the records ask for is noise, from the policy's own start.

  Source: FlowDAgger (arXiv 2607.08877).
  """
  return flow.to_robot(flow.run(flow.start_BTA + target_BTX))


def injected(flow: Ode, base_BTA, target_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the chunk of an ODE that is moved at `flow_time` towards the target's own way, and goes on from there.

  By alpha times the weight of the surest neighbour. Source: the idea of Retrieve-then-Steer (arXiv 2605.10094): the
  retrieved chunk enters an intermediate state, the more the surer its retrieval is.
  """
  step, way_BTA = _on_the_way(flow, target_BTA, config)
  x_BTA = flow.run(flow.start_BTA, last=step)
  share_B = config.alpha * (weight_BK * neighbours["trust_BK"]).max(axis=-1)
  return flow.to_robot(flow.run(x_BTA + share_B[:, None, None] * (way_BTA - x_BTA), first=step))


def warm_started(flow: Ode, base_BTA, target_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the chunk of an ODE that starts at `flow_time`, on the target's way from the noise."""
  step, way_BTA = _on_the_way(flow, target_BTA, config)
  return flow.to_robot(flow.run(way_BTA, first=step))


def best_of_n(flow: Ode, base_BTA, target_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the best by `targets.values` of the base chunk and of those from `draws` - 1 fixed draws of noise.

  The draws are the same at each decision, so that equal observations get equal actions.
  """
  noise_NTA = jax.random.normal(jax.random.key(config.seed), (config.draws - 1, *flow.start_BTA.shape[1:]))
  chunk_NBTA = jax.vmap(lambda z_TA: flow.to_robot(flow.run(jnp.broadcast_to(z_TA, flow.start_BTA.shape))))(noise_NTA)
  candidates_NBTA = jnp.concatenate([base_BTA[None], chunk_NBTA])
  best_B = targets.values(candidates_NBTA, neighbours, weight_BK, space).argmax(axis=0)
  return jnp.take_along_axis(candidates_NBTA, best_B[None, :, None, None], axis=0)[0]


RESTARTED = "restarted"
FLOWS = {"pulled": pulled, "early": early, RESTARTED: restarted, "injected": injected, "warm_started": warm_started,
         "best_of_n": best_of_n}


def _on_the_way(flow: Ode, target_BTA, config):
  """Returns (step, x_BTA): the step nearest to `flow_time`, and where it begins between start and target."""
  step = _step(flow, config)
  time = flow_matching.times(flow.num_steps)[step]
  x_BTA, _ = flow_matching.interpolate(flow.to_model(target_BTA), flow.start_BTA, jnp.full(len(target_BTA), time))
  return step, x_BTA


def _step(flow: Ode, config) -> int:
  """Returns the step that begins nearest to `flow_time`."""
  return round((1.0 - config.flow_time) * flow.num_steps)
