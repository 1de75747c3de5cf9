"""How much memory some work takes at its peak, beyond what the process held when it began."""

from pathlib import Path

_PROCESS = Path("/proc/self")
# What Linux takes for "the peak begins anew".
_RESET = "5"


class PeakMemory:
  """Starts to measure when it is made."""

  def __init__(self):
    try:
      (_PROCESS / "clear_refs").write_text(_RESET)
      self._before_kb = _status_kb("VmRSS")
    except (OSError, LookupError):
      self._before_kb = None

  def growth_mb(self) -> float | None:
    """Returns the most that was resident since the start beyond what was then; None where the system does not say."""
    if self._before_kb is None:
      return None
    return max(_status_kb("VmHWM") - self._before_kb, 0) / 1024


def _status_kb(name: str) -> int:
  """Returns a number of /proc/self/status."""
  for line in (_PROCESS / "status").read_text().splitlines():
    if line.startswith(f"{name}:"):
      return int(line.split()[1])
  raise LookupError(name)
