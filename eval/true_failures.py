"""When a simulated episode really failed, and how: the measure of what detectors notice from the sensors.

The rules read bodies, contacts and motions that no robot can see (`sim/truth.py`) and the commands; no signal or
threshold of the detectors enters.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.learning.detectors import COLLISION, DROP, MISS, TIMEOUT
from pi0rag_jax.sim.controller import PERIOD_S
from pi0rag_jax.sim.truth import Truth
from pi0rag_jax.worlds.episode import Trace


@dataclasses.dataclass(frozen=True)
class Rules:
  """What counts as a failure. Ticks are control ticks."""

  arm_N: float = 3.0  # one contact of a link, the hand or a finger's back,
  arm_ticks: int = 2  # for so long
  push_N: float = 30.0  # of the world on the robot: beyond any load it carries,
  impulse_Ns: float = 15.0  # and over the contact more than putting something down gives,
  blow_N: float = 150.0  # or at one tick so hard
  apart_ticks: int = 4  # contacts with a shorter pause between them are one
  held_ticks: int = 3  # an object between the pads for so long is held
  closing_ticks: int = 4  # the fingers need so long to close
  lost_ticks: int = 3  # an object that is back sooner was not lost
  fall_m: float = 0.02
  fall_ticks: int = 10


@dataclasses.dataclass(frozen=True)
class Event:
  """A true failure, from `tick` to `end` (1 is the first tick), both included."""

  kind: str
  tick: int
  end: int


def events(trace: Trace, rules: Rules = Rules()) -> list[Event]:
  """Returns the failures of an episode with a truth per tick, in the order of time."""
  truths = trace.truths
  closed_N = np.array([s["gripper_command"] < 0.5 for s in trace.sensors], bool)
  holds = grasps(truths, rules)
  found = [Event(COLLISION, *run) for run in _collisions(truths, rules)]
  found += [Event(DROP, tick, tick) for tick in _drops(truths, closed_N, holds, rules)]
  found += [Event(MISS, *run) for run in _misses(truths, closed_N, holds, rules)]
  if trace.outcome == "failure":
    found.append(Event(TIMEOUT, len(truths), len(truths)))
  return sorted(found, key=lambda event: event.tick)


def grasps(truths: Sequence[Truth], rules: Rules) -> list[tuple[int, int]]:
  """Returns (first, last) tick of each time in which one object was held."""
  held = [truth.held for truth in truths]
  return [(first, last) for body in sorted(set(held) - {""})
          for first, last in runs(np.array([name == body for name in held]), gap=rules.lost_ticks)
          if last - first + 1 >= rules.held_ticks]


def kind(found: Sequence[Event], held: Sequence[tuple[int, int]]) -> str:
  """Returns the failure that a failed episode did not recover from: the first after it last took hold of something."""
  taken = max((first for first, _ in held), default=0)
  return next((event.kind for event in found if event.tick >= taken), TIMEOUT)


def runs(signal_N: np.ndarray, *, gap: int = 1) -> list[tuple[int, int]]:
  """Returns (first, last) tick of each time in which a signal is on; pauses shorter than `gap` ticks are none."""
  ticks = np.flatnonzero(signal_N) + 1
  if not len(ticks):
    return []
  parts = np.split(ticks, np.flatnonzero(np.diff(ticks) > gap) + 1)
  return [(int(part[0]), int(part[-1])) for part in parts]


def _collisions(truths: Sequence[Truth], rules: Rules) -> list[tuple[int, int]]:
  """Returns the contacts in which the robot ran into something."""
  arm_N = np.array([truth.arm_N for truth in truths])
  push_N = np.array([truth.push_N for truth in truths])
  found = []
  for first, last in runs((arm_N > rules.arm_N) | (push_N > rules.push_N), gap=rules.apart_ticks):
    here_N = push_N[first - 1 : last]
    pushed = here_N.sum() * PERIOD_S > rules.impulse_Ns or here_N.max() > rules.blow_N
    if pushed or (arm_N[first - 1 : last] > rules.arm_N).sum() >= rules.arm_ticks:
      found.append((first, last))
  return found


def _drops(truths, closed_N, holds, rules: Rules) -> list[int]:
  """Returns the ticks at which something held was lost by a hand that stayed closed, or fell from an opening one."""
  ticks = []
  for _, last in holds:
    body, after = truths[last - 1].held, truths[last : last + rules.fall_ticks]
    if not after:
      continue
    fell = truths[last - 1].heights_m[body] - min(truth.heights_m[body] for truth in after) > rules.fall_m
    if fell or closed_N[last - 1 : last + rules.lost_ticks].all():
      ticks.append(last + 1)
  return ticks


def _misses(truths, closed_N, holds, rules: Rules) -> list[tuple[int, int]]:
  """Returns the closings, from when the fingers can have shut, in which nothing was ever held."""
  return [(first + rules.closing_ticks - 1, last) for first, last in runs(closed_N)
          if last - first + 1 >= rules.closing_ticks and not any(f <= last and first <= end for f, end in holds)]
