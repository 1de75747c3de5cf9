"""How retrieved records change an action chunk: the rules, and the presets that configurations name. Pure.

A rule has two parts. `method` says what the records ask for (`targets`), `flow` how the chunk gets there: executed as
it is ('after' the ODE, the default), or by running the policy's ODE once more (`guidance`). With nothing in range every
rule returns the base chunk, bit for bit.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pi0rag_jax import errors
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, KINDS
from pi0rag_jax.models.flow import Ode
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import guidance, paths, targets

AFTER = "after"
FLOWS = (AFTER, *guidance.FLOWS)
_NOISE, _NETWORKS = ("noise", "noise_network"), ("noise_network", "residual_network")


@dataclasses.dataclass(frozen=True)
class SteeringConfig:
  """Tunables of a steering rule. Distances are in units of the median distance between demonstration keys."""

  method: str = "residual"  # what the records ask for, one of targets.METHODS
  flow: str = AFTER  # how the chunk gets there, one of FLOWS
  k: int = 64  # neighbours, shared equally by the kinds
  kinds: tuple[str, ...] = (CORRECTION, ANCHOR)  # of records that are retrieved
  tau: float = 0.7  # kernel width on the distance of keys; inf: all in range count alike
  range: float = 1.5  # a neighbour farther than this is not there
  # Kernel width on how far the policy's chunk is from the record's own one, in path cost (about cm): what was wrong
  # with another plan says nothing about this one. inf: whatever the policy wants.
  plan_tau: float = 1.0
  mode_width: float = 1.0  # path cost; the records near the displacement that most are near to decide; inf: their mean
  regularization: float = 0.02  # lambda: pulls to the base policy where all weights are small
  alpha: float = 1.0  # share of the displacement, of the blend or of what is injected
  band: int = 0  # ticks, see paths.aligned_residual; 0 takes the paths' differences tick by tick
  anchor_weight: float = 1.0  # of an anchor against a correction: below it, few corrections outvote what worked often
  pull: float = 0.8  # of flows 'pulled' and 'early', on each step's clean chunk
  bound: float = 0.5  # of flow 'early': most that a step's clean chunk is moved, in spreads of the actions
  flow_time: float = 0.5  # of flows 'injected', 'warm_started' and (to its end) 'early'; 1 is noise, 0 the action
  draws: int = 16  # candidates of flow 'best_of_n', the base chunk among them
  seed: int = 0  # of the draws, and of what is fitted
  shuffle_seed: int | None = None  # set: a placebo, whose records have one another's situations (memory.placebo)
  shuffle_plans: bool = True  # False: one another's keys alone
  utility: bool = False  # trust records by how the episodes ended in which they had a say (policy.utility)
  utility_prior: float = 4.0  # episodes of average outcome that every record is granted
  utility_min: float = 0.5  # a record that succeeds less than this share of the average is ignored
  # Evidence, as an e-value, that more than `harmless` of the episodes in which a record has a say are hurt, at which it
  # loses it; 0: never.
  silenced_at: float = 0.0
  harmless: float = 0.02
  half_life: float = 0.0  # episodes without helping after which a record is trusted half as much; 0: never


# Few neighbours, whatever the policy wants, and the mean of what they ask for.
_PLAIN = SteeringConfig(k=8, tau=0.5, plan_tau=math.inf, mode_width=math.inf, regularization=0.05)
# A fitted network answers; the memory says no more than whether any record, or one in range, is there.
_ASKED = SteeringConfig(k=2, tau=math.inf, range=math.inf, plan_tau=math.inf, mode_width=math.inf, regularization=0.0)

PRESETS = {
    "residual": SteeringConfig(),
    # k = 3, a threshold, alpha 0.3 and a clamp: what retrieval-augmented policies usually do. The threshold is the best
    # of 0.5, 1 and 1.5 on tuning seeds (camera_shift: 58, 59 and 68 % of 96, 58 % without memory).
    "textbook": dataclasses.replace(_PLAIN, k=3, tau=math.inf, regularization=0.0, method="blend", kinds=(CORRECTION,),
                                    alpha=0.3),
    "absolute": SteeringConfig(method="blend", regularization=0.0),
    "few_anchors": SteeringConfig(anchor_weight=0.3),  # until results/pace the default
    "no_anchors": SteeringConfig(kinds=(CORRECTION,)),
    "raw": _PLAIN,
    "aligned": dataclasses.replace(_PLAIN, band=6),  # the learning notes' best, with fewer neighbours
    "mean": SteeringConfig(mode_width=math.inf),
    "injection": dataclasses.replace(_PLAIN, regularization=0.0, method="blend", flow="injected", kinds=(ANCHOR,)),
    "guidance": SteeringConfig(flow="pulled"),
    "warm_start": SteeringConfig(method="blend", flow="warm_started", regularization=0.0),
    "repulsion": dataclasses.replace(_PLAIN, method="repulsion", kinds=(FAILURE,)),
    "best_of_n": dataclasses.replace(_PLAIN, k=12, method="blend", flow="best_of_n", kinds=KINDS),
    # FlowDAgger's published recipe. It never abstains: one record anywhere, and the network is asked.
    "flowdagger": dataclasses.replace(_ASKED, method="noise_network", flow="restarted"),
    "flowdagger_in_range": dataclasses.replace(_ASKED, method="noise_network", flow="restarted", range=1.5),
    "noise_memory": SteeringConfig(method="noise", flow="restarted"),
    "residual_dagger": dataclasses.replace(_ASKED, method="residual_network"),
    "residual_dagger_in_range": dataclasses.replace(_ASKED, method="residual_network", range=1.5),
    # How strongly and how long the flow is guided was chosen here.
    "traceflow": dataclasses.replace(_PLAIN, k=16, method="contrast", flow="early", kinds=(ANCHOR, FAILURE),
                                     pull=0.3),
    "placebo": SteeringConfig(shuffle_seed=0),
    "placebo_keys": SteeringConfig(shuffle_seed=0, shuffle_plans=False),
    "forgetting": SteeringConfig(utility=True, half_life=200.0),
}


def preset(name: str, **changes) -> SteeringConfig:
  """Returns a named preset with some fields changed.

  Errors: Pi0RagError for an unknown preset, field, method, flow or kind, and for values that no rule can use.
  """
  if name not in PRESETS:
    raise errors.unknown_name("steering preset", name, PRESETS)
  fields = {f.name for f in dataclasses.fields(SteeringConfig)}
  for field in changes:
    if field not in fields:
      raise errors.unknown_name("steering field", field, fields)
  config = dataclasses.replace(PRESETS[name], **changes)
  for field, known in (("method", targets.METHODS), ("flow", FLOWS)):
    if getattr(config, field) not in known:
      raise errors.unknown_name(f"steering {field}", getattr(config, field), known)
  if not set(config.kinds) <= set(KINDS):
    raise errors.Pi0RagError(f"steering kinds are {config.kinds}, allowed: {', '.join(KINDS)}")
  if not 0 < config.flow_time <= 1 or config.draws < 1:
    raise errors.Pi0RagError(f"steering flow_time is {config.flow_time} and draws {config.draws}; allowed are times "
                             "above 0 up to 1, and 1 draw or more")
  if config.bound < 0:
    raise errors.Pi0RagError(f"steering bound is {config.bound}; allowed: 0 or more")
  if asks_for_noise(config) != (config.flow == guidance.RESTARTED):
    raise errors.Pi0RagError(f"steering method '{config.method}' with flow '{config.flow}': noise is asked for by "
                             f"{' and '.join(_NOISE)}, and '{guidance.RESTARTED}' is the flow that starts from it")
  return config


def asks_for_noise(config: SteeringConfig) -> bool:
  """Returns whether a rule asks for another start of the flow, which records do not have: it must be fitted."""
  return config.method in _NOISE


def is_fitted(config: SteeringConfig) -> bool:
  """Returns whether a rule needs what is fitted to a whole memory."""
  return asks_for_noise(config) or asks_network(config)


def asks_network(config: SteeringConfig) -> bool:
  """Returns whether a rule asks a network that was fitted to the records."""
  return config.method in _NETWORKS


def reads_residuals(config: SteeringConfig) -> bool:
  """Returns whether a rule needs the neighbours' residuals aligned in time; others it makes itself."""
  return config.method == "residual" and config.flow != "best_of_n" and config.band > 0


def steer(base_BTA, neighbours, config: SteeringConfig, space: ActionSpace, *, flow: Ode | None = None,
          trust_B=None):
  """Returns the chunk to execute, how many neighbours had a say, and how much each had.

  Args:
    base_BTA: float[B, T, A], the policy's own chunk, in the robot's units.
    neighbours: dict with corrected_BKTA and base_BKTA float of any precision (the better chunk and the policy's own),
      distance_BK float (in key units), kind_BK int (place in KINDS), trust_BK float in [0, 1], mask_BK bool and, for a
      rule that aligns in time, residual_BKTA float (path displacement). For a rule that was fitted: noise_BKTX, from
      where the policy's own flow starts to what it comes to the corrected chunks from; or key_BE and `network`.
    flow: the ODE that made the base chunk; rules 'after' it need none.
    trust_B: float[B] in [0, 1], how much of the way from the base chunk is gone; None is all of it.
  Returns:
    (actions_BTA, used_B int, weight_BK float in [0, 1]): with used 0 the base chunk, bit for bit.
  """
  # Once: fused into all that reads them, the conversions of float16 would take as long as the rest.
  single = {name: jnp.asarray(neighbours[name], jnp.float32) for name in ("base_BKTA", "corrected_BKTA")}
  neighbours = neighbours | jax.lax.optimization_barrier(single)
  trust_B = jnp.ones(len(base_BTA)) if trust_B is None else trust_B
  in_range_BK = neighbours["mask_BK"] & (neighbours["distance_BK"] <= config.range)
  weight_BK = _weights(base_BTA, neighbours, in_range_BK, config, space)
  steered_BTA = targets.METHODS[config.method](base_BTA, neighbours, weight_BK, config, space)
  if config.flow != AFTER:
    assert flow is not None, f"flow '{config.flow}' runs the ODE again: it must be given"
    steered_BTA = guidance.FLOWS[config.flow](flow, base_BTA, steered_BTA, neighbours, weight_BK, config, space)
  trust_B11 = trust_B[:, None, None]
  steered_BTA = jnp.where(trust_B11 < 1, base_BTA + trust_B11 * (steered_BTA - base_BTA), steered_BTA)
  used_B = (in_range_BK & (neighbours["trust_BK"] > 0) & (trust_B[:, None] > 0)).sum(axis=-1)
  say_BK = weight_BK * neighbours["trust_BK"] * trust_B[:, None]
  return jnp.where(used_B[:, None, None] > 0, steered_BTA, base_BTA), used_B, say_BK


def _weights(base_BTA, neighbours, in_range_BK, config: SteeringConfig, space: ActionSpace):
  """Returns w = exp(-d^2 / (2 tau^2) - p^2 / (2 plan_tau^2)) float[B, K], less for anchors, 0 out of range.

  d is the distance of the keys, p that of the policy's chunks as paths.
  """
  exponent_BK = jnp.square(neighbours["distance_BK"] / config.tau)
  if math.isfinite(config.plan_tau):
    path_BTA, path_BKTA = (paths.scaled(paths.to_path(chunk, space), space)
                           for chunk in (base_BTA, neighbours["base_BKTA"]))
    exponent_BK += paths.squared_length(path_BKTA - path_BTA[:, None], space) / config.plan_tau**2
  kind_BK = jnp.where(neighbours["kind_BK"] == KINDS.index(ANCHOR), config.anchor_weight, 1.0)
  return kind_BK * jnp.where(in_range_BK, jnp.exp(-exponent_BK / 2), 0.0)
