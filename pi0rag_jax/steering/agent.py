"""What a robot runs: a frozen policy, steered by its memory where the memory has a say.

The batched decisions of sweeps and the one observation at a time of a server are the same class.
"""

import copy
import dataclasses
import functools
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.memory import address, bridge
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import KINDS
from pi0rag_jax.policy import compiling, realtime
from pi0rag_jax.policy.policy import Carry, Policy, padded_size
from pi0rag_jax.policy.realtime import Lead, Overlap, Pace
from pi0rag_jax.policy.spec import NEW, PolicySpec
from pi0rag_jax.robots import transforms
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.fit import UNFITTED, Fit
from pi0rag_jax.steering.retrieval import Retriever

FEEDING = ("overlap", "callback")
# A normalized state beyond this is no robot's, whatever little its demonstrations moved.
ABSURD_STATE = 1e7
# Networks leave the space of their actions by a little, untrained ones by some ranges; beyond these it is a fault.
ABSURD_RANGES, ABSURD_COST = 10.0, 1e6


@dataclasses.dataclass(frozen=True)
class Decision:
  """What an agent decided for a batch of observations, as numpy arrays in the robot's units."""

  actions_BTA: np.ndarray  # to execute
  base_BTA: np.ndarray  # what the policy itself would have done from the same noise
  key_BE: np.ndarray
  used_B: np.ndarray  # neighbours that had a say; 0: the base action, bit for bit
  ids_BK: np.ndarray  # records retrieved, -1 where none
  weight_BK: np.ndarray  # how much of a say each had, from 0 to 1, as Memory.record_outcome takes it
  distance_BK: np.ndarray  # of their keys, in units of the policy's keys
  kind_BK: np.ndarray  # of each, its place in record.KINDS
  latency_ms: Mapping[str, float]  # by stage, of the whole batch
  missed_deadline: bool = False


# What a session says until it has its answer: it asks an agent's for one observation's, and is given that.
Ask = tuple["Agent", Mapping]
Talk = Generator[Ask, tuple[dict, Decision], Any]


class Agent:
  """A policy with or without a memory; everything else treats both alike."""

  def __init__(self, policy: Policy, memory: Memory | None = None, rule: rules.SteeringConfig | str | None = None, *,
               feeding: str = "overlap", deadline_ms: float | None = None, fit: Fit = UNFITTED,
               real_time: bool = False):
    """Takes the parts.

    Args:
      memory: None runs the policy alone.
      rule: a preset's name or its tunables; None is 'residual'.
      feeding: 'overlap' searches on the host while the device decodes; 'callback' inside the compiled policy.
      deadline_ms: a search (overlap only) that takes longer is given up and the base action is used; None waits.
      fit: what was worked out from the memory, for a rule that needs it.
      real_time: `answer` and `infer` go on from the chunk before, see `policy.realtime`: for robots that execute it
        until the new one is there.
    Errors: Pi0RagError for a memory of another policy, a rule or a feeding that the policy's kind cannot have.
    """
    if feeding not in FEEDING:
      raise unknown_name("feeding", feeding, FEEDING)
    self.policy, self.memory, self._feeding = policy, memory, feeding
    self._real_time = real_time
    self.rule: rules.SteeringConfig | None = None  # without a memory
    self.reset()
    if real_time and not policy.has_flow:
      raise Pi0RagError(f"real-time chunking leads a flow elsewhere, which a {policy.spec.family} policy has none of")
    if memory is None:
      return
    rule = rules.preset(rule or "residual") if isinstance(rule, str) or rule is None else rule
    check_rule(policy, rule)
    fit.check(rule)
    self.rule = rule
    self._runs_again, self._network = rule.flow != rules.AFTER, fit.network
    if real_time:
      self._check_can_go_on()
    self._retriever = Retriever(memory, rule, policy.space, unit_distance=policy.unit_distance, noise=fit.noise)
    steer = functools.partial(rules.steer, config=rule, space=policy.space)
    self._search = bridge.OverlapQuery(self._retriever, None if deadline_ms is None else deadline_ms / 1000)
    if feeding == "callback":
      query = bridge.callback_query(self._retriever)
      self._decide_in_one = policy.in_one(lambda key_BE: self._with_network(query(key_BE), key_BE), steer,
                                          runs_again=self._runs_again)
    elif self._runs_again:
      self._steer = policy.compiled(
        lambda params, encoded, start_BTX, base_BTA, neighbours, trust_B: steer(
          base_BTA, neighbours, flow=policy.flow_fn(params, encoded, start_BTX), trust_B=trust_B))
    else:
      self._steer = compiling.in_one_thread(steer)

  def decide(self, carry: Carry, raws: Sequence[Mapping], noise_BTX=None, *, trust_B=None,
             overlaps: Sequence[Overlap | None] | None = None) -> tuple[Carry, Decision]:
    """Returns (the next carry, the decision) for a batch of raw observations.

    Args:
      carry: of `policy.start`, or the last decision's; its rows are those of the padded batch.
      raws: robot's dictionaries.
      noise_BTX: see Policy.decode; None is the policy's own start.
      trust_B: float[B] in [0, 1], how much of the memory's change is made; 0 is the base policy, bit for bit. None is
        all of it.
      overlaps: of each row with the chunk that is still being executed, which the new one goes on from; see
        `policy.realtime`. What the memory changes grows as the weight of that chunk falls.
    """
    clock = Clock()
    with np.errstate(over="ignore"):  # of what is refused in the next line
      inputs = self.policy.prepare(raws)
    _check_state(inputs.get("state", ()))
    return self.decided(carry, inputs, len(raws), overlaps, clock, noise_BTX, trust_B)

  def decided(self, carry: Carry, inputs: dict, batch: int, overlaps: Sequence[Overlap | None] | None,
              clock: "Clock", noise_BTX=None, trust_B=None) -> tuple[Carry, Decision]:
    """Returns as `decide`, of the model's inputs of a padded batch."""
    clock.lap("prepare")
    lead = None
    if overlaps is not None and any(overlap is not None for overlap in overlaps):
      lead = realtime.lead(overlaps, *self.policy.chunk_shape)
      self._check_can_go_on()
    if self.memory is not None and self._feeding == "callback":
      carry, decision = self._in_one_call(carry, inputs, batch, noise_BTX, trust_B, clock)
    else:
      carry, decision = self._overlapped(carry, inputs, batch, noise_BTX, trust_B, lead, clock)
    clock.stop("total")
    return carry, decision

  def _overlapped(self, carry, inputs, batch: int, noise_BTX, trust_B, lead: Lead | None, clock: "Clock"
                  ) -> tuple[Carry, Decision]:
    carry, encoded = self.policy.encode(carry, inputs)
    if self.memory is None:
      base_BTA = self.policy.decode(encoded, noise_BTX)
      going_BTA = base_BTA if lead is None else self.policy.go_on(encoded, lead, noise_BTX)
      actions_BTA, base_BTA, key_BE = _fetched(going_BTA, base_BTA, encoded.key_BE)
      clock.lap("policy")
      nobody_BK = np.full((batch, 0), -1)
      return carry, Decision(actions_BTA[:batch], base_BTA[:batch], key_BE[:batch], np.zeros(batch, int), nobody_BK,
                             nobody_BK.astype(np.float32), nobody_BK.astype(np.float32), nobody_BK, clock.stages_ms)
    pending = self._search.submit(encoded.key_BE, batch)
    rows = len(encoded.key_BE)
    start_BTX = self.policy.start_of_flow(rows, noise_BTX) if self._runs_again else None
    base_BTA = self.policy.decode(encoded, noise_BTX if start_BTX is None else start_BTX)
    going_BTA = None if lead is None else self.policy.go_on(encoded, lead, noise_BTX)
    found = pending.result()
    clock.lap("search")
    neighbours = self._with_network(_without_ids(_padded(found, self._retriever, rows - batch)), encoded.key_BE)
    if self._runs_again:
      steered = self._steer(encoded, start_BTX, base_BTA, neighbours, _padded_trust(trust_B, rows))
    else:
      steered = self._steer(base_BTA, neighbours, trust_B=_padded_trust(trust_B, rows))
    actions_BTA, used_B, weight_BK, base_BTA, key_BE = _fetched(*steered, base_BTA, encoded.key_BE)
    if lead is not None:
      change_BTA = actions_BTA - base_BTA
      actions_BTA = realtime.changed(np.asarray(going_BTA), change_BTA, lead.padded(rows), self.policy.space)
    clock.lap("steer")
    return carry, Decision(actions_BTA[:batch], base_BTA[:batch], key_BE[:batch], used_B[:batch], found["ids_BK"],
                           weight_BK[:batch], found["distance_BK"], found["kind_BK"], clock.stages_ms, pending.missed)

  def _in_one_call(self, carry, inputs, batch: int, noise_BTX, trust_B, clock: "Clock") -> tuple[Carry, Decision]:
    rows = padded_size(batch)
    carry, outputs = self._decide_in_one(carry, inputs, self.policy.start_of_flow(rows, noise_BTX),
                                         _padded_trust(trust_B, rows))
    arrays = [array[:batch] for array in _fetched(*outputs)]
    clock.lap("device")
    return carry, Decision(*arrays, latency_ms=clock.stages_ms)

  def _check_can_go_on(self) -> None:
    if self.memory is not None and (self._runs_again or self._feeding == "callback"):
      raise Pi0RagError("real-time chunking needs steering after the flow (such as the preset 'residual') and feeding "
                        "'overlap': with a rule that runs the flow again two would lead it")

  def _with_network(self, neighbours: dict, key_BE) -> dict:
    """Returns neighbours with what a rule reads that asks a network."""
    return neighbours if self._network is None else {**neighbours, "key_BE": key_BE, "network": self._network}

  @property
  def deadline_misses(self) -> int:
    """Decisions that had to do without a search that took too long."""
    return 0 if self.memory is None else self._search.deadline_misses

  @property
  def metadata(self) -> dict[str, Any]:
    """What a server tells its clients: what the policy says, or else what there is to know of it."""
    spec = self.policy.spec
    if spec.metadata or not spec.tasks:
      return dict(spec.metadata)
    horizon, action_dim = self.policy.chunk_shape
    return {"name": spec.name, "robot": self.policy.robot.name, "tasks": list(spec.tasks),
            "cameras": list(spec.cameras), "action_horizon": horizon, "action_dim": action_dim,
            "execute_steps": spec.execute_steps, "control_hz": spec.control_hz,
            "memory_records": 0 if self.memory is None else len(self.memory)}

  def session(self) -> "Agent":
    """Returns this agent for another robot: what it carries between decisions is its own, all else is shared."""
    other = copy.copy(self)
    other.reset()
    return other

  def reset(self) -> None:
    """Forgets what was seen: the next observation is the first of an episode."""
    self.carry = self.policy.start(1)
    self._pace = Pace(1 / self.policy.spec.control_hz) if self._real_time else None

  def infer(self, observation: Mapping, *, noise=None) -> dict:
    """Returns the decision for one robot.

    Args:
      observation: the robot's dictionary, see pi0rag_jax.robots. It is not changed.
      noise: float[T, X], or with a leading axis of 1, where the flow starts; None is the policy's own start.
    Returns:
      `actions` float64[T, A] in the robot's units, as openpi gives them; with a memory `neighbours_used`, how many of
      its records had a say, 0 for the policy's own actions; `policy_timing` with `infer_ms` and each stage's.
    Errors: Pi0RagError when an entry is missing or not of the robot's shape or range, and for actions that are no
      numbers or far outside the robot's space; what was seen before is kept.
    """
    return self.answer(observation, noise=noise)[0]

  def answer(self, observation: Mapping, *, noise=None) -> tuple[dict, Decision]:
    """Returns what `infer` does, and the decision behind it."""
    if noise is not None:
      noise = np.asarray(noise)
      noise = noise[None] if noise.ndim == len(self.policy.noise_shape) else noise
    overlaps = None
    if self._pace is not None:
      observation, told = realtime.split(observation)
      overlaps = [self._pace.seen(told)]
    carry, decision = self.decide(self.carry, [observation], noise, overlaps=overlaps)
    return self.answered(carry, decision)

  def answered(self, carry: Carry, decision: Decision) -> tuple[dict, Decision]:
    """Returns what one robot is told of its decision."""
    check_actions(decision.actions_BTA, self.policy.space)
    self.carry = carry
    if self._pace is not None:
      self._pace.answered(decision.actions_BTA[0])
    stages = dict(decision.latency_ms)
    timing = {"infer_ms": stages.pop("total"), **{f"{stage}_ms": ms for stage, ms in stages.items()}}
    used = {} if self.memory is None else {"neighbours_used": int(decision.used_B[0])}
    return {"actions": decision.actions_BTA[0].astype(np.float64), **used, "policy_timing": timing}, decision

  def prepared(self, observation: Mapping) -> tuple[dict, Overlap | None]:
    """Returns the model's entries of an observation, and what its chunk goes on from. Errors: as `infer`."""
    overlap = None
    if self._pace is not None:
      observation, told = realtime.split(observation)
      overlap = self._pace.seen(told)
    with np.errstate(over="ignore"):
      sample = self.policy.model_input(observation)
    _check_state(sample.get("state", ()))
    return sample, overlap

  def talk(self, observation: Mapping) -> Talk:
    """Asks for an answer to an observation, which others may be decided with; see `steering.together`."""
    answer, _ = yield self, observation
    return answer

  def surest(self, decision: Decision) -> dict[str, Any]:
    """Returns the record that had most of a say in a decision for one robot: its id, how much, and its distance in
    units of the keys. Empty where none had a say.
    """
    if self.memory is None or not decision.used_B[0]:
      return {}
    place = int(decision.weight_BK[0].argmax())
    return {"record": int(decision.ids_BK[0, place]), "kind": KINDS[decision.kind_BK[0, place]],
            "weight": float(decision.weight_BK[0, place]), "distance": float(decision.distance_BK[0, place])}

  def compile(self, observation: Mapping, *, all_prompts: bool = False) -> None:
    """Compiles what `infer` runs for observations with the cameras of this one, so that none waits for it.

    Each program runs once, since a device loads programs at their first call.

    Args:
      all_prompts: for prompts of every length; else of about the length of this one's.
    """
    with transforms.made_up():
      for inputs in self.policy.examples(observation, all_prompts=all_prompts):
        self._once(inputs)

  def _once(self, inputs: dict) -> None:
    start = self.policy.start(1)
    if self.memory is not None and self._feeding == "callback":
      self._in_one_call(start, inputs, 1, None, None, Clock())
    else:
      self._overlapped(start, inputs, 1, None, None, None, Clock())
      if self._real_time:
        nothing = realtime.lead([None], *self.policy.chunk_shape)
        self._overlapped(start, inputs, 1, None, None, nothing, Clock())

  def close(self) -> None:
    """Stops the thread that a deadline needs; the memory stays open, it is its owner's."""
    if self.memory is not None:
      self._search.close()


def check_rule(policy: Policy, rule: rules.SteeringConfig) -> None:
  """Raises Pi0RagError for a rule that steers within the flow, where the policy has none."""
  if rule.flow != rules.AFTER and not policy.has_flow:
    raise Pi0RagError(f"steering flow '{rule.flow}' leads a flow elsewhere, which a {policy.spec.family} policy has "
                      f"none of; allowed for it: '{rules.AFTER}', as in the preset 'residual'")
  if rules.asks_for_noise(rule) and policy.spec.start == NEW:
    raise Pi0RagError(f"steering method '{rule.method}' asks for another start of the flow, and policy "
                      f"'{policy.spec.name}' has a new one for every decision: load it with a fixed start, as 'zero'")


def start_with(memory_dir, spec: PolicySpec, asked: str | None = None) -> str | None:
  """Returns where a policy's flow starts that is run with a memory; None leaves it to the policy.

  That is as asked, else as the policy says, and where that is new for each decision, as the memory's header says.
  """
  if asked or not memory_dir or spec.start != NEW:
    return asked
  header = address.stored_header(memory_dir)
  return None if header is None else header.start


def check_actions(actions_BTA: np.ndarray, space: ActionSpace) -> None:
  """Raises Pi0RagError for actions that are no numbers, or far outside the robot's space."""
  lowest_A, highest_A, cost_A = _farthest(space)
  inside = (actions_BTA >= lowest_A) & (actions_BTA <= highest_A)
  inside &= np.abs(actions_BTA) * cost_A <= ABSURD_COST  # False for NaN
  if not inside.all():
    place = tuple(np.argwhere(~inside)[0].tolist())
    entry = place[-1]
    raise Pi0RagError(f"the policy answers with {actions_BTA[place]:g} for entry {entry} of the action in step "
                      f"{place[-2]}; the robot takes {space.low[entry]:g} to {space.high[entry]:g}: nothing is sent. "
                      "Check observation and statistics")


@functools.lru_cache(maxsize=8)
def _farthest(space: ActionSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the least and the most that is believed of an action, and its cost, float64[A] each."""
  low_A, high_A = np.asarray(space.low), np.asarray(space.high)
  with np.errstate(invalid="ignore"):  # infinity less infinity, where there is no limit
    slack_A = np.where(np.isfinite(low_A) & np.isfinite(high_A), ABSURD_RANGES * (high_A - low_A), 0.0)
  return low_A - slack_A, high_A + slack_A, np.asarray(space.cost)


def _check_state(state_BP) -> None:
  if not (np.abs(state_BP) <= ABSURD_STATE).all():
    raise Pi0RagError(f"the state is absurd, more than {ABSURD_STATE:g} times the spread of the policy's "
                      "demonstrations: the observation is not of a working robot, or of another one")


def _fetched(*arrays) -> list[np.ndarray]:
  """Returns the arrays on the host, once the device has them; a tenth of the time of `jax.device_get`."""
  if jax.default_backend() != "cpu":
    for array in arrays:
      if isinstance(array, jax.Array):
        array.copy_to_host_async()
  return list(map(np.asarray, arrays))


def _padded(found: dict, retriever: Retriever, missing: int) -> dict:
  """Returns neighbours with rows for the padding of a batch, all masked."""
  if not missing:
    return found
  padding = retriever.empty(missing)
  return {name: np.concatenate([array, padding[name]]) for name, array in found.items()}


def _padded_trust(trust_B, rows: int) -> np.ndarray:
  padded_B = np.ones(rows, np.float32)
  if trust_B is not None:
    padded_B[: len(trust_B)] = trust_B
  return padded_B


def _without_ids(neighbours: dict) -> dict:
  return {name: array for name, array in neighbours.items() if name != "ids_BK"}


class Clock:
  """Wall-clock by stage of one decision, ms."""

  def __init__(self):
    self.stages_ms: dict[str, float] = {}
    self._start = self._last = time.perf_counter()

  def lap(self, stage: str) -> None:
    """Books the time since the last lap on a stage."""
    now = time.perf_counter()
    self.stages_ms[stage] = (now - self._last) * 1000
    self._last = now

  def stop(self, stage: str) -> None:
    self.stages_ms[stage] = (time.perf_counter() - self._start) * 1000
