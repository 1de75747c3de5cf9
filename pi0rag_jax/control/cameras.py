"""Cameras of this machine, for arms whose drivers bring none: whatever FFmpeg reads, by PyAV (extra `data`)."""

import contextlib
import threading
from collections.abc import Callable, Mapping

import numpy as np

from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError


class Cameras:
  """Reads each camera on a thread of its own, as fast as it sends.

  Args:
    sources: name -> `FORMAT:ADDRESS`, such as `v4l2:/dev/video0`, or an address alone, such as `rtsp://camera/stream`.
    came: called with a camera's name and its picture uint8[H, W, 3].
    wrong: called with a camera's name and why it sends nothing any more.
  Errors: Pi0RagError for one that cannot be opened.
  """

  def __init__(self, sources: Mapping[str, str], came: Callable[[str, np.ndarray], object],
               wrong: Callable[[str, str], object]):
    self._over, self._threads = threading.Event(), []
    if not sources:
      return
    av = import_extra("av", "cameras of this machine")
    for name, source in sources.items():
      kind, colon, address = source.partition(":")
      given = {"format": kind, "file": address} if colon and not address.startswith("//") else {"file": source}
      try:
        opened = av.open(**given)
      except (av.error.FFmpegError, OSError, ValueError) as error:
        self.close()
        raise Pi0RagError(f"the camera '{name}' cannot be opened at '{source}': {error}") from error
      thread = threading.Thread(target=self._read, args=[name, opened, came, wrong], name=name, daemon=True)
      self._threads.append(thread)
      thread.start()

  def close(self) -> None:
    """Ends all."""
    self._over.set()
    for thread in self._threads:
      thread.join(1.0)

  def _read(self, name, opened, came, wrong) -> None:
    with contextlib.closing(opened):
      try:
        for frame in opened.decode(video=0):
          if self._over.is_set():
            return
          came(name, frame.to_ndarray(format="rgb24"))
      except OSError as error:  # FFmpeg's errors are
        wrong(name, f"camera '{name}': {error}")
        return
    wrong(name, f"camera '{name}' has ended")
