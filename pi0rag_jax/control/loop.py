"""The one control loop of every robot: who acts at each tick, what comes of it, and how episodes begin and end.

A tick has a fixed rate. While a chunk is executed the next one is asked for, and goes on from it once it is there.
Where nothing may be sent (nobody has an action, an old picture, a server that is gone) the robot stands still. Under a
person's hand it moves while a key is held, so that nobody is hurried, and standing still is not what is learned.
"""

import concurrent.futures
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pi0rag_jax.control.driver import Driver, Leads
from pi0rag_jax.control.operator import AGAIN, FAILURE, NEXT, SUCCESS, UNDO, Operator
from pi0rag_jax.control.pacer import Pacer
from pi0rag_jax.control.setting import FAULT, GIVEN_UP, TAKEN_BACK, Recorder, Setting, Teacher, Told
from pi0rag_jax.control.watchdog import Watchdog
from pi0rag_jax.data.validation import EXPERT, HUMAN, POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.kept import split
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.serving.chunk_broker import Chunks
from pi0rag_jax.steering import paths

LOOK_S, IDLE_LOOK_S = 0.125, 0.5  # between two pictures, where something moves and where nothing does
_IDLE_S = 0.05
KEPT = 200  # episodes on the page


class ControlLoop:
  """Lives through episodes until it is told to stop.

  Args:
    look: called about LOOK_S apart, and where something else is to be told.
  """

  def __init__(self, driver: Driver, teacher: Teacher, operator: Operator, setting: Setting,
               look: Callable[["ControlLoop"], object] = lambda loop: None, *, recorder: Recorder | None = None,
               clock=time.monotonic, sleep=time.sleep):
    self.driver, self._teacher, self.operator, self.setting, self._look = driver, teacher, operator, setting, look
    self._recorder, self._clock = recorder, clock
    self._chunks = Chunks(teacher, setting.replanning.first, real_time=setting.real_time, apart=setting.apart)
    self._watchdog = Watchdog(driver, self._faults, clock=clock)
    self.pacer = Pacer(setting.tick_s, clock, sleep)
    self._looked_s = self._asked_s = -math.inf
    self._beat_s = math.inf  # of the last tick, while an episode runs
    self._standing_s: float | None = None  # since when the robot stands still although somebody acts
    self._why = ""  # it does, where no watchdog says it
    self._did: list[tuple[str, np.ndarray]] = []  # who executed what since the policy last looked
    self._said: list[tuple[str, np.ndarray]] = []  # what it was told when it did
    self._planned: list[np.ndarray] = []  # by the expert
    self._before_A: np.ndarray | None = None  # executed last
    self.episodes: list[Told] = []
    self.count = 0
    self.moment = 0  # of the robot: it goes up with every tick
    self.by = POLICY
    self.seen: Mapping[str, Any] = {}  # by the policy
    self.surest: Mapping[str, Any] = {}  # the record that had most of a say at the last decision
    self.answers_s: list[float] = []  # how long the policy took for each
    self.waiting = True  # between episodes
    self.stopping = False

  def run(self, seed: int, *, episodes: float = math.inf) -> None:
    """Waits for the person, lives through an episode, and so on; the first one has this seed."""
    if self.setting.apart:
      self._watchdog.start()
    try:
      wanted = self.between(NEXT)
      while not self.stopping and self.count < episodes:
        wanted = self.live(seed) or (self.between() if self.count < episodes else "")
        seed += wanted == NEXT
    finally:
      self._watchdog.close()
      self.driver.hold()
      self._chunks.close()

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
      if self.operator.auto and self._clock() - began_s >= self.setting.auto_s:
        return NEXT
      self._idle()
    return ""

  def undo(self) -> None:
    """Takes back what the last episode taught that is not taken back yet."""
    last = next((told for told in reversed(self.episodes) if told.outcome in (SUCCESS, FAILURE)), None)
    if last is not None:
      with contextlib.suppress(Pi0RagError):  # it taught nothing
        self._teacher.undo(last.id)
      last.outcome, last.taught = TAKEN_BACK, 0
      self.look()

  def live(self, seed: int) -> str:
    """Returns, after an episode, which one the person asked for in the middle of it; '' if it came to its end."""
    told = self._begin(seed)
    try:
      while (over := self._over(told)) is None:
        self._tick(told)
    finally:
      self._beat_s = math.inf
      self.driver.hold()
    return over

  def look(self) -> None:
    """Has the page show what there is now."""
    self._looked_s = self._clock()
    self._look(self)

  @property
  def holds(self) -> int:
    """How often something was wrong for which the robot stood still."""
    return self._watchdog.trips

  @property
  def held_s(self) -> float:
    """When it last began to, on the loop's clock."""
    return self._watchdog.since_s

  def _begin(self, seed: int) -> Told:
    self._wait(self._chunks.apart(lambda: None))  # for what is under way
    self._chunks.begin()
    self._chunks.steps = self.setting.replanning.first
    self.driver.begin(seed)
    self.moment += 1
    self.operator.begins()
    self.count += 1
    named = {"task": self.setting.task, "robot": self.setting.robot, "teacher": self.setting.teacher}
    told = Told(self.count, seed, self._teacher.begin(**named))
    self.episodes = [*self.episodes[1 - KEPT :], told]
    self._did, self._said, self._planned, self._before_A, self._standing_s = [], [], [], None, None
    self.waiting, self.by, self.seen = False, POLICY, {}
    self.pacer.start()
    return told

  def _tick(self, told: Told) -> None:
    self._beat_s = self._clock()
    led_A = self.driver.led() if isinstance(self.driver, Leads) else None
    self._change_hands(HUMAN if led_A is not None else self.operator.by)
    self._listen(told)
    fault = self._watchdog.look()
    if not fault and self._chunks.due:
      self._ask()
      self._listen(told)
    action_A = None if fault else led_A if led_A is not None else self._action()
    if action_A is not None and self._send(action_A, told):
      self._standing_s = None
    else:
      self._stand(told)
    self._keep_time()

  def _ask(self) -> None:
    """Shows the policy what there is to see; it is asked also while somebody else acts."""
    if self.seen:
      self._tell_what_was_done()
    self.seen = self._observation()
    self._asked_s = self._clock()
    self._chunks.ask(self.seen)

  def _tell_what_was_done(self) -> None:
    """Says what was executed since the policy last looked; it is a helper's where one had a hand in it."""
    by = next((by for by, _ in reversed(self._did) if by != POLICY), POLICY if self._did else self.by)
    executed = [action_A for _, action_A in self._did]
    self._teacher.did(np.stack(executed) if executed else None, ticks=None if executed else 0, by=by)
    self._did, self._said = [], self._did

  def _listen(self, told: Told) -> None:
    """Takes the policy's answer, if it is there; without one that can be executed the robot stands still."""
    before_TA, tick, asked = self._chunks.chunk_TA, self._chunks.start, self._chunks.asked
    try:
      answer = self._chunks.arrived()
      if answer is None:
        return
      _check(self._chunks.chunk_TA, self.setting.space)
    except Pi0RagError as error:
      self._chunks.drop()
      self._why = f"the policy: {error}"
      self._did = self._said + self._did  # it was not heard
      return
    self._why = ""
    self.answers_s.append(self._clock() - self._asked_s)
    told.decisions += 1
    spoke = answer.get("neighbours_used", 0) > 0
    told.spoke += spoke
    self.surest = answer.get("episode", {}).get("surest", {})
    apart = paths.contradiction(before_TA, self._chunks.chunk_TA, asked - tick, self.setting.space)
    self._chunks.steps = self.setting.replanning.following(self._chunks.steps, contradiction=apart, spoke=spoke)

  def _observation(self) -> Mapping[str, Any]:
    seen = self.driver.observe()
    return seen if not self.setting.prompt or "prompt" in seen else {**seen, "prompt": self.setting.prompt}

  def _action(self) -> np.ndarray | None:
    """Returns what whoever acts wants to be done now; None for nothing."""
    if self.by == HUMAN:
      return self._by_hand()
    if self.by != EXPERT:
      return self._chunks.action()
    if not self._planned:
      self._planned = list(self.driver.plan(self.setting.replanning.own))  # pyright: ignore[reportAttributeAccessIssue]
    return self._planned.pop(0)

  def _by_hand(self) -> np.ndarray | None:
    wanted, teleop = self.operator.wants(), self.setting.teleop
    if wanted is None or teleop is None:
      return None
    return teleop.action(wanted, is_open=self.operator.is_open, space=self.setting.space, tick_s=self.setting.tick_s)

  def _send(self, action_A: np.ndarray, told: Told) -> bool:
    """Returns whether the robot was sent an action, within its limits."""
    limits, space = self.driver.robot.limits, self.setting.space
    seen = self._observation() if limits.measured or self._recorder is not None else {}
    try:
      state_P = split(seen)[2] if limits.measured else np.zeros(0)
      safe_A = limits.safe(action_A, space, state_P, self._before_A, tick_s=self.setting.tick_s)
      if not self._watchdog.act(safe_A):
        return False
    except Pi0RagError as error:
      self._chunks.drop()
      self._why = str(error)
      return False
    told.limited += not np.allclose(safe_A, action_A, atol=1e-6)
    if self._recorder is not None:
      self._recorder.frame(seen, safe_A, self.by)
    self._chunks.passed()
    self._did.append((self.by, safe_A))
    self._before_A = safe_A
    if self.setting.teleop is not None:
      self.operator.gripper_is(self.setting.teleop.is_open(safe_A))
    self._book(told)
    return True

  def _stand(self, told: Told) -> None:
    """Has the robot stand still; what was planned before is not executed any more where something is wrong."""
    self.driver.hold()
    if self.driver.robot.limits.measured:
      self._before_A = None  # it goes on from where it stands
    fault = self._watchdog.fault
    if fault:
      self._chunks.drop()
    if fault or self.by != HUMAN:
      self._standing_s = self._clock() if self._standing_s is None else self._standing_s
      told.held += told.ticks > 0 or bool(fault)
      why = fault or self._why
      if why and why not in told.faults[-1:]:
        told.faults.append(why)
    else:
      self._standing_s = None

  def _faults(self) -> str:
    """Returns what is wrong; the watchdog's thread asks too."""
    if self.waiting:
      return ""
    now_s = self._clock()
    if fault := self.driver.fault:
      return fault
    if self.by == POLICY and (fault := self._policy_fault(now_s)):
      return fault
    for name, seen_s in self.driver.stamps().items():
      if now_s - seen_s > self.setting.stale_s:
        return f"nothing of '{name}' for {1000 * self.setting.stale_s:.0f} ms"
    if now_s - self._beat_s > self.setting.tick_s + self.setting.stale_s:
      return "the loop is late"
    return ""

  def _policy_fault(self, now_s: float) -> str:
    """Returns what is wrong with the policy, without which people drive on."""
    if not self._teacher.connected:
      return "the policy server is gone"
    late = self._chunks.pending is not None and now_s - self._asked_s > self.setting.answer_s
    return f"no answer of the policy for {1000 * self.setting.answer_s:.0f} ms" if late else ""

  def _idle(self) -> None:
    """Waits a little for the person; pages that were opened meanwhile are told what there is."""
    self.operator.wait(_IDLE_S)
    if self._clock() - self._looked_s >= IDLE_LOOK_S:
      self.look()

  def _wait(self, future: concurrent.futures.Future) -> Any:
    """Returns what comes of something, after waiting for it; None where the loop is to stop, or it takes too long."""
    began_s = self._clock()
    while not future.done() and not self.stopping:
      if self._clock() - began_s > self.setting.give_up_s and self.waiting is False:
        return None
      self._idle()
    return future.result() if future.done() else None

  def _keep_time(self) -> None:
    """Waits until the next tick of the robot's clock, and looks where it is time to."""
    if self._clock() - self._looked_s >= LOOK_S:
      self.look()
    self.pacer.wait()

  def _book(self, told: Told) -> None:
    self.moment += 1
    told.ticks += 1
    told.helped |= self.by != POLICY
    if told.acted and told.acted[-1][0] == self.by:
      told.acted[-1][1] += 1
    else:
      told.acted.append([self.by, 1])

  def _over(self, told: Told) -> str | None:
    """Returns None where the episode goes on, else which one is asked for now; what it taught is durable then."""
    pressed, progress = self.operator.take(), self.driver.progress
    if self.stopping or pressed in (NEXT, AGAIN, UNDO) or (progress is not None and progress.error):
      told.outcome = GIVEN_UP
      self._keep(told, discard=pressed in (AGAIN, UNDO))
      if pressed == UNDO:
        self.undo()
      return pressed if pressed in (NEXT, AGAIN) else ""
    if self._standing_s is not None and self._clock() - self._standing_s > self.setting.give_up_s:
      told.outcome = FAULT
      self._keep(told)
      return ""
    done = (progress is not None and progress.done) or told.ticks >= self.setting.limit_ticks
    if not done and pressed not in (SUCCESS, FAILURE):
      return None
    success = pressed == SUCCESS or (pressed != FAILURE and progress is not None and progress.success)
    told.outcome = SUCCESS if success else FAILURE
    self.driver.hold()
    self._keep(told, kind := "" if success else "judged" if pressed else "timeout")
    told.taught = self._teach(success, kind)
    return ""

  def _teach(self, success: bool, kind: str) -> int:
    """Returns how many records an episode taught; a server that is gone meanwhile is told once it is back."""
    if self._chunks.pending is not None:
      with contextlib.suppress(Pi0RagError):
        self._wait(self._chunks.pending)

    def end() -> dict:
      self._tell_what_was_done()
      return self._teacher.end(success, failure_kind=kind)

    taught = self._wait(self._chunks.apart(end))
    return 0 if taught is None else len(taught["records"])

  def _keep(self, told: Told, kind: str = "", *, discard: bool = False) -> None:
    if self._recorder is None:
      return
    if discard:
      self._recorder.discard()
      return
    said = {"outcome": told.outcome, "failure": kind, "faults": "; ".join(told.faults), "episode": told.id}
    self._recorder.end(success=told.outcome == SUCCESS, failure=kind or told.outcome, told=said)

  def _change_hands(self, by: str) -> None:
    """Lets act whom the person wants; who takes over has the episode's whole time, where the world can give it."""
    if by == self.by:
      return
    if self.by == POLICY and self.setting.has_expert:
      self.driver.more_time()  # pyright: ignore[reportAttributeAccessIssue]
    self.by, self._planned, self._standing_s = by, [], None
    self._chunks.drop()
    self.look()


def _check(chunk_TA: np.ndarray, space: ActionSpace) -> None:
  if chunk_TA.ndim != 2 or chunk_TA.shape[1] != space.dim:
    raise Pi0RagError(f"its chunk has shape {list(chunk_TA.shape)}, the robot takes [T, {space.dim}]")
