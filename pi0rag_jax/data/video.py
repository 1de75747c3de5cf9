"""Frames of a video file by their time, exactly, whatever the codec: B-frames, AV1, any distance of key frames."""

import collections
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.data import pictures
from pi0rag_jax.data.dataset import import_extra

# A wanted time may be this many frame distances away from a stored one.
TOLERANCE_FRAMES = 0.5
OPEN_FILES = 8
# Of each open file; episodes are decoded beside one another as well.
DECODER_THREADS = 2
# Which key frames before a frame are tried as entry points, nearest first, and then the start.
KEYS_BACK = (0, 1, 4)
# Pixel formats of depth: one channel of more than 8 bits.
DEEP_FORMATS = ("gray9", "gray1", "gray3", "grayf", "ya16")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stretch:
  """Where an episode lies in a video, and what the file's other episodes tell about it."""

  file: Path
  start_s: float  # as announced
  end_s: float = math.inf  # as announced; inf: not said
  before: int = 0  # frames of the episodes before it in the file
  total: int = -1  # frames of all the file's episodes; -1: not known
  earlier: tuple[float, int] = (-math.inf, 0)  # the announced start and the frames of the episode before it
  later_s: float = math.inf  # the announced start of the episode after it
  last: tuple[float, int, float] = (math.inf, 0, math.inf)  # the file's last: announced start, frames, announced end


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
    context = self._stream.codec_context
    if context is None:
      raise ValueError("no decoder for its codec")
    pictures.check_size(context.height, context.width)
    if (context.pix_fmt or "").startswith(DEEP_FORMATS):
      raise pictures.NotRgbError(f"its pixels are {context.pix_fmt}, no 8-bit grey or colour")
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
    self._last_row, self._warned = -1, False

  def rows_of(self, stretch: Stretch, times_s_F: np.ndarray, indices: np.ndarray, fps: float) -> np.ndarray:
    """Returns int[N], the numbers of an episode's frames, in the order of display.

    The rows' own times decide. Where the video has exactly as many frames as its episodes have rows, counting tells
    as well which frame belongs to which row, and the times must agree with it; an announced start may be wrong then.

    Args:
      stretch: of the episode.
      times_s_F: of all its rows.
      indices: int[N], of rows.
      fps: nominal; half of one frame is the tolerance.
    Raises:
      ValueError: times, counts and announced starts contradict one another, or there is no frame at a time.
    """
    stored_s, tolerance_s = self.times_s(fps), (TOLERANCE_FRAMES + 1e-3) / fps
    announced_s = stretch.start_s + float(times_s_F[0])
    if stretch.total != len(stored_s):
      if problem := self._uncounted(stretch, announced_s, times_s_F, fps):
        raise ValueError(problem)
      return self.rows_at(stretch.start_s + times_s_F[indices], fps)
    start_s = float(stored_s[stretch.before])
    if abs(start_s - announced_s) > tolerance_s:
      if np.diff(stored_s).max(initial=0.0) > 1.5 * np.median(np.diff(stored_s)):
        raise ValueError(f"timestamps say that the episode starts at {announced_s:.3f} s, the lengths of the "
                         f"file's episodes say {start_s:.3f} s, and frames are missing: neither can be trusted")
      self._warn(f"timestamps say that the episode starts at {announced_s:.3f} s, the lengths of the file's "
                 f"episodes say {start_s:.3f} s: as the video has a frame for every row, the lengths are followed")
    rows = stretch.before + indices
    apart_s = np.abs(stored_s[rows] - (start_s - float(times_s_F[0]) + times_s_F[indices]))
    if (apart_s > tolerance_s).any():
      worst = int(apart_s.argmax())
      raise ValueError(f"row {indices[worst]} and its frame are {apart_s[worst]:.3f} s apart by their times, more than "
                       f"half a frame: the rate of the video or the timestamps are wrong (the video has "
                       f"{len(stored_s)} frames, one for every row)")
    return rows

  def _uncounted(self, stretch: Stretch, announced_s: float, times_s_F: np.ndarray, fps: float) -> str:
    """Returns why times cannot be trusted where the video has not as many frames as its episodes have rows, or ''.

    A frame that was lost with its time leaves a gap, and the others their times. Without a gap those after it moved up:
    then starts must say that they know, or nothing tells whose frames they are.
    """
    stored_s, tolerance_s = self.times_s(fps), (TOLERANCE_FRAMES + 1e-3) / fps
    rows, ends_s = len(times_s_F), float(stored_s[-1]) + 1 / fps
    # Counted from the end, where the file's other episodes lost frames before this one.
    counted = len(stored_s) - (stretch.total - stretch.before)
    confirmed = 0 <= counted < len(stored_s) and abs(stored_s[counted] - announced_s) <= tolerance_s
    before_s, before = stretch.earlier
    overlaps = before_s + before / fps > announced_s + tolerance_s and not confirmed
    if overlaps or announced_s + float(times_s_F[-1] - times_s_F[0]) + 1 / fps > stretch.later_s + tolerance_s:
      return (f"from_timestamp {stretch.start_s:.3f} s lets episodes overlap, and the video has {len(stored_s)} frames "
              f"for {stretch.total} rows: nothing tells whose frames they are")
    last_s, last_rows, last_end_s = stretch.last
    if (len(stored_s) < stretch.total and self._missing(last_s, math.inf, last_rows, fps) > 0
        and not abs(last_end_s - ends_s) <= tolerance_s):
      return (f"the video has {len(stored_s)} frames for the {stretch.total} rows of its episodes, and no gap tells "
              "which are missing")
    if self._missing(announced_s, stretch.later_s, rows, fps) > 0:
      return f"the video has fewer frames than the episode's {rows} rows, and no gap tells which are missing"
    return ""

  def _missing(self, start_s: float, later_s: float, rows: int, fps: float) -> int:
    """Returns how many frames from one time to another are fewer than so many rows, those aside that left a gap."""
    stored_s, tolerance_s = self.times_s(fps), TOLERANCE_FRAMES / fps
    first, stop = np.searchsorted(stored_s, [start_s - tolerance_s, later_s - tolerance_s])
    steps_s = np.diff(stored_s[max(first - 1, 0) : stop + 1])
    gaps = int((np.rint(steps_s * fps) - 1).clip(min=0).sum())
    return rows - int(stop - first) - gaps

  def times_s(self, fps: float) -> np.ndarray:
    """Returns float64[M], when every frame is shown; the first frame is time 0 in every data set."""
    stored_s = self.pts * self._seconds
    return stored_s - stored_s[0] if stored_s[0] > TOLERANCE_FRAMES / fps else stored_s

  def rows_at(self, times_s: np.ndarray, fps: float) -> np.ndarray:
    """Returns int[N], the numbers of the frames nearest to the times, in the order of display.

    Raises:
      ValueError: none is within half a frame.
    """
    stored = self.times_s(fps)
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

  def _warn(self, text: str) -> None:
    """Says something about the file once."""
    if not self._warned:
      self._warned = True
      _log.warning("video '%s': %s", self.path, text)

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

  def read(self, path: Path, rows: Callable[[VideoFile], np.ndarray]) -> np.ndarray:
    """Returns uint8[N, H, W, 3], the frames whose rising numbers `rows` tells."""
    if not hasattr(self._local, "files"):
      self._local.files = collections.OrderedDict()
    files = self._local.files
    file = files.pop(path, None) or self._opened(path)
    try:
      frames = file.frames(rows(file))
    except BaseException:
      file.close()  # a decoder that failed is in no known state
      raise
    files[path] = file
    while len(files) > self._open_files:
      files.popitem(last=False)[1].close()
    return frames

  @staticmethod
  def _opened(path: Path) -> VideoFile:
    try:
      return VideoFile(path)
    except pictures.NotRgbError:
      raise
    except Exception as error:
      raise ValueError(lfs.reason(path, error)) from error
