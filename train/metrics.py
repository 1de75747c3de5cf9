"""Where training's numbers go: TensorBoard, Weights & Biases if wanted, and a progress bar or plain lines."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from pi0rag_jax.typing import Config, Params
from train import utilization
from train.step import LossFn
from train.wandb_log import WandbRun

# A logger of its own: Orbax fills absl's with a page per checkpoint.
log = logging.getLogger("train")


class MetricWriter:
  """Writes scalars of a step; only the first process of a multi-host run writes."""

  def __init__(self, workdir: str | Path, config: Config, *, start: int = 0, console: Console | None = None):
    """Opens what is written to.

    Args:
      workdir: of the run; TensorBoard's files are in `tensorboard`.
      config: with `steps`, and `wandb_project` where there is one.
      start: the step that the run goes on from.
      console: where the progress bar is shown, if it is a terminal; the default is standard error.
    """
    self._tensorboard = self._wandb = self._bar = None
    if jax.process_index() != 0:
      return
    self._wandb = WandbRun(Path(workdir), config) if config.get("wandb_project", "") else None
    self._tensorboard = SummaryWriter(str(Path(workdir) / "tensorboard"))
    console = console or Console(stderr=True)
    self._bar = Bar(console, start=start, steps=config.steps) if console.is_terminal else None

  def advance(self, step: int) -> None:
    """Shows that a step is done, or at least under way on the device."""
    if self._bar is not None:
      self._bar.advance(step)

  def write(self, step: int, prefix: str, scalars: Mapping[str, float]) -> None:
    """Adds `prefix/name` for every scalar at `step` and logs them as one line."""
    if self._tensorboard is None:
      return
    named = {f"{prefix}/{name}": value for name, value in scalars.items()}
    for name, value in named.items():
      self._tensorboard.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.write(step, named)
    text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
    log.info("step %d  %s  %s", step, prefix, text)

  def close(self) -> None:
    """Ends the bar and writes what is left."""
    for part in (self._bar, self._tensorboard, self._wandb):
      if part is not None:
        part.close()


class Bar:
  """A progress bar in a terminal; while it is there, lines of `log` appear above it."""

  def __init__(self, console: Console, *, start: int, steps: int):
    self._progress = Progress(
      TextColumn("step"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[pace]}", style="dim"),
      TimeRemainingColumn(), console=console)
    self._task = self._progress.add_task("", total=steps, completed=start, pace="")
    self._start, self._start_s = start, time.monotonic()
    self._lines = _ConsoleLines(console)
    self._propagated, log.propagate = log.propagate, False
    log.addHandler(self._lines)
    self._progress.start()

  def advance(self, step: int) -> None:
    """Shows that so many steps are done."""
    pace = (step - self._start) / max(time.monotonic() - self._start_s, 1e-9)
    self._progress.update(self._task, completed=step, pace=f"{pace:.3g} steps/s")

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._progress.stop()
    log.removeHandler(self._lines)
    log.propagate = self._propagated


class _ConsoleLines(logging.Handler):
  """Prints records through the console, which knows of the bar."""

  def __init__(self, console: Console):
    super().__init__()
    self._console = console

  def emit(self, record: logging.LogRecord) -> None:
    self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class StepClock:
  """Measures how fast steps go between two readings, what they wait for, and the run's wall clock.

  The first reading includes the time of compiling.
  """

  def __init__(self, step: int, *, batch_size: int):
    self._start = self._last = time.monotonic()
    self._step = step
    self._batch_size = batch_size
    self._waited_s = self._paused_s = 0.0
    self._flops: float | None = None

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as waiting for data."""
    start = time.monotonic()
    yield
    self._waited_s += time.monotonic() - start

  @contextlib.contextmanager
  def paused(self, *, after: Any = None) -> Iterator[None]:
    """Leaves the time inside, as that of a validation, out of the rates; it begins once `after` is computed."""
    jax.block_until_ready(after)
    start = time.monotonic()
    yield
    self._paused_s += time.monotonic() - start

  def count_flops(self, loss_fn: LossFn, params: Params, frozen: Params, batch: Mapping) -> None:
    """Counts, the first time, the FLOPs of a step; see utilization.step_flops."""
    if self._flops is None:
      with self.paused():
        self._flops = utilization.step_flops(loss_fn, params, frozen, batch)

  def read(self, step: int) -> dict[str, float]:
    """Returns the rates since the last reading, and seconds since the start.

    `data_wait_share` is of the time; `tflops_per_device` and `mfu` are there once FLOPs are counted.
    """
    now = time.monotonic()
    elapsed_s = max(now - self._last - self._paused_s, 1e-9)
    steps_per_s = (step - self._step) / elapsed_s
    reading = {"steps_per_s": steps_per_s, "samples_per_s": steps_per_s * self._batch_size,
               "data_wait_share": self._waited_s / elapsed_s, "wall_clock_s": self.wall_clock_s}
    if self._flops is not None:
      reading |= utilization.readings(self._flops, steps_per_s)
    self._last, self._step, self._waited_s, self._paused_s = now, step, 0.0, 0.0
    return reading

  @property
  def wall_clock_s(self) -> float:
    """Seconds since this process began to train."""
    return time.monotonic() - self._start


def mean_of(entries: Sequence[Mapping]) -> dict[str, float]:
  """Returns the mean per name of metrics that stayed on the device until now."""
  fetched = jax.device_get(list(entries))
  return {name: float(np.mean([entry[name] for entry in fetched])) for name in fetched[0]}
