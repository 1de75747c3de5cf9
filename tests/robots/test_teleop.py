"""Keys become actions of the robots that displace their tool."""

import numpy as np
import pytest

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import libero, metaworld, panda
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.teleop import Drive


def test_a_key_moves_the_tool_of_the_panda_as_it_is_seen():
  drive = Drive(away=1.0, right=-0.5, turn=1.0)
  found_A = panda.TELEOP.action(drive, is_open=True, space=panda.ACTIONS, tick_s=0.05)
  # 12 cm/s and 1 rad/s for 50 ms; the camera faces the robot, whose x comes towards it.
  np.testing.assert_allclose(found_A, [-0.006, -0.003, 0.0, 0.05, 1.0], rtol=1e-6)
  assert found_A.dtype == np.float32


@pytest.mark.parametrize(("module", "tick_s", "up"), [(panda, 0.05, 0.006), (metaworld, 0.0125, 0.15),
                                                      (libero, 0.05, 0.12)])
def test_up_and_the_gripper(module, tick_s, up):
  for is_open in (True, False):
    found_A = module.TELEOP.action(Drive(up=1.0), is_open=is_open, space=module.ACTIONS, tick_s=tick_s)
    assert found_A[2] == pytest.approx(up) and module.TELEOP.is_open(found_A) is is_open
    assert np.count_nonzero(found_A[:-1]) == 1


def test_actions_stay_within_the_limits():
  found_A = panda.TELEOP.action(Drive(right=1.0), is_open=False, space=panda.ACTIONS, tick_s=1.0)
  assert found_A[1] == np.float32(panda.ACTIONS.high[1]) and found_A[4] == 0.0


def test_nothing_moves_without_a_wish():
  assert not Drive().moves and Drive(turn=-0.1).moves


@pytest.mark.parametrize(("name", "driven"), [("panda", True), ("metaworld", True), ("libero", True), ("aloha", False),
                                              ("droid", False)])
def test_robots_that_are_not_driven_at_the_tool_say_so(name, driven):
  assert (make_robot(DataConfig(robot=name), "pi0").teleop is not None) is driven
