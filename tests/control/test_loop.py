"""The control loop: who acts, what is told of it, when the robot stands still, and how episodes end."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.control.loop import ControlLoop, Setting
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.replanning import OWN, Replanning
from pi0rag_jax.control.world import WorldDriver
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import panda
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

  def more_time(self):
    self.fresh, self.deadline = self.fresh + 1, self.ticks + LIMIT


class Teacher:
  """Writes down what the wire is told."""

  connected = True

  def __init__(self):
    self.told, self.undone = [], []

  def begin(self, episode="", *, task="", robot=""):
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
