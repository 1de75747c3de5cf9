"""The control loop: who acts, what is told of it, when the robot stands still, and how episodes end."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest

from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.replanning import OWN, Replanning
from pi0rag_jax.control.setting import Setting
from pi0rag_jax.control.world import WorldDriver
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import panda
from pi0rag_jax.robots.limits import Limits
from pi0rag_jax.serving.client import ServerError
from pi0rag_jax.worlds.world import Progress

CHUNK_TA = np.tile(np.array([0.001, 0.0, 0.0, 0.0, 1.0], np.float32), (8, 1))
PLAN_TA = 2 * CHUNK_TA
LIMIT = 20


class World:
  """Counts ticks; an episode succeeds where the tool has gone far enough."""

  def __init__(self, goal=1.0):
    self.goal, self.ticks, self.way, self.seeds, self.fresh, self.deadline = goal, 0, 0.0, [], 0, LIMIT
    self.after = {}  # tick -> what happens then

  def begin(self, seed):
    self.ticks, self.way, self.deadline = 0, 0.0, LIMIT
    self.seeds.append(seed)

  def observe(self):
    return {"state": np.array([self.way]), "prompt": "go"}

  def advance(self, actions_NA):
    self.ticks += len(actions_NA)
    self.way += float(actions_NA[:, 0].sum())
    self.after.pop(self.ticks, lambda: None)()
    success = self.way >= self.goal
    return Progress(self.ticks, success, success or self.ticks >= self.deadline)

  def plan(self, horizon):
    return PLAN_TA[:horizon]

  def close(self):
    pass

  def more_time(self):
    self.fresh, self.deadline = self.fresh + 1, self.ticks + LIMIT


class Teacher:
  """Writes down what the wire is told."""

  connected = True

  def __init__(self):
    self.told, self.undone = [], []

  def begin(self, episode="", *, task="", robot="", teacher=""):
    self.told.append(("begin", task))
    return f"e{sum(name == 'begin' for name, *_ in self.told)}"

  def infer(self, obs):
    return {"actions": CHUNK_TA, "neighbours_used": 1, "episode": {"surest": {"record": 3}}}

  def did(self, actions=None, *, ticks=None, by="policy"):
    assert (actions is None) == (ticks == 0)
    self.told.append((by, 0 if actions is None else len(actions)))

  def end(self, success, *, failure_kind="", note=""):
    self.told.append(("end", success, failure_kind))
    return {"records": [1, 2]}

  def undo(self, episode):
    if episode in self.undone:
      raise ServerError("no record comes of it")
    self.undone.append(episode)


@pytest.fixture
def robot():
  now = [0.0]

  def sleep(seconds):
    now[0] += seconds

  operator = Operator(expert=True, clock=lambda: now[0])
  operator.wait = sleep  # nobody else is there to wait for
  setting = Setting("pick", panda.ACTIONS, 0.05, Replanning(OWN, 8, 8), panda.TELEOP, has_expert=True)
  driver = WorldDriver(World(), panda.robot(DataConfig(robot="panda"), "pi0"), apart=False)
  made = ControlLoop(driver, Teacher(), operator, setting, clock=lambda: now[0], sleep=sleep)
  made.now, made.world, made.sleep = now, driver.world, sleep
  return made


def test_the_policy_alone_until_time_is_up(robot):
  assert robot.live(5) == ""
  assert robot._teacher.told == [("begin", "pick"), ("policy", 8), ("policy", 8), ("policy", 4),
                                 ("end", False, "timeout")]
  (told,) = robot.episodes
  assert (told.outcome, told.helped, told.ticks, told.decisions, told.spoke) == ("failure", False, 20, 3, 3)
  assert robot.now[0] == pytest.approx(20 * 0.05) and robot.surest == {"record": 3}


def test_take_over_and_hand_back_in_the_middle_of_a_chunk(robot):
  def take_over():
    robot.world.after = {5: lambda: robot.operator.tell({"by": "policy"})}
    robot.operator.tell({"drive": {"right": 1.0}})

  robot.world.after = {3: take_over}
  robot.live(5)
  assert robot._teacher.told[1:4] == [("policy", 3), ("human", 2), ("policy", 8)]
  assert robot.world.fresh == 1, "who takes over has the whole time"
  assert robot.episodes[0].acted == [["policy", 3], ["human", 2], ["policy", 18]] and robot.episodes[0].helped


def test_time_stands_still_under_a_hand_that_does_nothing(robot):
  robot.world.after = {1: lambda: robot.operator.tell({"by": "human"})}
  waits = []

  def sleep(seconds):
    robot.now[0] += seconds
    waits.append(robot.world.ticks)
    if len(waits) == 50:
      robot.operator.tell({"press": "failure"})

  robot.pacer._sleep = sleep
  robot.live(5)
  assert set(waits) == {1} and robot._teacher.told[1:] == [("policy", 1), ("human", 0), ("end", False, "judged")]


def test_the_expert_helps_to_success(robot):
  robot.world.goal = 0.02
  robot.world.after = {4: lambda: robot.operator.tell({"by": "expert"})}
  robot.live(5)
  assert robot._teacher.told[1:] == [("policy", 4), ("expert", 8), ("end", True, "")]
  assert dataclasses.asdict(robot.episodes[0]) | {"acted": 0} == {
    "number": 1, "seed": 5, "id": "e1", "outcome": "success", "ticks": 12, "helped": True, "decisions": 2, "spoke": 2,
    "taught": 2, "acted": 0, "held": 0, "limited": 8, "faults": []}


@pytest.mark.parametrize(("press", "told", "outcome", "wanted"), [
  ("success", ("end", True, ""), "success", ""), ("failure", ("end", False, "judged"), "failure", ""),
  ("next", ("begin", "pick"), "given up", "next"), ("again", ("begin", "pick"), "given up", "again")])
def test_buttons_end_an_episode(robot, press, told, outcome, wanted):
  robot.world.after = {2: lambda: robot.operator.tell({"press": press})}
  assert robot.live(5) == wanted
  assert robot._teacher.told[-1] == told and robot.episodes[0].outcome == outcome


def test_undo_goes_back_one_episode_after_the_other(robot):
  robot.live(1)
  robot.live(2)
  for _ in range(3):
    robot.undo()
  assert robot._teacher.undone == ["e2", "e1"]
  assert [told.outcome for told in robot.episodes] == ["taken back"] * 2


def test_next_and_again_choose_the_start(robot):
  presses = ["next", "again", "next"]

  def wait(seconds):
    robot.now[0] += seconds
    if robot.waiting and presses:
      robot.operator.tell({"press": presses.pop(0)})
    elif robot.waiting:
      robot.stopping = True

  robot.operator.wait = wait
  robot.run(7)
  assert robot.world.seeds == [7, 7, 8]


def test_episodes_follow_by_themselves_where_the_person_lets_them(robot):
  robot.operator.tell({"auto": True})
  robot.world.after = {}
  lives = []
  live = robot.live
  robot.live = lambda seed: (lives.append(seed), setattr(robot, "stopping", len(lives) == 3), live(seed))[2]
  robot.run(1)
  assert lives == [1, 2, 3]


class Arm:
  """A robot in the clock of a test; `after` says what happens at its ticks."""

  def __init__(self, now):
    self.now, self.robot = now, dataclasses.replace(panda.robot(DataConfig(robot="panda"), "pi0"))
    self.seen_s, self.fault, self.progress, self.held, self.actions, self.after = None, "", None, True, [], {}
    self.leading = None

  def begin(self, seed):
    self.held = True

  def stamps(self):
    return {"front": self.now[0] if self.seen_s is None else self.seen_s}

  def observe(self):
    return {"image": {"front": np.zeros((4, 4, 3), np.uint8)}, "state": np.zeros(10)}

  def act(self, action_A):
    self.held = False
    self.actions.append(action_A)
    self.after.pop(len(self.actions), lambda: None)()

  def hold(self):
    self.held = True

  def led(self):
    return self.leading


@pytest.fixture
def arm():
  now = [0.0]
  operator = Operator(expert=False, clock=lambda: now[0])
  setting = Setting("pick", panda.ACTIONS, 0.05, Replanning(OWN, 4, 8), prompt="go", stale_s=0.09, give_up_s=0.3,
                    limit_ticks=12)
  made = ControlLoop(Arm(now), Teacher(), operator, setting, clock=lambda: now[0],
                     sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
  made.now = now
  return made


@pytest.mark.parametrize(("break_it", "words"), [
  (lambda arm: setattr(arm.driver, "seen_s", arm.now[0]), "nothing of 'front' for 90 ms"),
  (lambda arm: setattr(arm.driver, "fault", "reflex: joint 4"), "reflex: joint 4"),
  (lambda arm: setattr(arm._teacher, "connected", False), "the policy server is gone")])
def test_a_robot_that_cannot_see_or_ask_stands_still_and_the_episode_is_marked(arm, break_it, words):
  arm.driver.after = {6: lambda: break_it(arm)}
  arm.live(1)
  (told,) = arm.episodes
  assert (told.outcome, told.faults, told.helped) == ("fault", [words], False) and arm.driver.held
  assert len(arm.driver.actions) == told.ticks <= 8 and told.held >= 5
  assert ("end", False, "timeout") not in arm._teacher.told, "a fault is no failure of the policy's"


def test_it_goes_on_by_a_fresh_chunk_once_it_sees_again(arm):
  arm.driver.after = {6: lambda: setattr(arm.driver, "fault", "pressed")}
  sleep = arm.pacer._sleep

  def mended(seconds):
    sleep(seconds)
    if arm.driver.held and arm.episodes and arm.episodes[-1].held == 3:
      arm.driver.fault = ""

  arm.pacer._sleep = mended
  arm.live(1)
  (told,) = arm.episodes
  assert (told.outcome, told.ticks, told.held, told.decisions) == ("failure", 12, 3, 4) and arm.holds == 1
  assert [count for name, *_, count in arm._teacher.told[1:-1]] == [4, 2, 4, 2], "nothing is told twice"


def test_it_goes_on_from_where_it_stands(arm):
  arm.driver.after = {3: lambda: setattr(arm.driver, "fault", "pressed")}
  limits = Limits(speed=(*[np.inf] * 4, 1.0), measured=(-1, -1, -1, -1, 6))  # the gripper's place
  arm.driver.robot = dataclasses.replace(arm.driver.robot, limits=limits)
  sleep = arm.pacer._sleep
  arm.pacer._sleep = lambda seconds: (sleep(seconds), arm.driver.held and setattr(arm.driver, "fault", ""))
  arm.live(1)
  np.testing.assert_allclose(np.stack(arm.driver.actions)[:5, 4], [0.05, 0.1, 0.15, 0.05, 0.1], atol=1e-6)


def test_a_policy_that_fails_is_asked_again_and_then_given_up(arm):
  arm._teacher.infer = lambda obs: (_ for _ in ()).throw(ServerError("out of memory"))
  arm.live(1)
  (told,) = arm.episodes
  assert (told.outcome, told.ticks, told.faults) == ("fault", 0, ["the policy: out of memory"])


def test_an_answer_that_is_too_late_is_not_executed(arm):
  late = concurrent.futures.Future()
  arm.driver.after = {4: lambda: setattr(arm._chunks, "apart", lambda work: late)}
  sleep = arm.pacer._sleep

  def answered(seconds):
    sleep(seconds)
    if arm.driver.held and len(arm.driver.actions) == 6 and not late.done():
      late.set_result({"actions": CHUNK_TA + 1})
      del arm._chunks.apart

  arm.pacer._sleep = answered
  arm.setting = dataclasses.replace(arm.setting, answer_s=0.08)
  arm.live(1)
  (told,) = arm.episodes
  assert told.faults == ["no answer of the policy for 80 ms"] and told.outcome == "failure"
  assert max(float(action_A[0]) for action_A in arm.driver.actions) < 0.01 and told.ticks == 12


def test_actions_that_are_no_numbers_are_not_sent(arm):
  arm._teacher.infer = lambda obs: {"actions": CHUNK_TA * np.nan}
  arm.live(1)
  assert not arm.driver.actions and "finite numbers" in arm.episodes[0].faults[0]


def test_whoever_leads_the_robot_by_hand_acts(arm):
  led_A = np.array([0.0, 0.003, 0.0, 0.0, 0.0], np.float32)
  arm.driver.after = {3: lambda: setattr(arm.driver, "leading", led_A),
                      6: lambda: setattr(arm.driver, "leading", None)}
  arm.live(1)
  np.testing.assert_array_equal(np.stack(arm.driver.actions)[:, 1] > 0, [*[False] * 3, *[True] * 3, *[False] * 6])
  assert arm._teacher.told[1:4] == [("policy", 3), ("human", 3), ("policy", 4)]


def test_people_drive_on_without_a_policy(arm):
  def gone():
    arm._teacher.connected, arm.driver.leading = False, np.zeros(5, np.float32)

  arm.driver.after = {6: gone}
  arm.live(1)
  (told,) = arm.episodes
  assert (told.outcome, told.ticks, told.faults, told.acted) == ("failure", 12, [], [["policy", 6], ["human", 6]])


def test_a_recording_has_what_was_executed_within_the_limits(arm):
  class Recorder:
    frames, ended = [], []

    def frame(self, observation, action_A, by):
      self.frames.append((observation["prompt"], float(action_A[0]), by))

    def end(self, **told):
      self.ended.append(told)

  arm._recorder = Recorder()
  arm.driver.robot = dataclasses.replace(arm.driver.robot, limits=Limits(speed=(0.01, *[np.inf] * 4)))
  arm.live(1)
  assert len(Recorder.frames) == 12 and Recorder.frames[0] == ("go", pytest.approx(0.0005), "policy")
  assert arm.episodes[0].limited == 12
  (ended,) = Recorder.ended
  assert (ended["success"], ended["failure"], ended["told"]["outcome"]) == (False, "timeout", "failure")


def test_a_world_on_its_own_thread_is_driven_in_real_time():
  driver = WorldDriver(World(), panda.robot(DataConfig(robot="panda"), "pi0"))
  operator = Operator(expert=False)
  operator.auto = True
  setting = Setting("pick", panda.ACTIONS, 0.002, Replanning(OWN, 4, 8), apart=True, stale_s=5.0, auto_s=0.0)
  loop = ControlLoop(driver, Teacher(), operator, setting)
  loop.run(3, episodes=2)
  driver.close()
  assert driver.world.seeds == [3, 4] and [told.outcome for told in loop.episodes] == ["failure"] * 2
  assert all(told.ticks >= LIMIT for told in loop.episodes) and len(loop.answers_s) >= 10
