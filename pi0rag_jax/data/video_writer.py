"""Videos of recordings: AV1, as lerobot has it, or H.264."""

import contextlib
import fractions
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError

# AV1 and H.264 of FFmpeg; a key frame every second frame, as lerobot has it, so that any frame is near one.
_CODECS = {"libsvtav1": ("av1", {"crf": "30", "preset": "10", "g": "2"}), "libx264": ("h264", {"crf": "18", "g": "2"})}
_TASKS = pathlib.Path("/proc/self/task")  # this process's threads, on Linux


class Video:
  """A file of the frames of several episodes."""

  def __init__(self, path: pathlib.Path, fps: float):
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder tells at length what it is
    av = import_extra("av", "writing videos")
    path.parent.mkdir(parents=True, exist_ok=True)
    self.path = path
    self._av, self._container, self._fps, self._frames = av, av.open(str(path), "w"), fps, 0
    encoder, _ = codec()
    self._stream = self._container.add_stream(encoder, fractions.Fraction(fps).limit_denominator(1000),
                                              options=_CODECS[encoder][1])
    self._stream.pix_fmt = "yuv420p"

  def append(self, images: np.ndarray) -> tuple[float, float]:
    """Returns (begin, end) in s of these frames uint8[F, H, W, 3] in the file."""
    begin = self._frames
    if not begin:  # afterwards the encoder is open
      self._stream.height, self._stream.width = images.shape[1:3]
    for image in images:
      frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
      frame.pts = self._frames
      frame.time_base = 1 / fractions.Fraction(self._fps).limit_denominator(1000)
      with contextlib.nullcontext() if self._frames else ordinary_threads():
        self._container.mux(self._stream.encode(frame))
      self._frames += 1
    return begin / self._fps, self._frames / self._fps

  def close(self) -> None:
    self._container.mux(self._stream.encode(None))
    self._container.close()


def codec() -> tuple[str, str]:
  """Returns (encoder, codec) of videos: lerobot's AV1, or H.264 where FFmpeg was built without it."""
  av = import_extra("av", "writing videos")
  for encoder, (name, _) in _CODECS.items():
    if encoder in av.codecs_available:
      return encoder, name
  raise Pi0RagError(f"FFmpeg has none of the encoders {', '.join(_CODECS)}: keep pictures as images")


@contextlib.contextmanager
def ordinary_threads() -> Iterator[None]:
  """Takes back what a library inside the block does to priorities.

  SVT-AV1, where it runs as root, puts its threads and the one that calls it before everything else on the machine
  (SCHED_FIFO, 99), for good: beside a robot that starves its policy and its drivers while an episode is written.
  """
  before = _scheduled()
  try:
    yield
  finally:
    for thread, found in _scheduled().items():
      wanted = before.get(thread, (os.SCHED_OTHER, os.sched_param(0)))
      if found != wanted:
        with contextlib.suppress(ProcessLookupError):  # over by now
          os.sched_setscheduler(thread, *wanted)


def _scheduled() -> dict[int, tuple[int, Any]]:
  """Returns how each thread of this process is scheduled (policy, parameter); nothing where it is not Linux."""
  found: dict[int, tuple[int, Any]] = {}
  for entry in _TASKS.iterdir() if _TASKS.exists() else ():
    with contextlib.suppress(ProcessLookupError):
      found[int(entry.name)] = os.sched_getscheduler(int(entry.name)), os.sched_getparam(int(entry.name))
  return found
