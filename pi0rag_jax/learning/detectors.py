"""Failures as a robot notices them while it works: collision, drop, miss and timeout, from its sensors alone.

Signals and first thresholds were measured on the simulated Panda (simulation notes): a nominal episode has no
contact force on the arm and about 15 N on each pad; pads pressed into the table show 137 N and more.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COLLISION, DROP, MISS, TIMEOUT = KINDS = ("collision", "drop", "miss", "timeout")
CERTAIN = 1.0


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
  """When a signal means a failure. Ticks are control ticks."""

  tick_s: float = 0.05
  arm_force_N: float = 5.0  # on links, hand and finger backs,
  stuck_lag_m: float = 0.02  # or the tool is so far from its command
  stuck_step_m: float = 0.002  # and moves less than this in a tick,
  collision_ticks: int = 2  # for so long
  pad_force_N: float = 22.0  # beyond a grasp's; what exceeds it adds up
  pad_impulse_Ns: float = 5.0  # to more than putting something down gives
  quiet_ticks: int = 4  # after so many a contact is over
  held_force_N: float = 1.0  # on both pads: something is held
  held_ticks: int = 3
  lost_ticks: int = 3
  empty_width_m: float = 0.002  # fingers closer than this are closed on nothing
  empty_ticks: int = 2
  closing_ticks: int = 12  # fingers that took hold of nothing for so long will not
  put_height_m: float = 0.0  # how much higher than where it was grasped the task may put a thing down
  release_height_m: float = 0.0225  # let go so far above that, what was held falls; inf where it may


@dataclasses.dataclass(frozen=True)
class Detection:
  """A failure that was noticed."""

  kind: str  # one of KINDS
  tick: int  # at which it was noticed, from 1: the tick whose sensors told
  onset: int  # tick at which it began
  confidence: float  # in [0, 1]; 0.5 at the threshold


class Detector:
  """Reads an episode's sensors tick by tick.

  Args:
    time_limit: tick at which an episode that goes on has failed; None has none.
  """

  def __init__(self, config: DetectorConfig = DetectorConfig(), *, time_limit: int | None = None):
    self._time_limit = time_limit
    self._tick = 0
    self._contact = _Contact(config)
    self._grip = _Grip(config)

  @property
  def holds(self) -> bool:
    """Whether something is held now."""
    return self._grip.holds

  def update(self, sensors: Mapping[str, Any]) -> list[Detection]:
    """Returns what is noticed at the next tick.

    Args:
      sensors: `contact_force_arm_N`, `pad_forces_N` [2], `gripper_width_m`, `gripper_command` (1 open, 0 closed),
        `tool_commanded` and `tool_measured` [4] (x, y, z in m, yaw).
    """
    self._tick += 1
    found = [*self._contact.update(self._tick, sensors), *self._grip.update(self._tick, sensors)]
    if self._tick == self._time_limit:
      found.append(Detection(TIMEOUT, self._tick, self._tick, CERTAIN))
    return found


class _Contact:
  """Collisions: force where there should be none, or a tool that is held up. One detection per contact."""

  def __init__(self, config: DetectorConfig):
    self._config = config
    self._position = np.full(3, np.inf)
    self._begin(0)

  def _begin(self, tick: int) -> None:
    """Forgets the last contact; the next one begins at `tick` or later."""
    self._onset, self._quiet, self._hits, self._impulse_Ns, self._told = tick, 0, 0, 0.0, False

  def update(self, tick: int, sensors: Mapping[str, Any]) -> Iterable[Detection]:
    limits = self._config
    hit, pad_N = self._hit(sensors), max(sensors["pad_forces_N"]) - limits.pad_force_N
    self._quiet = 0 if hit > 1.0 or pad_N > 0.0 else self._quiet + 1
    if self._quiet:
      if self._quiet >= limits.quiet_ticks:
        self._begin(tick + 1)
      return
    self._onset = self._onset if self._hits or self._impulse_Ns else tick
    self._hits += hit > 1.0
    self._impulse_Ns += max(pad_N, 0.0) * limits.tick_s
    pressed = self._impulse_Ns / limits.pad_impulse_Ns
    if not self._told and (pressed > 1.0 or self._hits >= limits.collision_ticks):
      self._told = True
      yield Detection(COLLISION, tick, self._onset, beyond(max(pressed, hit, 1.0)))

  def _hit(self, sensors: Mapping[str, Any]) -> float:
    """Returns the force on the arm, or the lag of a tool that stands still, in units of its threshold."""
    limits, before = self._config, self._position
    self._position = np.array(sensors["tool_measured"][:3])
    lag_m = float(np.linalg.norm(sensors["tool_commanded"][:3] - self._position))
    stands = float(np.linalg.norm(self._position - before)) < limits.stuck_step_m
    return max(sensors["contact_force_arm_N"] / limits.arm_force_N, lag_m / limits.stuck_lag_m if stands else 0.0)


class _Grip:
  """Misses and drops: what is between the fingers from one closing to the next."""

  def __init__(self, config: DetectorConfig):
    self._config = config
    # Ticks in a row: pads not pressed, fingers closed on nothing, commanded closed; and ticks of this grasp.
    self._loose = self._empty = self._closed = self._grasped = 0
    self._told = False  # how this closing ended
    self._let_go = False  # the gripper was commanded open since the pads were pressed last
    self._taken_m = self._lost_m = 0.0  # height of the tool as it took hold, and as it lost it

  @property
  def holds(self) -> bool:
    """Whether something is held; pauses shorter than `lost_ticks` are none."""
    return self._grasped >= self._config.held_ticks

  def update(self, tick: int, sensors: Mapping[str, Any]) -> Iterable[Detection]:
    limits, width_m = self._config, float(sensors["gripper_width_m"])
    wants_open = sensors["gripper_command"] >= 0.5
    empty = not wants_open and width_m < limits.empty_width_m
    pressed = not empty and min(sensors["pad_forces_N"]) > limits.held_force_N
    self._closed = 0 if wants_open else self._closed + 1
    self._empty = self._empty + 1 if empty else 0
    self._let_go = wants_open or (self._let_go and not pressed)
    self._told = self._told and not wants_open
    self._follow(pressed, float(sensors["tool_measured"][2]))
    if self._loose == limits.lost_ticks:
      yield from self._lose(tick)
    in_vain = self._empty >= limits.empty_ticks or (self._closed >= limits.closing_ticks and self._loose)
    if in_vain and not self.holds and not self._told:
      self._told = True
      yield Detection(MISS, tick, tick - self._closed + 1, 1.0 - 0.5 * min(width_m / limits.empty_width_m, 1.0))

  def _follow(self, pressed: bool, height_m: float) -> None:
    """Counts, and notes at which heights the grasp began and ended."""
    if pressed:
      self._taken_m = self._taken_m if self._grasped else height_m
      self._grasped, self._loose, self._lost_m = self._grasped + 1, 0, height_m
      return
    self._loose += 1
    if self._loose == 1:
      self._lost_m = (self._lost_m + height_m) / 2  # some time within this tick

  def _lose(self, tick: int) -> Iterable[Detection]:
    """Judges what became of something held that is there no more: lost, let fall, or put down."""
    held, grasped, self._grasped = self.holds, self._grasped, 0
    if not held:
      return
    self._told = not self._let_go  # closed since then, it is another closing
    limits, raised_m, onset = self._config, self._lost_m - self._taken_m, tick - self._loose + 1
    falls_m = limits.put_height_m + limits.release_height_m
    if not self._let_go:
      yield Detection(DROP, tick, onset, beyond(grasped / limits.held_ticks))
    elif raised_m > falls_m:
      yield Detection(DROP, tick, onset, beyond(raised_m / falls_m))


def beyond(ratio: float) -> float:
  """Returns the confidence of a signal that is `ratio` times its threshold: 0.5 at 1, towards 1 far beyond it."""
  return 1.0 - 0.5 / float(ratio)


def detect(sensors: Sequence[Mapping[str, Any]], config: DetectorConfig, *, timed_out: bool) -> "Findings":
  """Returns what the detectors notice in a whole episode.

  Args:
    sensors: one per tick, see `Detector.update`.
    timed_out: the episode ended because its time was up.
  """
  detector = Detector(config, time_limit=len(sensors) if timed_out else None)
  found: list[Detection] = []
  recovered = 0
  for tick, tick_sensors in enumerate(sensors, 1):
    held = detector.holds
    found += detector.update(tick_sensors)
    recovered = tick if detector.holds and not held else recovered
  return Findings(tuple(found), recovered)


@dataclasses.dataclass(frozen=True)
class Findings:
  """What the detectors noticed in an episode, in the order of time."""

  detections: tuple[Detection, ...] = ()
  recovered: int = 0  # tick at which something was taken hold of last: that makes up for what was before

  @property
  def cause(self) -> Detection | None:
    """The failure that the episode did not recover from, None where nothing was noticed."""
    return next((found for found in self.detections if found.tick > self.recovered), None)

  @property
  def kind(self) -> str:
    """One of KINDS: that of the cause; an episode that failed without one ran out of time."""
    return self.cause.kind if self.cause else TIMEOUT
