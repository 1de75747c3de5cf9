"""MetaWorld's experts, who take over from a policy that has closed the fingers."""

import numpy as np
import pytest

from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import WorldConfig

metaworld = pytest.importorskip("pi0rag_jax.worlds.metaworld")


def seen(opening, above_m):
  return np.array([0.0, 0.6, 0.02 + above_m, opening, 0.0, 0.6, 0.02])


@pytest.mark.parametrize(("opening", "above_m", "action", "wanted"), [
  (1.0, 0.2, (0.5, 0, -1, 0), (0.5, 0, -1, 0)),  # open: as it wants
  (0.3, 0.2, (0.5, 0, -1, 0), (0.5, 0, 0, -1)),  # not down before they are open
  (0.3, 0.06, (0.1, 0, -0.4, 0.6), (0, 0, 1, -1)),  # closed over the thing
  (0.7, 0.06, (0.1, 0, -0.4, 0.6), (0.1, 0, -0.4, 0.6)),  # closing on its way down, as ever
  (0.1, 0.01, (0.1, 0.2, 0, 0.6), (0.1, 0.2, 0, 0.6))])  # the thing is between them
def test_fingers_are_opened_first(opening, above_m, action, wanted):
  np.testing.assert_array_equal(metaworld.opened_first(np.array(action), seen(opening, above_m)), wanted)


def test_an_expert_that_grasps_succeeds_after_somebody_else():
  pytest.importorskip("metaworld")
  world = registry.make_world(WorldConfig("push-v3", "nominal", "metaworld"))
  world.begin(3)
  world.advance(np.tile(np.float32([0.3, -0.3, -0.5, 1.0]), (40, 1)))
  done = success = False
  while not done:
    progress = world.advance(world.plan(16)[:8])
    done, success = progress.done, progress.success
  world.close()
  assert success
