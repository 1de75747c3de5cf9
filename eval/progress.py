"""Progress of the stages of a sweep: live bars in a terminal, an occasional plain line in a log file."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 30.0  # Between two lines of one stage where there is no terminal.


@dataclass
class Stage:
  """One named part of the sweep; `advance` is all that its worker calls."""

  name: str
  total: int
  done: int
  started_s: float
  _on_advance: Callable[["Stage", str], None] = field(repr=False)
  task: TaskID | None = None  # Its bar, in a terminal.
  printed_s: float = 0.0
  skipped: int = field(init=False)  # Done before this run; they count for nothing in the rate.

  def __post_init__(self):
    self.skipped = self.done
    self.printed_s = self.started_s

  def advance(self, count: int = 1, *, note: str = "") -> None:
    """Counts `count` more episodes; `note` (say, the success rate so far) is shown beside the numbers."""
    self.done += count
    self._on_advance(self, note)

  def rate(self, now_s: float) -> float | None:
    """Returns episodes per second of this run, None before the first."""
    elapsed_s = now_s - self.started_s
    ran = self.done - self.skipped
    return ran / elapsed_s if ran and elapsed_s > 0 else None


class SweepProgress:
  """Context manager over all stages.

  Args:
    console: where to write; the default is standard output. Bars are drawn only if it is a terminal.
    clock: seconds, monotonic.
    interval_s: least time between two plain lines of a stage.
  """

  def __init__(
    self,
    console: Console | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    interval_s: float = PLAIN_INTERVAL_S,
  ):
    self._console = console or Console()
    self._clock = clock
    self._interval_s = interval_s
    self._bars = _bars(self._console) if self._console.is_terminal else None

  def __enter__(self) -> "SweepProgress":
    if self._bars:
      self._bars.start()
    return self

  def __exit__(self, *_):
    if self._bars:
      self._bars.stop()

  def stage(self, name: str, total: int, *, done: int = 0) -> Stage:
    """Returns a new stage of `total` episodes, `done` of which an earlier run has already recorded."""
    stage = Stage(name, total, done, self._clock(), self._show)
    if self._bars:
      stage.task = self._bars.add_task(escape(name), total=total, completed=done, pace="", note="")
    else:
      self.log(f"{name}: {total - done} of {total} episodes to run")
    return stage

  def log(self, text: str) -> None:
    """Prints a line of text, above the bars if there are any."""
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _show(self, stage: Stage, note: str) -> None:
    now_s = self._clock()
    if self._bars and stage.task is not None:
      pace = format_pace(stage.rate(now_s))
      self._bars.update(stage.task, completed=stage.done, pace=pace, note=escape(note))
    elif stage.done >= stage.total or now_s - stage.printed_s >= self._interval_s:
      stage.printed_s = now_s
      self.log(plain_line(stage, now_s, note))


def plain_line(stage: Stage, now_s: float, note: str = "") -> str:
  """Returns 'eval memory: 120/300 (40 %), 2.1 episodes/s, 0:01:26 left, 91 % succeeded'."""
  share = 100 * stage.done / stage.total if stage.total else 100
  parts = [f"{stage.name}: {stage.done}/{stage.total} ({share:.0f} %)"]
  rate = stage.rate(now_s)
  if rate:
    parts.append(format_pace(rate))
    left_s = max(stage.total - stage.done, 0) / rate
    parts.append(f"{datetime.timedelta(seconds=round(left_s))} left" if left_s else "done")
  return ", ".join([*parts, note] if note else parts)


def format_pace(rate: float | None) -> str:
  """Returns episodes per second, or seconds per episode where that reads better."""
  if not rate:
    return ""
  return f"{rate:.1f} episodes/s" if rate >= 1 else f"{1 / rate:.1f} s/episode"


def _bars(console: Console) -> Progress:
  return Progress(
    TextColumn("{task.description}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TextColumn("{task.fields[pace]}", style="dim"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}", style="dim"),
    console=console,
  )
