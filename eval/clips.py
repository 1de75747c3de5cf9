"""Short films of the same seed with and without memory, and the file that keeps them."""

import collections
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.worlds.batch import BatchEnv, Film
from pi0rag_jax.worlds.episode import Trace

SIZE_PX = 160


def choose(without: Mapping[int, str], with_memory: Mapping[int, str], count: int) -> list[int]:
  """Returns up to `count` seeds: one that the memory broke, if there is any, the rest that it mended.

  A report that showed only what went well would not be believed, rightly.
  """
  shared = sorted(without.keys() & with_memory.keys())
  mended = [s for s in shared if without[s] == "failure" and with_memory[s] == "success"]
  broken = [s for s in shared if without[s] == "success" and with_memory[s] == "failure"]
  kept = broken[: 1 if count > 1 else 0]
  return [*mended[: count - len(kept)], *kept]


def film(env: BatchEnv, seeds: Sequence[int], without: Mapping[int, Trace], with_memory: Mapping[int, Trace], *,
         task: str, condition: str) -> list[dict]:
  """Returns one clip per seed, as `eval.report.write_report` takes them, by replaying the executed actions."""
  jobs = [(seed, traces[seed]) for seed in seeds for traces in (without, with_memory)]
  jobs = [(seed, trace) for seed, trace in jobs if trace.outcome != "crashed"]
  frames: list[np.ndarray] = []
  for start in range(0, len(jobs), env.slots):
    commands = {slot: Film(seed, trace.executed(), SIZE_PX)
                for slot, (seed, trace) in enumerate(jobs[start : start + env.slots])}
    frames += [answer for _, answer in sorted(env.run(commands).items())]
  filmed = {(seed, id(trace)): pictures for (seed, trace), pictures in zip(jobs, frames)}
  return [{
      "title": with_memory[seed].prompt,
      "task": task,
      "condition": condition,
      "seed": seed,
      "frames_without": filmed[seed, id(without[seed])],
      "frames_with": filmed[seed, id(with_memory[seed])],
      "outcome_without": without[seed].outcome,
      "outcome_with": with_memory[seed].outcome,
  } for seed in seeds if {(seed, id(without[seed])), (seed, id(with_memory[seed]))} <= filmed.keys()]


def save(path: Path, seeds: Sequence[int], clips: Sequence[Mapping[str, Any]]) -> None:
  """Writes the clips filmed for `seeds` (fewer, where an episode crashed) as one file, whole or not at all."""
  values: dict[str, Any] = {f"{i}.{name}": value for i, clip in enumerate(clips) for name, value in clip.items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  with open(partial, "wb") as file:
    np.savez_compressed(file, seeds=np.array(seeds, np.int64), **values)
  os.replace(partial, path)


def load(path: Path, seeds: Sequence[int]) -> list[dict[str, Any]] | None:
  """Returns the clips that `save` wrote for these seeds, None where they have to be filmed (again, if damaged)."""
  try:
    with np.load(path) as file:
      values = dict(file)
  except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile):
    return None
  if values.pop("seeds").tolist() != list(seeds):
    return None
  clips = collections.defaultdict(dict)
  for key, value in values.items():
    number, name = key.split(".")
    clips[int(number)][name] = value if value.ndim else value.item()
  return [clips[number] for number in sorted(clips)]
