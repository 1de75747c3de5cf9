"""PandaEnv: a task on the simulated Panda as a gymnasium environment."""

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.sim.conditions import OBJECT_REGIONS, Condition, get_condition
from pi0rag_jax.sim.controller import MAX_STEP_M, MAX_TURN_RAD, PERIOD_S, Controller
from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.render import RENDERERS, Renderer, make_renderer
from pi0rag_jax.sim.scene import CAMERAS, build_model
from pi0rag_jax.sim.tasks import Layout, Task, get_task

ACTION_DIM = 5
STATE_DIM = 10
# Generous: nothing on the table is further than 2 m away.
_STATE_BOUND = np.array([2.0] * 3 + [1.0, 1.0, 0.1, 1.0] + [2.0] * 3, np.float32)
_PROMPT_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-_'")


class PandaEnv(gymnasium.Env):
  """One robot, one task, one condition; a step is one control tick of 50 ms.

  Action float32[5]: dx, dy, dz (m per tick, at most 0.015), dyaw (rad per tick, at most 0.075), gripper (>= 0.5
  commands open). Beyond the bounds it is clipped; NaN raises Pi0RagError.

  Observation: `image` (uint8[S, S, 3] for each camera), `state` float32[10] (believed tool x, y, z in m, sin yaw,
  cos yaw, gripper width in m, gripper command, commanded minus measured tool position in m), `prompt`.

  Episodes terminate on success and are truncated at the task's time limit or when the simulation cannot be
  trusted (`info["sim_error"]`).
  """

  metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / PERIOD_S)}

  def __init__(
    self,
    task: str | Task = "pick_and_place",
    condition: str | Condition = "nominal",
    renderer: str = "raycast",
    image_size: int = 64,
    render_images: bool = True,
  ):
    """Args: see the class; `render_images=False` leaves the pictures black and saves their time."""
    if renderer not in RENDERERS:
      raise unknown_name("renderer", renderer, RENDERERS)
    self.task = task if isinstance(task, Task) else get_task(task)
    self.renderer_name, self.image_size, self.render_images = renderer, image_size, render_images
    self.render_mode = "rgb_array"
    self._renderer: Renderer | None = None
    self._build(get_condition(condition))
    self._layout: Layout | None = None
    self.ticks, self.deadline = 0, 0  # at which time is out
    bound = np.array([MAX_STEP_M] * 3 + [MAX_TURN_RAD, 1.0], np.float32)
    self.action_space = spaces.Box(np.append(-bound[:4], 0.0).astype(np.float32), bound)
    picture = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    self.observation_space = spaces.Dict({
      "image": spaces.Dict({name: picture for name in CAMERAS}),
      "state": spaces.Box(-_STATE_BOUND, _STATE_BOUND),
      "prompt": spaces.Text(max_length=120, min_length=1, charset=_PROMPT_CHARACTERS),
    })

  def _build(self, condition: Condition) -> None:
    """Compiles the scene for `condition`."""
    self.close()
    self.condition = condition
    scene, workspace = self.task.scene, self.task.workspace
    may_fall = [body.name for body in scene.objects if body.may_fall]
    self.physics = Physics(build_model(scene, condition), hand_axes=workspace.hand_axes, may_fall=may_fall)
    self.controller = Controller(
      self.physics, condition.calibration, workspace, delay_ticks=condition.actuator_delay_ticks)

  @property
  def has_episode(self) -> bool:
    """Whether `reset` or `restore` has begun an episode."""
    return self._layout is not None

  @property
  def layout(self) -> Layout:
    """What the episode started from. Raises Pi0RagError before the first."""
    if self._layout is None:
      raise Pi0RagError("the environment has no episode: call reset() first")
    return self._layout

  def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
    """Starts an episode. Options: `condition` (name or Condition) and `object_region` replace the current ones."""
    self.begin(seed=seed, options=options)
    return self.observe(), self.info()

  def begin(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
    """Starts an episode as `reset` does, without looking at it."""
    super().reset(seed=seed)
    options = dict(options or {})
    condition = get_condition(options.pop("condition", self.condition))
    region = options.pop("object_region", condition.object_region)
    if options:
      raise unknown_name("reset option", next(iter(options)), ("condition", "object_region"))
    if region not in OBJECT_REGIONS:
      raise unknown_name("object region", region, OBJECT_REGIONS)
    if condition != self.condition:
      self._build(condition)
    self._layout = layout = self.task.sample(self.np_random, region)
    self.ticks, self.deadline = 0, self.task.time_limit
    self.physics.reset()
    self.task.apply(self.physics, layout)
    self.controller.reset(layout.tool_pose)
    self.physics.refresh()

  def step(self, action):
    """Advances one tick; returns (observation, reward, terminated, truncated, info)."""
    reward, terminated, truncated, info = self.advance(np.asarray(action)[None])
    return self.observe(), reward, terminated, truncated, info

  def advance(self, actions_TA) -> tuple[float, bool, bool, dict[str, Any]]:
    """Executes the actions float[T, 5] without pictures, stopping where the episode ends.

    Returns: (summed reward, terminated, truncated, the last tick's info).
    """
    success = over = False
    for action in self.checked(actions_TA).tolist():
      success, over, _ = self.tick(action)
      if over:
        break
    return float(success), success, over and not success, self.info()

  def tick(self, action: list[float]) -> tuple[bool, bool, str | None]:
    """Executes one checked action; returns (success, whether the episode is over, what is wrong with the simulation).
    """
    layout = self.layout
    self.controller.tick(action)
    self.ticks += 1
    fault = self.physics.fault()
    success = fault is None and self.task.succeeded(self.physics, layout)
    return success, success or fault is not None or self.ticks >= self.deadline, fault

  def checked(self, actions_TA) -> np.ndarray:
    """Returns the actions as float64[T, 5] or raises."""
    actions_TA = np.asarray(actions_TA, dtype=np.float64)
    if actions_TA.ndim != 2 or actions_TA.shape[1] != ACTION_DIM or not len(actions_TA):
      raise Pi0RagError(f"actions have shape {actions_TA.shape}, expected [T >= 1, {ACTION_DIM}]")
    if np.isnan(actions_TA).any():
      row = int(np.argwhere(np.isnan(actions_TA))[0, 0])
      raise Pi0RagError(f"action has NaN: {actions_TA[row].tolist()} at tick {row} of the chunk; mask or clip it")
    return actions_TA

  def observe(self) -> dict[str, Any]:
    """Returns the current observation with fresh pictures."""
    return {"image": self._pictures(), "state": self._state(), "prompt": self.layout.prompt}

  def _pictures(self) -> dict[str, np.ndarray]:
    if not self.render_images:
      return {name: np.zeros((self.image_size, self.image_size, 3), np.uint8) for name in CAMERAS}
    if self._renderer is None:
      self._renderer = make_renderer(self.renderer_name, self.physics.model, self.image_size)
    return self._renderer.render(self.physics.data)

  def _state(self) -> np.ndarray:
    position, yaw = self.controller.measured_pose()
    command = self.controller.state
    lag = np.subtract(command.pose[:3], position)
    numbers = [*position, np.sin(yaw), np.cos(yaw), self.physics.gripper_width(), command.gripper_open, *lag]
    return np.array(numbers, np.float32)

  def info(self) -> dict[str, Any]:
    """Returns success, the sensors that failure detectors read, the privileged state and `sim_error`."""
    fault = self.physics.fault()
    return {
      "success": fault is None and self.task.succeeded(self.physics, self.layout),
      "failure_signals": self.signals(),
      "privileged": self.task.privileged(self.physics, self.layout),
      "sim_error": fault,
    }

  def signals(self) -> dict[str, Any]:
    """Returns the sensors that failure detectors read."""
    contacts = self.physics.contacts()
    position, yaw = self.controller.measured_pose()
    return {
      "contact_force_arm_N": contacts.arm_N,
      "pad_forces_N": np.array([contacts.pad_left_N, contacts.pad_right_N]),
      "gripper_width_m": self.physics.gripper_width(),
      "gripper_command": float(self.controller.state.gripper_open),
      "tool_commanded": np.array(self.controller.state.pose),
      "tool_measured": np.array([*position, yaw]),
    }

  def snapshot(self) -> dict[str, Any]:
    """Returns everything `restore` needs to continue bit for bit from here; it pickles."""
    return {
      "condition": self.condition,
      "physics": self.physics.snapshot(),
      "controller": self.controller.state,
      "layout": self.layout,
      "ticks": self.ticks,
      "deadline": self.deadline,
      "rng": copy.deepcopy(self.np_random.bit_generator.state),
    }

  def restore(self, snapshot: dict[str, Any]) -> None:
    """Continues from a `snapshot`, also one of another environment with the same task."""
    if snapshot["condition"] != self.condition:
      self._build(snapshot["condition"])
    self._layout, self.ticks, self.deadline = (snapshot[name] for name in ("layout", "ticks", "deadline"))
    self.np_random.bit_generator.state = copy.deepcopy(snapshot["rng"])
    self.controller.state = snapshot["controller"]
    self.task.paint(self.physics, self.layout)
    self.physics.restore(snapshot["physics"])

  def render(self) -> np.ndarray:
    """Returns uint8[S, 2 S, 3]: both cameras side by side."""
    return np.concatenate(list(self._pictures().values()), axis=1)

  def close(self) -> None:
    """Frees the renderer."""
    if self._renderer is not None:
      self._renderer.close()
      self._renderer = None
