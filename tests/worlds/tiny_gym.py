"""A gymnasium environment of a few lines, as a package on PyPI would register one."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Reach(gymnasium.Env):
  """A point that is to reach another one; the state is both, the picture shows the point."""

  metadata = {"render_modes": ["rgb_array"]}

  def __init__(self, render_mode=None, broken: str = ""):
    self.render_mode, self._broken = render_mode, broken
    self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    self.observation_space = spaces.Dict({
      "pixels": spaces.Dict({"top": spaces.Box(0, 255, (8, 8, 3), np.uint8)}),
      "agent_pos": spaces.Box(-9.0, 9.0, (6,), np.float64)})

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._place, self._goal = np.zeros(3), self.np_random.uniform(-0.5, 0.5, 3)
    return self._seen(), {}

  def step(self, action):
    self._place = self._place + 0.1 * action
    if self._broken == "nan":
      self._place[0] = np.nan
    if self._broken == "raises":
      raise RuntimeError("the simulation diverged")
    near = bool(np.abs(self._place - self._goal).max() < 0.1)
    return self._seen(), float(near), near, False, {"is_success": near}

  def render(self):
    return self._seen()["pixels"]["top"]

  def _seen(self):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[0, 0] = 255
    return {"pixels": {"top": picture}, "agent_pos": np.concatenate([self._place, self._goal])}


class TwoCameras(Reach):
  """The same for a robot of five actions, ten numbers of state and two cameras of 64 px."""

  def __init__(self, render_mode=None):
    super().__init__(render_mode)
    self.action_space = spaces.Box(-1.0, 1.0, (5,), np.float32)

  def step(self, action):
    return super().step(10 * action[:3])

  def _seen(self):
    seen = super()._seen()
    picture = np.zeros((64, 64, 3), np.uint8)
    return {"pixels": {"base_0_rgb": picture, "left_wrist_0_rgb": picture},
            "agent_pos": np.concatenate([seen["agent_pos"], np.zeros(4)]).astype(np.float32)}


gymnasium.register("tiny_gym/TwoCameras-v0", entry_point=TwoCameras, max_episode_steps=12)
gymnasium.register("tiny_gym/Reach-v0", entry_point=Reach, max_episode_steps=20)
