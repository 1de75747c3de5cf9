"""What a robot saw and did, as a LeRobot data set of version 3.0 that is whole after every episode.

Frames of the episode under way lie in `.under_way`, pictures as they are, so that a long one needs no memory and a
process that is killed loses none of them: the next one makes an episode of what is there. A frame is a tick at which
something was executed; `intervention` is 1 where somebody else than the policy acted, `by` is who: a place in ACTORS.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import shutil
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.data.lerobot_writer import IMAGES, VIDEO, LerobotWriter, WrittenEpisode
from pi0rag_jax.data.validation import ACTORS, POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.interventions import FLAG
from pi0rag_jax.learning.kept import NO_PROMPT, split
from pi0rag_jax.learning.taught import columns_of

BY, UNDER_WAY, KILLED = "by", ".under_way", "killed"
_HEAD, _NUMBERS, _END = "head.json", "numbers.f32", "end.json"
_WAITING = 256  # frames that wait for the disk, before the robot does

@dataclasses.dataclass(frozen=True)
class _Frame:
  observation: Mapping[str, Any]
  action_A: np.ndarray
  by: str


class Recording:
  """A data set that grows by episodes. Frames are written by a thread of its own."""

  def __init__(self, folder, *, fps: float, robot: str, exact: bool = False):
    """Opens or makes it; what a process that was killed had recorded of an episode becomes one.

    Args:
      exact: pictures as PNG, instead of videos.
    Errors: Pi0RagError for a data set of another robot or rate, and where a package is missing.
    """
    self._writer = LerobotWriter(folder, fps=fps, robot=robot, pictures=IMAGES if exact else VIDEO, append=True)
    self._place = self._writer.folder / UNDER_WAY
    self.columns: Mapping[str, Any] = {}  # the robot's keys by those of the data set, as a training's configuration
    self._files: dict[str, BinaryIO] = {}
    self._waiting: queue.Queue[_Frame | None] = queue.Queue(_WAITING)
    self._error: Exception | None = None
    if self._place.exists():
      self._finish(KILLED)
    self._thread = threading.Thread(target=self._write_all, name="recording", daemon=True)
    self._thread.start()

  def frame(self, observation: Mapping[str, Any], action_A: np.ndarray, by: str) -> None:
    """Keeps what was seen and what was executed from then on; nobody writes to either any more."""
    self._waiting.put(_Frame(observation, np.asarray(action_A, np.float32), by))

  def end(self, *, success: bool, failure: str, told: Mapping[str, str]) -> None:
    """Returns once the episode is on disk, if it has a frame.

    Args:
      failure: which kind, of one that was none.
      told: what else there is to say of it, columns of `meta/episodes`.
    Errors: Pi0RagError for frames that could not be kept.
    """
    self._waiting.join()
    self._raise()
    if not self._files:
      return
    files.write_json(self._place / _END, {"success": success, "told": {"failure": "" if success else failure, **told}})
    self._finish(failure)

  def discard(self) -> None:
    """Forgets the frames since the last episode."""
    self._waiting.join()
    self._close_files()
    shutil.rmtree(self._place, ignore_errors=True)

  def close(self) -> None:
    """Ends the thread; frames of an episode that did not end are one that was given up."""
    self._waiting.put(None)
    self._thread.join()
    if self._place.exists():
      self._finish(KILLED)

  def _raise(self) -> None:
    error, self._error = self._error, None
    if error is not None:
      raise Pi0RagError(f"frames could not be recorded: {error}") from error

  def _write_all(self) -> None:
    while True:
      frame = self._waiting.get()
      try:
        if frame is not None and self._error is None:
          self._write(frame)
      except (OSError, Pi0RagError, ValueError) as error:  # told at the end of the episode
        self._error = error
      finally:
        self._waiting.task_done()
      if frame is None:
        return

  def _write(self, frame: _Frame) -> None:
    columns, pictures, state_P, _ = split(frame.observation)
    if not self._files:
      self._open(columns, pictures, state_P, frame)
    if pictures.keys() | {_NUMBERS} != self._files.keys():
      raise Pi0RagError(f"a frame has the cameras {sorted(pictures)}, the ones before have others")
    for name, picture in pictures.items():
      self._files[name].write(np.ascontiguousarray(picture).data)
    numbers = np.concatenate([[ACTORS.index(frame.by)], state_P, frame.action_A]).astype(np.float32)
    self._files[_NUMBERS].write(numbers.data)  # the last: with it the frame is there

  def _open(self, columns: Mapping[str, Any], pictures: Mapping[str, np.ndarray], state_P: np.ndarray, frame: _Frame
            ) -> None:
    self._place.mkdir(parents=True, exist_ok=True)
    self.columns = {**columns_of(columns), "actions": "action"}
    files.write_json(self._place / _HEAD, {
      "cameras": {name: list(picture.shape) for name, picture in pictures.items()}, "state": len(state_P),
      "action": len(frame.action_A), "prompt": str(frame.observation.get("prompt", ""))})
    for number, name in enumerate(pictures):
      self._files[name] = open(self._place / f"{number}.rgb", "wb", buffering=0)  # noqa: SIM115 - until the end
    self._files[_NUMBERS] = open(self._place / _NUMBERS, "wb", buffering=0)  # noqa: SIM115

  def _close_files(self) -> None:
    for file in self._files.values():
      file.close()
    self._files = {}

  def _finish(self, why: str) -> None:
    """Makes an episode of what is under way; without an ending it is a failure for that reason."""
    self._close_files()
    with contextlib.suppress(FileNotFoundError):  # it was killed before the first frame
      episode = _read(self._place, why)
      if len(episode.state):
        self._writer.add(episode)
        self._writer.commit()
    shutil.rmtree(self._place)


def _read(place: pathlib.Path, why: str) -> WrittenEpisode:
  """Returns the episode of a folder, pictures as they lie on disk."""
  head = json.loads((place / _HEAD).read_text("utf8"))
  ending = {"success": False, "told": {"failure": why}}
  if (place / _END).exists():
    ending = json.loads((place / _END).read_text("utf8"))
  width = 1 + head["state"] + head["action"]
  frames = os.path.getsize(place / _NUMBERS) // (4 * width)
  numbers = np.fromfile(place / _NUMBERS, np.float32, frames * width).reshape(frames, width)
  images = {name: np.memmap(place / f"{number}.rgb", np.uint8, "r", shape=(frames, *shape)) if frames else np.empty(0)
            for number, (name, shape) in enumerate(head["cameras"].items())}
  by_F1 = numbers[:, :1]
  state, actions = numbers[:, 1 : 1 + head["state"]], numbers[:, 1 + head["state"] :]
  return WrittenEpisode(images, state, actions, head["prompt"].strip() or NO_PROMPT, ending["success"],
                        {FLAG: (by_F1 != ACTORS.index(POLICY)).astype(np.float32), BY: by_F1}, ending["told"])
