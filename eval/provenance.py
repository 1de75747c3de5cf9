"""Where a result comes from: configuration, code, versions, hardware; nothing that names a person or machine."""

import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# The packages whose version can change a result.
PACKAGES = (
  "pi0rag-jax",
  "jax",
  "jaxlib",
  "flax",
  "numpy",
  "scipy",
  "mujoco",
  "faiss-cpu",
  "pillow",
  "sentencepiece",
)
# An absolute or home path, at the start of a text or after a separator; an address (gs://bucket/x) is none.
_LOCAL_PATH = re.compile(r"(?:(?<=^)|(?<=[\s=:,;'\"(\[]))(?:file://)?~?/(?:[^\s/'\",:;]+/)*([^\s/'\",:;)]+)/?")


def provenance(
  config: Any, *, seeds: Iterable[int] = (), renderer: str | None = None, wall_clock_s: float | None = None
) -> dict[str, Any]:
  """Returns what a reader needs to repeat or to doubt a result, as plain JSON.

  Args:
    config: a ConfigDict, dataclass or mapping; local paths in it are shortened to their last name.
    seeds: of the evaluation.
    renderer: name of the renderer, None where nothing was rendered.
    wall_clock_s: duration of the whole run in seconds, None if it is not known.
  """
  return {
    "configuration": plain(config),
    "commit": commit(),
    "seeds": sorted(int(seed) for seed in seeds),
    "versions": versions(),
    "renderer": renderer,
    "hardware": hardware(),
    "python": platform.python_version(),
    "platform": f"{platform.system()} {platform.machine()}",
    "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "wall_clock_s": wall_clock_s,
  }


def in_words(provenance: Mapping[str, Any]) -> dict[str, str]:
  """Returns the known parts of the provenance in words, by name, for people."""
  known = {name: value for name, value in provenance.items() if value}
  origin = {}
  if "timestamp" in known:
    minutes = known.get("wall_clock_s", 0) / 60
    origin["Written"] = known["timestamp"] + (f", after {minutes:.1f} minutes" if minutes else "")
  if "commit" in known:
    origin["Commit"] = known["commit"]["hash"][:12] + (", changed" if known["commit"]["dirty"] else "")
  if "renderer" in known:
    origin["Renderer"] = known["renderer"]
  if "hardware" in known:
    hardware = known["hardware"]
    devices = [f"{count} of {device}" for device, count in (hardware["jax_devices"] or {}).items()]
    machine = [hardware["cpu"], f"{hardware['cores']} cores", f"{hardware['memory_gib']} GiB", *devices]
    origin["Hardware"] = ", ".join(machine)
  if "versions" in known:
    versions = [f"{name} {version}" for name, version in known["versions"].items()]
    origin["Versions"] = ", ".join([f"Python {known.get('python', '?')}", *versions])
  return origin


def plain(value: Any) -> Any:
  """Returns `value` as dicts, lists, strings, numbers and None, without local paths."""
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, Mapping):
    return {str(name): plain(item) for name, item in value.items()}
  if isinstance(value, set | frozenset):
    return sorted((plain(item) for item in value), key=str)
  if isinstance(value, list | tuple | range):
    return [plain(item) for item in value]
  if value is None or isinstance(value, bool | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)  # JSON has no infinity.
  if isinstance(value, Path):
    return f"…/{value.name}" if value.is_absolute() else str(value)
  if isinstance(value, str):
    return without_paths(value)
  return getattr(value, "__name__", type(value).__name__)


def without_paths(text: str) -> str:
  """Returns the text with every absolute path cut down to its last name: '/home/me/runs/a' -> '…/a'."""
  return _LOCAL_PATH.sub(r"…/\1", text)


def commit() -> dict[str, Any] | None:
  """Returns the git commit of this code and whether files differ from it, None outside a checkout."""
  here = Path(__file__)
  if _git("ls-files", "--error-unmatch", here.name) is None:
    return None
  head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
  return {"hash": head, "dirty": bool(changes)} if head else None


def _git(*arguments: str) -> str | None:
  """Returns the output of a git command run beside this file, None if git is missing or refuses."""
  command = ["git", "-C", str(Path(__file__).parent), *arguments]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


def versions() -> dict[str, str]:
  """Returns the installed version of each of PACKAGES that is installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def hardware() -> dict[str, Any]:
  """Returns processor, usable cores, memory in GiB and, if this process has loaded jax, its devices."""
  memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return {
    "cpu": _cpu_model(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "memory_gib": round(memory_bytes / 2**30, 1),
    "jax_devices": _jax_devices(),
  }


def _cpu_model() -> str:
  """Returns the name that the processor gives itself, or its architecture where /proc has none."""
  try:
    text = Path("/proc/cpuinfo").read_text()
  except OSError:
    text = ""
  match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
  return match.group(1).strip() if match else platform.machine()


def _jax_devices() -> dict[str, int] | None:
  """Returns the number of devices of each kind; None if jax is not loaded, which this must not cause."""
  jax = sys.modules.get("jax")
  if jax is None:
    return None
  return dict(Counter(f"{device.platform}: {device.device_kind}" for device in jax.devices()))
