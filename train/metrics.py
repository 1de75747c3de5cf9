"""Where training's numbers go: a TensorBoard file and one console line per entry."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

# A logger of its own: Orbax fills absl's with a page per checkpoint.
log = logging.getLogger("train")


class MetricWriter:
  """Writes scalars of a step; only the first process of a multi-host run writes."""

  def __init__(self, workdir: Path):
    first = jax.process_index() == 0
    self._writer = SummaryWriter(str(Path(workdir) / "tensorboard")) if first else None

  def write(self, step: int, prefix: str, scalars: Mapping[str, float]) -> None:
    """Adds `prefix/name` for every scalar at `step` and logs them as one line."""
    if self._writer is None:
      return
    for name, value in scalars.items():
      self._writer.add_scalar(f"{prefix}/{name}", value, step)
    text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
    log.info("step %d  %s  %s", step, prefix, text)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class StepClock:
  """Measures steps per second between two readings, and the run's wall clock."""

  def __init__(self, step: int):
    self._start = self._last = time.monotonic()
    self._step = step

  def read(self, step: int) -> dict[str, float]:
    """Returns steps/s since the last reading and seconds since the start."""
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._last, 1e-9)
    self._last, self._step = now, step
    return {"steps_per_s": rate, "wall_clock_s": now - self._start}


def mean_of(entries: Sequence[Mapping]) -> dict[str, float]:
  """Returns the mean per name of metrics that stayed on the device until now."""
  fetched = jax.device_get(list(entries))
  return {name: float(np.mean([entry[name] for entry in fetched])) for name in fetched[0]}
