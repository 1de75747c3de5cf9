"""Frames of a video file by their time, exactly, whatever the codec: B-frames, AV1, any distance of key frames."""

import collections
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import import_extra

# A wanted time may be this many frame distances away from a stored one.
TOLERANCE_FRAMES = 0.5
OPEN_FILES = 8
# Of each open file; episodes are decoded beside one another as well.
DECODER_THREADS = 2
# Which key frames before a frame are tried as entry points, nearest first, and then the start.
KEYS_BACK = (0, 1, 4)


class VideoFile:
  """One open video; a frame that follows the last one is decoded without seeking."""

  def __init__(self, path: str | Path):
    """Reads the times of all frames, without decoding.

    Raises:
      OSError, ValueError or av.FFmpegError: no such file, or no video in it.
    """
    self._av = import_extra("av", "reading videos")
    self.path = Path(path)
    self._container = self._av.open(str(path))
    if not self._container.streams.video:
      raise ValueError("no video stream")
    self._stream = self._container.streams.video[0]
    if self._stream.codec_context is None:
      raise ValueError("no decoder for its codec")
    self._stream.thread_type = "AUTO"
    self._stream.codec_context.thread_count = DECODER_THREADS
    # Without this, H.264 decoders paint over what is broken.
    self._stream.codec_context.options = {"err_detect": "explode"}
    packets = [p for p in self._container.demux(self._stream) if p.pts is not None and not p.is_discard]
    if not packets:
      raise ValueError("no frames")
    self.pts = np.sort(np.asarray([p.pts for p in packets], np.int64))
    self._key_rows = np.flatnonzero(np.isin(self.pts, [p.pts for p in packets if p.is_keyframe]))
    self._seconds = float(self._stream.time_base)
    self._decoded: Iterator[Any] | None = None
    self._last_row = -1

  def rows_at(self, times_s: np.ndarray, fps: float) -> np.ndarray:
    """Returns int[N], the numbers of the frames nearest to the times, in the order of display.

    Raises:
      ValueError: none is within half a frame.
    """
    stored = self.pts * self._seconds
    if stored[0] > TOLERANCE_FRAMES / fps:  # the first frame is time 0 in every data set
      stored = stored - stored[0]
    right = np.clip(np.searchsorted(stored, times_s), 1, max(len(stored) - 1, 1))
    right = np.minimum(right, len(stored) - 1)
    left = np.maximum(right - 1, 0)
    rows = np.where(np.abs(stored[left] - times_s) <= np.abs(stored[right] - times_s), left, right)
    apart = np.abs(stored[rows] - times_s)
    if (apart * fps > TOLERANCE_FRAMES + 1e-3).any():
      worst = int(apart.argmax())
      raise ValueError(f"no frame at {times_s[worst]:.3f} s: the video has {len(stored)} from {stored[0]:.3f} "
                       f"to {stored[-1]:.3f} s")
    return rows

  def frames(self, rows: np.ndarray) -> np.ndarray:
    """Returns uint8[N, H, W, 3], the frames of rising numbers.

    Raises:
      ValueError or av.FFmpegError: one of them cannot be decoded.
    """
    found = [self._frame(int(row)).to_ndarray(format="rgb24") for row in rows]
    return np.stack(found) if found else np.zeros((0, self._stream.height, self._stream.width, 3), np.uint8)

  def close(self) -> None:
    self._decoded = None
    self._container.close()

  def _frame(self, row: int) -> Any:
    """Returns the frame of that number."""
    place = max(int(np.searchsorted(self._key_rows, row, side="right")) - 1, 0)
    key_row = int(self._key_rows[place]) if len(self._key_rows) else 0
    if self._decoded is not None and self._last_row < row and key_row <= self._last_row + 1:
      frame = self._decode_to(row)
      if frame is not None:
        return frame
    # A key frame is not always an entry point: frames shown after it may need what comes before it.
    earlier = [int(self._key_rows[max(place - back, 0)]) for back in KEYS_BACK] if len(self._key_rows) else []
    error = None
    for start in dict.fromkeys([*earlier, 0]):
      try:
        self._seek(start)
        frame = self._decode_to(row)
      except self._av.FFmpegError as raised:
        error, frame = raised, None
      if frame is not None:
        return frame
    self._decoded = None
    raise ValueError(f"frame {row} at {self.pts[row] * self._seconds:.3f} s cannot be decoded: {error or 'not there'}")

  def _decode_to(self, row: int) -> Any:
    """Returns the frame of that number, None where decoding passes it or finds it damaged."""
    assert self._decoded is not None
    pts = int(self.pts[row])
    for frame in self._decoded:
      if frame.pts is not None and frame.pts >= pts:
        self._last_row = row
        return frame if frame.pts == pts and not frame.is_corrupt else None
    return None

  def _seek(self, row: int) -> None:
    self._container.seek(int(self.pts[row]), stream=self._stream, backward=True)
    self._decoded = iter(self._container.decode(self._stream))
    self._last_row = row - 1


class VideoReader:
  """Frames of many files, the last few of which stay open; every thread has its own."""

  def __init__(self, *, open_files: int = OPEN_FILES):
    self._open_files = open_files
    self._local = threading.local()

  def read(self, path: Path, times_s: np.ndarray, fps: float) -> np.ndarray:
    """Returns uint8[N, H, W, 3], the frames at rising times in s from the start of the file."""
    if not hasattr(self._local, "files"):
      self._local.files = collections.OrderedDict()
    files = self._local.files
    file = files.pop(path, None) or VideoFile(path)
    try:
      frames = file.frames(file.rows_at(times_s, fps))
    except BaseException:
      file.close()  # a decoder that failed is in no known state
      raise
    files[path] = file
    while len(files) > self._open_files:
      files.popitem(last=False)[1].close()
    return frames
