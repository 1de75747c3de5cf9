"""The mobile manipulator: what experts do, what counts as success, where roads lead. The contract has the rest."""

import numpy as np
import pytest

from pi0rag_jax.data import mobile_vla
from pi0rag_jax.sim.mobile import driving, flat, scene, tasks
from pi0rag_jax.sim.mobile.conditions import CONDITIONS
from pi0rag_jax.sim.mobile.physics import Physics
from pi0rag_jax.sim.mobile.tasks import TASKS, Errand
from pi0rag_jax.sim.mobile.world import FAMILY, MobileWorld
from pi0rag_jax.sim.outlines import Boxes
from pi0rag_jax.worlds.world import WorldConfig

SEEDS = (390_001, 390_002)


def config(task, **changes):
  return WorldConfig(task, world="mobile", image_size=16, **changes)


@pytest.fixture(scope="module")
def physics():
  made = Physics(scene.build_model())
  made.reset()
  made.settle()
  return made


def test_ten_tasks_of_the_three_kinds():
  assert len(FAMILY.tasks) == 10
  assert set(FAMILY.categories.values()) == set(mobile_vla.SHARES) == set(FAMILY.shares)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_from_any_moment(task):
  world, other = MobileWorld(config(task)), MobileWorld(config(task))
  for seed in SEEDS:
    world.begin(seed)
    world.advance(world.plan(1))
    other.restore(world.snapshot())
    done = False
    while not done:
      progress = other.advance(other.plan(1))
      done = progress.done
    assert progress.success


def test_a_way_leads_through_the_doors_of_the_ring():
  kitchen_2, bedroom_2 = np.array([-1.5, 1.5]), np.array([1.5, -1.5])
  assert flat.next_room("kitchen", "bedroom") == "living room"
  assert flat.next_room("kitchen", "bathroom") == "bathroom"
  np.testing.assert_allclose(driving.waypoint(kitchen_2, bedroom_2), [0.75, 1.5])  # straight through the door
  np.testing.assert_allclose(driving.waypoint(np.array([-1.5, 0.9]), bedroom_2), [-0.75, 1.5])  # first before it
  np.testing.assert_allclose(driving.waypoint(np.array([0.1, 1.6]), bedroom_2), [0.75, 1.5])  # out of the doorway
  np.testing.assert_allclose(driving.waypoint(kitchen_2, np.array([-1.0, 1.0])), [-1.0, 1.0])


def test_success_is_of_the_state_alone(physics):
  table, mug = flat.TABLES["bedroom"], flat.THINGS["mug"]
  put = Errand(tasks.PUT, "put the mug on the bedroom table", "mug", table.name, "bedroom")
  assert not tasks.succeeded(put, physics)
  physics.place(mug, physics.on(table, mug, aside=flat.TRAY_RADIUS_M - 0.01))
  physics.settle()
  assert tasks.succeeded(put, physics)
  physics.place(mug, physics.on(table, mug, aside=flat.TRAY_RADIUS_M + 0.01))
  physics.settle()
  assert not tasks.succeeded(put, physics)
  go = Errand(tasks.GO, "go to the bathroom", room="bathroom")
  for x, wanted in ((-0.5, False), (-0.7, True), (0.7, False)):
    physics.place_robot(np.array([x, -1.5]), 0.0)
    assert tasks.succeeded(go, physics) is wanted
  for out_m, opened, closed in ((0.25, True, False), (0.01, False, True)):
    physics.set_drawer(out_m)
    physics.settle()
    assert tasks.succeeded(Errand(tasks.OPEN, ""), physics) is opened
    assert tasks.succeeded(Errand(tasks.CLOSE, ""), physics) is closed
  physics.reset()
  physics.settle()


def test_nothing_holds_what_no_finger_touches(physics):
  assert not any(physics.holds(name) or physics.touches(name) for name in (*flat.THINGS, "handle"))
  world = MobileWorld(config("place"))
  world.begin(SEEDS[0])
  world.advance(world.plan(3))
  held = world.snapshot()["notes"]["thing"]
  assert world._physics.holds(held) and world._physics.touches(held)
  for _ in range(10):  # opened in the air, it falls
    world.advance(np.array([[0.0, 0.0, tasks.CARRY_LIFT_M, 0.0, 1.0]]))
  assert not world._physics.touches(held)
  assert world._physics.thing(held)[2] < 0.5


def test_conditions_change_what_they_say():
  moved, tables = Physics(scene.build_model(0.06)), list(flat.TABLES.values())
  at_home = Physics(scene.build_model())
  for table in tables:
    shift_2 = moved.spot(table) - at_home.spot(table)
    np.testing.assert_allclose(shift_2, -0.06 * table.inward, atol=1e-9)
  driven = {}
  for condition in ("nominal", "slippery_wheels"):
    world = MobileWorld(config("go_to_room", condition=condition))
    world.begin(SEEDS[0])
    before_2, yaw = world._physics.base, world._physics.yaw
    world.advance(np.array([[0.5, 0.0, 0.6, 0.0, 1.0]] * 4))
    driven[condition] = np.linalg.norm(world._physics.base - before_2), world._physics.yaw - yaw
  assert driven["slippery_wheels"][0] / driven["nominal"][0] == pytest.approx(CONDITIONS["slippery_wheels"].wheels,
                                                                             abs=0.03)
  assert driven["slippery_wheels"][1] > driven["nominal"][1] + 0.01
  dark = MobileWorld(config("go_to_room", condition="night"))
  dark.begin(SEEDS[0])
  world = MobileWorld(config("go_to_room"))
  world.begin(SEEDS[0])
  assert dark.observe()["image"]["base_0_rgb"].mean() < 0.7 * world.observe()["image"]["base_0_rgb"].mean()


def test_a_camera_that_hangs_still_sees_what_moves(monkeypatch):
  """Its picture is that of a ray for every pixel."""
  world = MobileWorld(config("pick_up"))
  for seed in SEEDS:
    world.begin(seed)
    world.advance(world.plan(12))
    camera = scene.CEILING_CAMERAS[world._physics.room]
    spared = world._look(64, (camera,))[0]
    with monkeypatch.context() as everywhere:
      everywhere.setattr(Boxes, "mark", lambda self, seen, *_: seen.fill(True))
      np.testing.assert_array_equal(world._look(64, (camera,))[0], spared)
      everywhere.setattr(Boxes, "mark", lambda *_: None)
      assert (world._look(64, (camera,))[0] != spared).any()  # the robot is missing
