"""The flow of a policy at some moments: its chunks by step, how many ways it knows, and where a memory moves it.

Distances are those of paths, root mean squares of their cost (1 is about 1 cm; see `robots.robot.ActionSpace`).
Letters beyond the project's key: `N` is a step of the flow, `F` a chunk's numbers in one row.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.spatial.distance

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import flow
from pi0rag_jax.policy.policy import Encoded, Policy
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.steering import paths
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.study.plane import detour
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import WorldConfig

STEPS = (1, 2, 5, 10, 100)
ROWS = 8  # of a batch: one program for all
FLOWS = ("pi0", "pi05")


@dataclasses.dataclass(frozen=True)
class Moment:
  """What a robot saw."""

  name: str
  raw: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What the flow makes of one moment, chunks in the robot's units."""

  moment: Moment
  draws_BTA: np.ndarray
  zero_TA: np.ndarray  # from z = 0
  foreseen_NTA: np.ndarray  # from z = 0: the chunk that each step expects; the first is what a single step makes
  errors: Mapping[int, float]  # by number of steps: mean distance to the chunk of the most steps, from the same noise
  detour: float
  steered_TA: np.ndarray | None = None  # with a memory: what it makes of the policy's own chunk
  own_TA: np.ndarray | None = None
  used: int = 0  # records that had a say


def check(spec: PolicySpec, *, draws: int, steps: Sequence[int]) -> None:
  """Raises Pi0RagError for a policy without a flow, and for numbers that nothing can be seen with."""
  if spec.family not in FLOWS:
    raise Pi0RagError(f"policy '{spec.name}' is a {spec.family}, whose chunks come of no flow; allowed: a policy of "
                      f"{' or '.join(FLOWS)}")
  if draws < 2:
    raise Pi0RagError(f"draws are {draws}; allowed: 2 or more, since one chunk does not say how many ways there are")
  if len(steps) < 2 or min(steps, default=0) < 1:
    raise Pi0RagError(f"steps are {', '.join(map(str, steps)) or 'none'}; allowed: two numbers or more, each 1 or "
                      "more, since chunks are compared with those of the most steps")


def study(policy: Policy, moments: Sequence[Moment], *, draws: int = 64, steps: Sequence[int] = STEPS,
          agent: Agent | None = None, seed: int = 0) -> list[Seen]:
  """Returns what the flow makes of each moment.

  Args:
    draws: of noise, the same at each moment.
    steps: numbers of steps to compare, in any order.
    agent: with a memory of this policy.
  Errors: as `check`; Pi0RagError for a robot whose actions only the host can convert.
  """
  check(policy.spec, draws=draws, steps=steps)
  programs = _Programs(policy, sorted(steps))
  noise_BTX = np.random.default_rng(seed).standard_normal((draws, *policy.noise_shape)).astype(np.float32)
  return [_seen(programs, moment, noise_BTX, agent) for moment in moments]


def in_world(policy: Policy, config: WorldConfig, *, seed: int, count: int) -> list[Moment]:
  """Returns what a robot sees at `count` decisions, evenly spread over an episode where the policy acts alone."""
  agent, found = Agent(policy), []
  carry, ticks = policy.start(1), 0
  with contextlib.closing(registry.make_world(config)) as world:
    world.begin(seed)
    while True:
      found.append(Moment(f"tick {ticks}", world.observe()))
      carry, decision = agent.decide(carry, [found[-1].raw])
      progress = world.advance(decision.actions_BTA[0, : policy.spec.execute_steps])
      ticks = progress.ticks
      if progress.done:
        break
  return [found[place] for place in np.unique(np.linspace(0, len(found) - 1, count).astype(int)).tolist()]


def rows(policy: Policy, found: Sequence[Seen]) -> list[dict[str, Any]]:
  """Returns what was measured: a row for each moment, and one for each number of steps."""
  table: list[dict[str, Any]] = []
  for one in found:
    draws_BF, zero_F, one_step_F = (flat(chunk, policy) for chunk in (one.draws_BTA, one.zero_TA, one.foreseen_NTA[0]))
    mean_F = draws_BF.mean(axis=0)
    entry_share, place = entry_split(draws_BF)
    row = {"measure": "moment", "moment": one.moment.name, "spread": _length(draws_BF - mean_F),
           "split_share": split_share(draws_BF),
           "entry_split": entry_share, "entry": place % policy.space.dim, "entry_tick": place // policy.space.dim,
           "nearest_p50": float(np.median(np.sort(scipy.spatial.distance.cdist(draws_BF, draws_BF))[:, 1])),
           "zero_from_mean": _length(zero_F - mean_F),
           "zero_to_nearest": float(np.linalg.norm(draws_BF - zero_F, axis=1).min()),
           "one_step_from_mean": _length(one_step_F - mean_F), "detour": one.detour}
    if one.steered_TA is not None:
      row |= {"used": one.used, "moved": _length(flat(one.steered_TA, policy) - flat(one.own_TA, policy))}
    table.append(row)
  spread = float(np.mean([row["spread"] for row in table]))
  for count in found[0].errors:
    error = float(np.mean([one.errors[count] for one in found]))
    table.append({"measure": "error", "steps": count, "error": error, "of_spread": error / max(spread, 1e-9)})
  return [{name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
          for row in table]


def split_share(points_BF: np.ndarray) -> float:
  """Returns how much of the variance along the first principal component is between two groups, split where it is most.

  A normal distribution has 2 / pi = 0.64, a uniform one 0.75, two points 1.
  """
  return _between(project(points_BF)[0][:, 0])


def entry_split(points_BF: np.ndarray) -> tuple[float, int]:
  """Returns (the share of `split_share`, the place) of the number that splits most.

  Of the numbers whose spread is at least half of the largest.
  """
  spread_F = points_BF.std(axis=0)
  wide = np.flatnonzero(spread_F >= spread_F.max() / 2).tolist()
  return max((_between(points_BF[:, place]), place) for place in wide)


def _between(line_B: np.ndarray) -> float:
  """Returns the share of the variance of numbers that is between two groups of them."""
  line_B = np.sort(line_B)
  total = np.square(line_B - line_B.mean()).sum()
  before_B = np.cumsum(line_B)[:-1]
  count_B = np.arange(1, len(line_B))
  between_B = np.square(before_B - count_B * line_B.mean()) * len(line_B) / (count_B * (len(line_B) - count_B))
  return float(between_B.max() / total) if total > 0 else 0.0


def project(points_BF: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """Returns the points along their two principal components, [B, 2], and what takes other points [F] there."""
  mean_F = points_BF.mean(axis=0)
  _, _, directions_FF = np.linalg.svd(points_BF - mean_F, full_matrices=False)
  axes_FC = directions_FF[:2].T
  axes_FC = axes_FC * np.sign(axes_FC[np.abs(axes_FC).argmax(axis=0), range(axes_FC.shape[1])])  # pictures repeat
  take = lambda other_F: (other_F - mean_F) @ axes_FC  # noqa: E731
  return take(points_BF), take


def flat(chunk_BTA, policy: Policy) -> np.ndarray:
  """Returns chunks as points between which Euclidean distances are those of their paths, float64[..., F]."""
  path_BTA = np.asarray(paths.scaled(paths.to_path(np.asarray(chunk_BTA, np.float64), policy.space), policy.space))
  return path_BTA.reshape(*path_BTA.shape[:-2], -1)


def _length(difference_BF) -> float:
  """Returns the root mean square length of vectors, or the length of one."""
  return float(np.sqrt(np.square(difference_BF).sum(axis=-1).mean()))


class _Programs:
  """A policy's compiled flow, with other numbers of steps too."""

  def __init__(self, policy: Policy, steps: Sequence[int]):
    self.policy, self.num_steps = policy, policy.spec.denoising_steps
    self._runs = {count: _run(_with_steps(policy, count)) for count in {*steps, self.num_steps}}
    self.steps = steps
    self._advance = policy.compiled(lambda params, encoded, x_BTX, step: policy.flow_fn(params, encoded, x_BTX).run(
      x_BTX, first=step, last=step + 1))
    self._to_robot = policy.compiled(
      lambda params, encoded, x_BTX: policy.flow_fn(params, encoded, x_BTX).to_robot(x_BTX))

  def encode(self, raw: Mapping) -> Encoded:
    """Returns the same moment, ROWS times."""
    _, encoded = self.policy.encode(self.policy.start(ROWS), self.policy.prepare([raw] * ROWS))
    return encoded

  def chunks(self, encoded: Encoded, noise_BTX, steps: int | None = None) -> np.ndarray:
    """Returns the chunks float32[B, T, A] of any number of draws."""
    return _in_batches(lambda start_BTX: self._runs[steps or self.num_steps](encoded, start_BTX), noise_BTX)

  def path(self, encoded: Encoded, noise_BTX) -> np.ndarray:
    """Returns where the policy's own steps come by, float32[N + 1, B, T, X], normalized."""
    visited = [noise_BTX]
    for step in range(self.num_steps):
      visited.append(_in_batches(lambda x_BTX, step=step: self._advance(encoded, x_BTX, jnp.int32(step)), visited[-1]))
    return np.stack(visited)

  def to_robot(self, encoded: Encoded, x_BTX) -> np.ndarray:
    return _in_batches(lambda rows_BTX: self._to_robot(encoded, rows_BTX), x_BTX)


def _seen(programs: _Programs, moment: Moment, noise_BTX: np.ndarray, agent: Agent | None) -> Seen:
  encoded, policy = programs.encode(moment.raw), programs.policy
  zero_BTX = np.zeros((1, *noise_BTX.shape[1:]), np.float32)
  by_steps = {count: programs.chunks(encoded, noise_BTX, count) for count in programs.steps}
  best_BF = flat(by_steps[max(by_steps)], policy)
  errors = {count: float(np.linalg.norm(flat(chunk_BTA, policy) - best_BF, axis=1).mean())
            for count, chunk_BTA in by_steps.items()}
  zero_NTX = programs.path(encoded, zero_BTX)[:, 0]
  speed_NTX = np.diff(zero_NTX, axis=0) * -programs.num_steps
  foreseen_NTX = zero_NTX[:-1] - flow.times(programs.num_steps)[:-1, None, None] * speed_NTX
  path_NBTX = programs.path(encoded, noise_BTX)[..., : policy.space.dim]  # what pads the actions is no path
  steered = {}
  if agent is not None:
    _, decision = agent.decide(policy.start(1), [moment.raw])
    steered = {"steered_TA": decision.actions_BTA[0], "own_TA": decision.base_BTA[0], "used": int(decision.used_B[0])}
  return Seen(moment, programs.chunks(encoded, noise_BTX), programs.chunks(encoded, zero_BTX)[0],
              programs.to_robot(encoded, foreseen_NTX), errors, detour(path_NBTX), **steered)


def _with_steps(policy: Policy, count: int) -> Policy:
  """Returns the same policy, whose flow takes other steps."""
  other = copy.copy(policy)
  other.spec = dataclasses.replace(policy.spec, denoising_steps=count)
  return other


def _run(policy: Policy) -> Callable:
  def run(params, encoded, start_BTX):
    observed = policy.flow_fn(params, encoded, start_BTX)
    return observed.to_robot(observed.run(start_BTX))

  return policy.compiled(run)


def _in_batches(function: Callable, rows_BTX) -> np.ndarray:
  """Returns what a function of ROWS rows makes of any number of them."""
  made = []
  for first in range(0, len(rows_BTX), ROWS):
    part_BTX = np.asarray(rows_BTX[first : first + ROWS])
    padding = np.zeros((ROWS - len(part_BTX), *part_BTX.shape[1:]), part_BTX.dtype)
    made.append(np.asarray(function(np.concatenate([part_BTX, padding])))[: len(part_BTX)])
  return np.concatenate(made)
