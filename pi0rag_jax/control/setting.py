"""What the control loop works with: what it runs, who is asked and taught, who records, and what it tells."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pi0rag_jax.control.replanning import Replanning
from pi0rag_jax.data.validation import POLICY
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.robots.teleop import Teleop

AUTO_S = 2.0  # until the next episode begins by itself
RUNNING, FAULT, GIVEN_UP, TAKEN_BACK = "running", "fault", "given up", "taken back"  # beside SUCCESS and FAILURE


class Teacher(Protocol):
  """A policy that may be taught: `serving.teaching.Teaching`."""

  @property
  def connected(self) -> bool: ...
  def begin(self, episode: str = "", *, task: str = "", robot: str = "", teacher: str = "") -> str: ...
  def infer(self, obs: Mapping) -> dict: ...
  def did(self, actions=None, *, ticks: int | None = None, by: str = POLICY) -> None: ...
  def end(self, success: bool, *, failure_kind: str = "", note: str = "") -> dict: ...
  def undo(self, episode: str) -> dict: ...


class Recorder(Protocol):
  """Keeps what was seen and done: `control.recording.Recording`."""

  def frame(self, observation: Mapping[str, Any], action_A: np.ndarray, by: str) -> None: ...
  def end(self, *, success: bool, failure: str, told: Mapping[str, str]) -> None: ...
  def discard(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the loop runs."""

  task: str
  space: ActionSpace
  tick_s: float
  replanning: Replanning
  teleop: Teleop | None = None  # how keys drive it
  has_expert: bool = False
  robot: str = "console"  # its name, for who looks into the memory
  teacher: str = ""  # and that of who takes over
  prompt: str = ""  # of observations that have none
  apart: bool = False  # the policy thinks while the robot moves; else the robot waits for it
  real_time: bool = False  # chunks go on from the one before, see `policy.realtime`
  stale_s: float = math.inf  # after which what was seen is too old to act upon
  answer_s: float = math.inf  # after which the policy's answer is too late to act upon
  give_up_s: float = math.inf  # of standing still for a fault, after which the episode is over
  limit_ticks: float = math.inf  # of an episode
  auto_s: float = AUTO_S


@dataclasses.dataclass
class Told:
  """An episode, as a page or a line tells of it."""

  number: int
  seed: int
  id: str = ""
  outcome: str = RUNNING
  ticks: int = 0
  helped: bool = False
  decisions: int = 0
  spoke: int = 0  # decisions in which the memory had a say
  taught: int = 0  # records
  acted: list[list] = dataclasses.field(default_factory=list)  # [who, ticks], one after the other
  held: int = 0  # ticks at which the robot stood still although somebody acted
  limited: int = 0  # ticks at which an action was cut off at a limit
  faults: list[str] = dataclasses.field(default_factory=list)  # for which it stood still, one after the other
