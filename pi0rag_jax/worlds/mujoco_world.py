"""What worlds on other people's MuJoCo models have in common: late actions, clock, snapshots, plans and pictures."""

from typing import Any, ClassVar

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import images
from pi0rag_jax.worlds.mujoco_model import Delay, Pictures, Shift, fault, get_state, set_state
from pi0rag_jax.worlds.world import Progress, WorldConfig


class MujocoWorld:
  """A world of a family, which fills in how an episode starts, what a tick does and what its expert would do.

  What follows from the physics' state and `_notes` is all that a family may remember of an episode.
  """

  dim: ClassVar[int]  # A
  cameras: ClassVar[tuple[str, ...]]  # of the model; the first films
  native_px: ClassVar[tuple[int, int] | None] = None  # height and width of pictures that are not square

  def __init__(self, config: WorldConfig, shift: Shift, time_limit: int):
    self._config, self._shift, self._time_limit = config, shift, time_limit
    self._delay = Delay(shift.delay_ticks)
    self._pictures: Pictures | None = None
    self._ticks, self._deadline, self._success = 0, time_limit, False

  @property
  def model(self) -> mujoco.MjModel:
    """The model, already shifted."""
    raise NotImplementedError

  @property
  def data(self) -> mujoco.MjData:
    """Its state."""
    raise NotImplementedError

  def _reset(self, seed: int) -> np.ndarray:
    """Starts the episode of a seed; returns the action float[A] that leaves the robot as it is."""
    raise NotImplementedError

  def _tick(self, action_A: np.ndarray) -> bool:
    """Moves on by one tick; returns whether the task is done now."""
    raise NotImplementedError

  def _partial(self) -> bool | None:
    """Returns whether the task was partly done in this episode, where a family tells."""
    return None

  def _stages(self) -> int | None:
    """Returns how many of the tasks that an episode consists of are done, where it has several."""
    return None

  def _interrupts(self) -> bool:
    """Returns whether the robot is told something else since the last tick, so that the rest of its chunk is void."""
    return False

  def _act(self) -> np.ndarray:
    """Returns what the expert would send now, float[A]."""
    raise NotImplementedError

  def _observation(self, pictures: list[np.ndarray]) -> dict[str, Any]:
    """Returns the robot's observation with the pictures of `cameras`."""
    raise NotImplementedError

  def _notes(self) -> dict[str, Any]:
    """Returns what the episode's future depends on beside the physics' state."""
    return {}

  def _set_notes(self, notes: dict[str, Any]) -> None:
    """Takes up `_notes`, before the physics' state is restored."""

  def begin(self, seed: int) -> None:
    """Starts the episode of a seed."""
    self._delay.begin(self._reset(seed))
    self._ticks, self._deadline, self._success = 0, self._time_limit, False

  def advance(self, actions_NA: np.ndarray) -> Progress:
    """Executes actions float[N, A], one a tick."""
    actions_NA = np.asarray(actions_NA, np.float32)
    if actions_NA.ndim != 2 or actions_NA.shape[1] != self.dim or not len(actions_NA):
      raise Pi0RagError(f"actions have shape {actions_NA.shape}, allowed: (N >= 1, {self.dim})")
    if not np.isfinite(actions_NA).all():
      raise Pi0RagError(f"actions have NaN or infinity: {actions_NA.tolist()}; mask or clip them")
    error = ""
    for action_A in actions_NA:
      self._success = self._tick(self._delay(action_A))
      self._ticks += 1
      error = fault(self.data)
      if error or self._success or self._ticks >= self._deadline or self._interrupts():
        break
    success = self._success and not error
    return Progress(self._ticks, success, bool(error) or success or self._ticks >= self._deadline, error=error,
                    partial=self._partial(), stages=self._stages())

  def observe(self) -> dict[str, Any]:
    """Returns the observation with fresh pictures."""
    return self._observation(self._take(self.cameras, self._config.image_size))

  def film(self, size: int) -> np.ndarray:
    """Returns the first camera's picture uint8[size, size, 3]."""
    return self._take(self.cameras[:1], size)[0]

  def snapshot(self) -> dict[str, Any]:
    """Returns what `restore` needs."""
    return {"physics": get_state(self.model, self.data), "notes": self._notes(), "waiting": self._delay.snapshot(),
            "ticks": self._ticks, "deadline": self._deadline, "success": self._success}

  def restore(self, snapshot: dict[str, Any], *, fresh_clock: bool = False) -> None:
    """Continues from there."""
    self._set_notes(snapshot["notes"])
    set_state(self.model, self.data, snapshot["physics"])
    self._delay.restore(snapshot["waiting"])
    self._ticks, self._deadline = (0, self._time_limit) if fresh_clock else (snapshot["ticks"], snapshot["deadline"])
    self._success = snapshot["success"]

  def act(self) -> np.ndarray:
    """Returns what the expert would send now, float[A]: the first action of `plan` where none is under way."""
    return self._act()

  def state(self) -> np.ndarray:
    """Returns float32[P], the robot's state as `observe` has it; nothing is drawn."""
    return self._observation([])["state"]

  def plan(self, horizon: int) -> np.ndarray:
    """Returns what the expert would execute from here on, float32[horizon, A]: it is tried out and undone.

    Where actions arrive late, the expert sees the moment in which they arrive: what is under way comes first.
    """
    before, actions_TA = self.snapshot(), np.empty((horizon, self.dim), np.float32)
    for waiting_A in before["waiting"]:
      self._tick(waiting_A)
    for tick, action_A in enumerate(actions_TA):
      action_A[:] = self._act()
      if tick + 1 < horizon:
        self._tick(action_A.copy())
    self.restore(before)
    return actions_TA

  def more_time(self) -> None:
    """Has the whole time limit ahead again."""
    self._deadline = self._ticks + self._time_limit

  def close(self) -> None:
    """Frees the renderers."""
    if self._pictures is not None:
      self._pictures.close()

  def _take(self, cameras: tuple[str, ...], size: int) -> list[np.ndarray]:
    pictures = self._looks().take(self.data, cameras, self.native_px or size)
    return [images.resize_with_pad(picture, size, size) for picture in pictures]

  def _looks(self) -> Pictures:
    if self._pictures is None:
      self._pictures = Pictures(self.model)
    return self._pictures
