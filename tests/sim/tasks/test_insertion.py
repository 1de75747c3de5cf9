"""Tests of the task's layouts, of its peg and socket, and of its success rule."""

import math

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.tasks.insertion import PEG, SOCKET, Insertion, InsertionConfig

STAY_OPEN = np.array([0.0, 0.0, 0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def env() -> PandaEnv:
  return PandaEnv("insertion", render_images=False)


def _place(env: PandaEnv, offset, *, lean: float = 0.0, tool_z: float = 0.15) -> None:
  """Begins an episode with the target's tip at `offset` [3] from the socket's bottom and the tool above."""
  env.reset(seed=0)
  x, y = env.layout.socket
  tip = np.add((x, y, 0.0), offset)
  env.physics.place_object(PEG, tip, 0.0)
  start = env.physics.model.joint(PEG).qposadr[0]
  env.physics.data.qpos[start + 3 : start + 7] = [math.cos(lean / 2), math.sin(lean / 2), 0.0, 0.0]
  env.controller.reset((x, y, tool_z, 0.0))
  env.physics.refresh()


def _touches_socket(env: PandaEnv) -> bool:
  model = env.physics.model
  names = [{model.body(int(model.geom_bodyid[i])).name for i in pair} for pair in env.physics.data.contact.geom]
  return {PEG, SOCKET} in names


@pytest.mark.parametrize("distractors", [0, 1, 2])
def test_layouts_keep_everything_apart_and_in_the_area(distractors):
  task, rng = Insertion(InsertionConfig(distractors=distractors)), np.random.default_rng(0)
  for _ in range(50):
    layout = task.sample(rng)
    points = np.array([*layout.pegs, layout.socket])
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(points), 1)]
    assert len(points) == distractors + 2 and gaps.min() >= task.config.clearance
    assert np.all(points >= task.config.area_low) and np.all(points <= task.config.area_high)
    assert len(set(layout.peg_colours)) == distractors + 1
    assert layout.prompt == f"insert the {layout.peg_colours[0]} peg into the {layout.socket_colour} socket"


def test_only_the_target_obeys_the_region():
  task, rng = Insertion(), np.random.default_rng(0)
  for region, there in (("held_out", True), ("seen", False)):
    for _ in range(20):
      x, y = task.sample(rng, region).pegs[0]
      assert (y >= task.config.held_out_low[1]) == there and x >= task.config.held_out_low[0]


def test_all_colours_are_asked_for():
  task, rng = Insertion(), np.random.default_rng(0)
  layouts = [task.sample(rng) for _ in range(40)]
  assert {layout.peg_colours[0] for layout in layouts} == {"red", "green", "blue"}
  assert {layout.socket_colour for layout in layouts} == {"white", "yellow"}


def test_more_pegs_than_colours_are_refused():
  with pytest.raises(Pi0RagError, match="4 pegs need 4 colours, there are"):
    Insertion(InsertionConfig(distractors=3))


@pytest.mark.parametrize(
  ("offset", "lean", "tool_z", "success"),
  [
    ((0.0, 0.0, 0.0), 0.0, 0.15, True),
    ((0.001, -0.001, 0.013), 0.0, 0.15, True),
    ((0.0, 0.0, 0.016), 0.0, 0.15, False),
    ((0.06, 0.0, 0.0), 0.0, 0.15, False),
    ((0.0, 0.0, 0.0), 0.25, 0.15, False),
    ((0.0, 0.0, 0.0), 0.0, 0.10, False),
  ],
  ids=["at the bottom", "deep enough", "not deep enough", "beside the socket", "leaning", "not retreated"],
)
def test_success_needs_the_target_deep_and_upright_in_the_socket_and_the_tool_away(env, offset, lean, tool_z, success):
  _place(env, offset, lean=lean, tool_z=tool_z)
  assert env.task.succeeded(env.physics, env.layout) == success


def test_a_held_a_moving_or_another_peg_is_no_success(env):
  _place(env, (0.0, 0.0, 0.0))
  env.physics.data.qvel[env.physics.model.joint(PEG).dofadr[0]] = 0.2
  assert not env.task.succeeded(env.physics, env.layout)
  _place(env, (0.0, 0.0, 0.0), tool_z=0.072)
  env.advance(np.tile(STAY_OPEN * 0.0, (10, 1)))
  assert env.task.privileged(env.physics, env.layout)["grasped"]
  assert not env.task.succeeded(env.physics, env.layout)
  env.reset(seed=0)
  env.physics.place_object("peg_1", (*env.layout.socket, 0.0), 0.0)
  env.physics.refresh()
  assert not env.task.succeeded(env.physics, env.layout)


def test_the_hole_has_its_clearance_and_the_mouth_its_chamfer(env):
  clearance, chamfer, depth = env.task.config.hole_clearance, env.task.config.chamfer, env.task.config.hole_depth
  for direction in ((1, 0), (0, 1), (-1, 0), (0, -1)):
    for shift, height, touches in (
      (clearance - 0.0004, 0.0, False),
      (clearance + 0.0004, 0.0, True),
      (clearance + chamfer - 0.0004, depth, False),
    ):
      _place(env, (shift * direction[0], shift * direction[1], height))
      assert _touches_socket(env) == touches, (direction, shift)


def test_the_chamfer_leads_a_peg_in_that_is_let_go_beside_the_middle(env):
  for shift in (0.006, -0.008):
    _place(env, (shift, shift / 2, env.task.config.hole_depth), tool_z=0.2)
    _, success, _, _ = env.advance(np.tile(STAY_OPEN, (40, 1)))
    assert success, shift


@pytest.mark.parametrize("lean", [0.4, 1.0, 1.57, 2.8])
def test_a_fallen_peg_rights_itself(env, lean):
  _place(env, (0.0, 0.15, 0.1), lean=lean, tool_z=0.3)
  env.advance(np.tile(STAY_OPEN, (50, 1)))
  assert env.physics.object_axis(PEG)[2] > 0.995 and abs(env.physics.object_pose(PEG)[0][2]) < 0.001
