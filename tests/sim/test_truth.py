"""What really happens: the truth of a grasp, of a press and of free motion, from contacts alone."""

import numpy as np
import pytest

from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import get_expert
from pi0rag_jax.sim.tasks.pick_and_place import TARGET
from pi0rag_jax.sim.truth import Witness


@pytest.fixture(scope="module")
def env():
  env = PandaEnv("pick_and_place", render_images=False)
  yield env
  env.close()


def test_a_grasp_is_held_with_its_weight_and_no_push(env):
  env.reset(seed=3)
  witness, truths = Witness(env.physics), []
  while not (truths and truths[-1].held and truths[-1].heights_m[TARGET] > 0.08):
    env.advance(get_expert("pick_and_place").plan(env, 1))
    truths.append(witness.look())
  assert truths[0].held == "" and truths[0].push_N == truths[0].arm_N == 0.0
  assert truths[-1].held == TARGET and truths[-1].arm_N == 0.0
  assert truths[-1].push_N == pytest.approx(0.1 * 9.81, rel=0.3)  # of a cube of 100 g, while it moves


def test_closed_fingers_on_a_cube_push_and_hold_nothing(env):
  env.reset(seed=3)
  (x, y, _), _ = env.physics.fingertip_pose()
  env.physics.place_object(TARGET, (x, y, 0.025), 0.0)
  env.physics.refresh()
  witness, truths = Witness(env.physics), []
  for _ in range(25):
    env.advance(np.array([[0.0, 0.0, -0.015, 0.0, 0.0]]))
    truths.append(witness.look())
  assert max(truth.push_N for truth in truths) > 50.0 and not any(truth.held for truth in truths)
