"""A simulated robot that is taught as any robot is: through the wire, by a person who takes over and hands back.

The world runs in real time while the policy or the expert acts. Under a person's hand it moves while a key is held, so
that nobody is hurried, and standing still is not what is learned.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from pi0rag_jax.console.operator import AGAIN, FAILURE, NEXT, SUCCESS, UNDO, Operator
from pi0rag_jax.data.validation import EXPERT, HUMAN, POLICY
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.robots.teleop import Drive, Teleop
from pi0rag_jax.serving.client import ServerError
from pi0rag_jax.worlds.world import Progress

LOOK_S, IDLE_LOOK_S = 0.125, 0.5  # between two pictures, where something moves and where nothing does
_LATE_S = 0.25  # by which the world may lag before it stops to catch up
_IDLE_S = 0.05
AUTO_S = 2.0  # until the next episode begins by itself
KEPT = 200  # episodes on the page


class Teacher(Protocol):
  """The wire: `serving.client.TeachingClient`."""

  def begin(self, episode: str = "", *, task: str = "", robot: str = "") -> str: ...
  def infer(self, obs: Mapping) -> dict: ...
  def did(self, actions=None, *, ticks: int | None = None, by: str = POLICY) -> None: ...
  def end(self, success: bool, *, failure_kind: str = "", note: str = "") -> dict: ...
  def undo(self, episode: str) -> dict: ...


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the console runs."""

  task: str
  space: ActionSpace
  teleop: Teleop
  tick_s: float
  execute_steps: int
  has_expert: bool = False


@dataclasses.dataclass
class Told:
  """An episode, as the page tells of it."""

  number: int
  seed: int
  id: str = ""
  outcome: str = "running"  # then 'success', 'failure', 'given up' or 'taken back'
  ticks: int = 0
  helped: bool = False
  decisions: int = 0
  spoke: int = 0  # decisions in which the memory had a say
  taught: int = 0  # records
  acted: list[list] = dataclasses.field(default_factory=list)  # [who, ticks], one after the other


class TaughtRobot:
  """Lives through episodes until it is told to stop.

  Args:
    look: called with the world about LOOK_S apart, and where something else is to be told.
  """

  def __init__(self, world: Any, teacher: Teacher, operator: Operator, setting: Setting,
               look: Callable[["TaughtRobot"], object], *, clock=time.monotonic, sleep=time.sleep):
    self.world, self._teacher, self.operator, self.setting, self._look = world, teacher, operator, setting, look
    self._clock, self._sleep = clock, sleep
    self._looked_s = self._due_s = -float("inf")
    self.episodes: list[Told] = []
    self.count = 0
    self.moment = 0  # of the world: it goes up with every tick
    self.by = POLICY
    self.seen: Mapping[str, Any] = {}  # by the policy
    self.surest: Mapping[str, Any] = {}  # the record that had most of a say at the last decision
    self.waiting = True  # between episodes
    self.stopping = False

  def run(self, seed: int) -> None:
    """Waits for the person, lives through an episode, and so on; the first one has this seed."""
    wanted = self.between(NEXT)
    while not self.stopping:
      wanted = self.live(seed) or self.between()
      seed += wanted == NEXT

  def between(self, otherwise: str = "") -> str:
    """Returns whether the NEXT episode is wanted or the same one AGAIN; others of the person's wishes are fulfilled."""
    self.waiting = True
    self.look()
    began_s = self._clock()
    while not self.stopping:
      pressed = self.operator.take()
      if pressed == UNDO:
        self.undo()
      if pressed in (NEXT, AGAIN):
        return otherwise or pressed
      if self.operator.auto and self._clock() - began_s > AUTO_S:
        return NEXT
      self._idle()
    return ""

  def undo(self) -> None:
    """Takes back what the last episode taught that is not taken back yet."""
    last = next((told for told in reversed(self.episodes) if told.outcome in ("success", "failure")), None)
    if last is not None:
      with contextlib.suppress(ServerError):  # it taught nothing
        self._teacher.undo(last.id)
      last.outcome, last.taught = "taken back", 0
      self.look()

  def live(self, seed: int) -> str:
    """Returns, after an episode, which one the person asked for in the middle of it; '' if it came to its end."""
    self.world.begin(seed)
    self.moment += 1
    self.operator.begins()
    self.count += 1
    told = Told(self.count, seed, self._teacher.begin(task=self.setting.task, robot="console"))
    self.episodes = [*self.episodes[1 - KEPT :], told]
    self.waiting, self.by, self._due_s = False, POLICY, self._clock()
    while True:
      chunk_TA = self._decide(told)
      executed, progress = self._act(chunk_TA)
      self._teacher.did(np.stack(executed) if executed else None, ticks=None if executed else 0, by=self.by)
      self._book(told, len(executed))
      if (over := self._over(told, progress)) is not None:
        return over
      self._change_hands()

  def look(self) -> None:
    """Has the page show what there is now."""
    self._looked_s = self._clock()
    self._look(self)

  def _decide(self, told: Told) -> np.ndarray:
    """Returns the policy's chunk for what there is to see; it is asked also while somebody else acts."""
    self.seen = self.world.observe()
    answer = self._teacher.infer(self.seen)
    told.decisions += 1
    told.spoke += answer.get("neighbours_used", 0) > 0
    self.surest = answer.get("episode", {}).get("surest", {})
    return np.asarray(answer["actions"], np.float32)

  def _act(self, chunk_TA: np.ndarray) -> tuple[list[np.ndarray], Progress | None]:
    """Returns what was executed until the next decision is due, and what came of it."""
    count, progress = self.setting.execute_steps, None
    planned_TA = self.world.plan(count) if self.by == EXPERT else chunk_TA
    executed: list[np.ndarray] = []
    while len(executed) < count and self._goes_on():
      action_A = self._by_hand() if self.by == HUMAN else planned_TA[len(executed)]
      if action_A is None:
        continue
      executed.append(np.asarray(action_A, np.float32))
      self.operator.gripper_is(self.setting.teleop.is_open(executed[-1]))
      progress = self.world.advance(executed[-1][None])
      self.moment += 1
      self._keep_time()
      if progress.done:
        break
    return executed, progress

  def _goes_on(self) -> bool:
    return self.operator.by == self.by and not self.operator.pressed and not self.stopping

  def _by_hand(self) -> np.ndarray | None:
    """Returns the person's action; None where none is wanted now, after waiting a little for it."""
    wanted: Drive | None = self.operator.wants()
    if wanted is None:
      self._idle()
      self._due_s = self._clock()
      return None
    return self.setting.teleop.action(wanted, is_open=self.operator.is_open, space=self.setting.space,
                                      tick_s=self.setting.tick_s)

  def _idle(self) -> None:
    """Waits a little for the person; pages that were opened meanwhile are told what there is."""
    self.operator.wait(_IDLE_S)
    if self._clock() - self._looked_s >= IDLE_LOOK_S:
      self.look()

  def _keep_time(self) -> None:
    """Waits until the next tick of the robot's clock, and looks where it is time to."""
    self._due_s += self.setting.tick_s
    now_s = self._clock()
    if now_s - self._looked_s >= LOOK_S:
      self.look()
    if now_s - self._due_s > _LATE_S:
      self._due_s = now_s
    self._sleep(max(0.0, self._due_s - self._clock()))

  def _book(self, told: Told, ticks: int) -> None:
    told.ticks += ticks
    told.helped |= self.by != POLICY and ticks > 0
    if told.acted and told.acted[-1][0] == self.by:
      told.acted[-1][1] += ticks
    elif ticks:
      told.acted.append([self.by, ticks])

  def _over(self, told: Told, progress: Progress | None) -> str | None:
    """Returns None where the episode goes on, else which one is asked for now; what it taught is durable then."""
    pressed = self.operator.take()
    if self.stopping or pressed in (NEXT, AGAIN, UNDO) or (progress is not None and progress.error):
      told.outcome = "given up"
      if pressed == UNDO:
        self.undo()
      return pressed if pressed in (NEXT, AGAIN) else ""
    done = progress is not None and progress.done
    if not done and pressed not in (SUCCESS, FAILURE):
      return None
    success = pressed == SUCCESS or (pressed != FAILURE and progress is not None and progress.success)
    kind = "" if success else "judged" if pressed else "timeout"
    told.taught = len(self._teacher.end(success, failure_kind=kind)["records"])
    told.outcome = SUCCESS if success else FAILURE
    return ""

  def _change_hands(self) -> None:
    """Lets act whom the person wants; who takes over has the episode's whole time, where the world can give it."""
    if self.operator.by == self.by:
      return
    if self.by == POLICY and self.setting.has_expert:
      self.world.more_time()
    self.by, self._due_s = self.operator.by, self._clock()
    self.look()
