"""openpi's own sampling, timed in its environment by `openpi_script`, where a checkout and an interpreter are given.

The calls follow what openpi's source says (`Pi0Config.create`, `Observation.from_dict`, `sample_actions`). openpi is
not installed where this was written: it was run against a package of the test's that has these three, and no other.
"""

import argparse
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np

from eval.benchmarks import models
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.pi0_config import Pi0Config

SCRIPT = Path(__file__).with_name("openpi_script.py")
# openpi's names of our sizes' language models. Its image tower is always the large one and its vocabulary the whole,
# so that its `dummy` has more parameters than ours.
VARIANTS = {"pi0": ("gemma_2b", "gemma_300m"), "pi05": ("gemma_2b", "gemma_300m"),
            "dummy": ("dummy", "dummy"), "pi05_dummy": ("dummy", "dummy")}


@dataclasses.dataclass(frozen=True)
class Measured:
  """What openpi took: its number of parameters, and ms by (batch, cameras, steps)."""

  parameters: int
  taken_ms: dict[tuple[int, int, int], np.ndarray]


def measure(flags: argparse.Namespace) -> Measured | None:
  """Returns openpi's times, None where no checkout is given.

  Raises:
    Pi0RagError: there is no such checkout or interpreter, openpi has no model of this size, or it failed.
  """
  if flags.openpi is None:
    if flags.openpi_python is not None:
      raise Pi0RagError(f"--openpi-python={flags.openpi_python} without --openpi: give the checkout too")
    return None
  checkout, python = flags.openpi.absolute(), flags.openpi_python or flags.openpi / ".venv/bin/python"
  if not (checkout / "src/openpi/models").is_dir():
    raise Pi0RagError(f"no checkout of openpi in '{flags.openpi}': expected src/openpi/models in it")
  if not python.is_file():
    raise Pi0RagError(f"no interpreter '{python}': give that of openpi's environment as --openpi-python")
  if flags.size not in VARIANTS:
    raise Pi0RagError(f"openpi has no model of size '{flags.size}'; it has {', '.join(VARIANTS)}")
  answer = _run(str(python.absolute()), checkout, _request(flags))
  taken = {(case["batch"], case["cameras"], case["steps"]): np.array(case["ms"]) for case in answer["cases"]}
  return Measured(answer["parameters"], taken)


def _request(flags: argparse.Namespace) -> dict:
  config: Pi0Config = models.SIZES[flags.size]
  prefix, expert = VARIANTS[flags.size]
  model = {"dtype": "bfloat16", "paligemma_variant": prefix, "action_expert_variant": expert,
           "action_dim": config.action_dim, "action_horizon": config.action_horizon,
           "max_token_len": config.max_token_len}
  return {"model": model | ({"pi05": True} if config.pi05 else {}),  # older checkouts do not know the field
          "image_size": config.image_size, "batches": flags.batches, "cameras": flags.cameras, "steps": flags.steps,
          "repeats": flags.repeats}


def _run(python: str, checkout: Path, request: dict) -> dict:
  """Returns what the script answers."""
  sources = os.pathsep.join(str(checkout / folder) for folder in ("src", "packages/openpi-client/src"))
  # -P: this folder, whose names are common ones, does not become a place to import from.
  command = [python, "-P", str(SCRIPT), json.dumps(request)]
  try:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": sources})
  except OSError as error:
    raise Pi0RagError(f"cannot run '{python}': {error.strerror}") from error
  if done.returncode:
    said = done.stderr.strip().splitlines() or ["nothing"]
    raise Pi0RagError(f"openpi in '{checkout}' ended with status {done.returncode} and said: {said[-1]}")
  try:
    return json.loads(done.stdout.strip().splitlines()[-1])
  except (IndexError, ValueError) as error:
    raise Pi0RagError(f"'{python}' gave no times of openpi, it said: {done.stdout.strip()[-80:]!r}") from error
