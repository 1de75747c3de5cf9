"""What a person's keys and buttons come to."""

import pytest

from pi0rag_jax.control.operator import DRIVE_S, GRIPPER_S, PRESSES, Operator
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.teleop import Drive


class Clock:
  def __init__(self):
    self.now_s = 0.0

  def __call__(self):
    return self.now_s


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def operator(clock):
  return Operator(expert=True, clock=clock)


def test_who_drives_takes_over_until_it_is_handed_back(operator):
  operator.tell({"drive": {"away": 1.0}})
  assert operator.by == "human" and operator.wants() == Drive(away=1.0)
  operator.tell({"drive": {"away": 0.0}})
  assert operator.by == "human" and operator.wants() is None
  operator.tell({"by": "policy"})
  operator.tell({"drive": {}})
  assert operator.by == "policy"


def test_a_key_of_a_page_that_went_away_is_not_held(operator, clock):
  operator.tell({"drive": {"up": -1}})
  clock.now_s = DRIVE_S
  assert operator.wants() is None


def test_the_gripper_has_time_to_move_and_starts_where_it_is(operator, clock):
  operator.gripper_is(False)
  operator.tell({"gripper": "toggle"})
  assert operator.is_open and operator.by == "human" and operator.wants() == Drive()
  operator.gripper_is(False)  # of the policy's last tick, too late
  assert operator.is_open
  clock.now_s = GRIPPER_S
  assert operator.wants() is None


def test_buttons_wait_in_their_order_and_an_episode_forgets_them(operator):
  for name in ("undo", "next", *["again"] * 9):
    operator.tell({"press": name})
  assert operator.pressed and [operator.take() for _ in range(6)] == ["undo", "next", *["again"] * 3, ""]
  operator.tell({"press": "success", "by": "expert"})
  operator.begins()
  assert not operator.pressed and operator.by == "policy"


@pytest.mark.parametrize(("message", "words"), [
  ([], "a message is a map, got a list"), ({"fly": 1}, "unknown entry of a message 'fly'"),
  ({"drive": {"away": 2}}, "numbers from -1 to 1"), ({"drive": {"away": float("nan")}}, "numbers from -1 to 1"),
  ({"drive": {"jump": 1}}, "drive is a map of away"), ({"drive": {"up": "x"}}, "numbers from -1 to 1"),
  ({"by": "retry"}, "unknown actor"), ({"press": "all"}, f"unknown button 'all'.*{PRESSES[0]}"),
])
def test_other_messages_are_refused(operator, message, words):
  with pytest.raises(Pi0RagError, match=words):
    operator.tell(message)
  assert operator.by == "policy" and not operator.pressed


def test_where_there_is_no_expert_none_can_help():
  with pytest.raises(Pi0RagError, match="unknown actor"):
    Operator(expert=False).tell({"by": "expert"})
