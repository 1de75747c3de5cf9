"""Policies of a mixture on disk, and how their episodes ended, a line each: what was run is not run again."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.curation import cloning
from eval.curation.cloning import Policy
from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import batch

POLICIES, EPISODES = "policies.npz", "episodes.jsonl"


def evaluate(task: str, folder: Path, seeds: Sequence[int], *, processes: int) -> int:
  """Returns how many episodes were run: every policy of a mixture on some seeds, those that the log lacks."""
  with files.LineLog(folder / EPISODES) as lines:
    done = {(each["run"], each["seed"]) for each in map(json.loads, files.whole_lines(lines.path))}
    jobs = [(run, seed) for seed in seeds for run in load(folder / POLICIES) if (run, seed) not in done]
    work = functools.partial(_evaluated, task, folder / POLICIES)
    for run, seed, success, decisions in batch.spread(work, jobs, processes=processes) if jobs else ():
      lines.append(json.dumps({"run": run, "seed": seed, "success": success, "decisions": decisions}).encode())
  return len(jobs)


def _evaluated(task: str, file: Path, job: tuple[str, int]) -> tuple[str, int, bool, int]:
  run, seed = job
  success, looks, _ = cloning.run(task, load(file)[run], seed)
  return run, seed, success, len(looks)


def save(file: Path, policies: Mapping[str, Policy]) -> None:
  """Writes policies as one file."""
  arrays: dict[str, Any] = {
    f"{run}|{name}": value for run, policy in policies.items() for name, value in policy.items()}
  files.write(file, lambda opened: np.savez(opened, **arrays))
  load.cache_clear()


@functools.lru_cache(maxsize=4)
def load(file: Path) -> dict[str, Policy]:
  """Returns the policies of a file."""
  if not file.is_file():
    raise Pi0RagError(f"no policies in '{file.parent}': they are trained first")
  found: dict[str, Policy] = {}
  with np.load(file) as stored:
    for key in stored.files:
      run, _, name = key.partition("|")
      found.setdefault(run, {})[name] = stored[key]
  return found
