"""`memory`: what a full memory takes on the host, and what sampling takes on the device."""

import argparse
import json
import subprocess
import sys

import numpy as np

from eval.benchmarks import device_memory
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Record
from pi0rag_jax.robots.robot import ActionSpace


def memory(flags: argparse.Namespace) -> list[dict]:
  """Returns rows of a memory's resident bytes and query times (key 512, chunk 50 x 32), and of the device's bytes."""
  command = [sys.executable, "-m", "pi0rag_jax.memory.footprint", "--records", str(flags.records)]
  measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
  sizes = {name: value for name, value in measured.items() if name not in ("filled", "opened")}
  host = [{"what": "host", "case": case, **sizes, **measured[case]} for case in ("filled", "opened")]
  return host + device_memory.rows(flags)


def fill(memory: Memory, count: int) -> None:
  """Adds so many random records, corrections and anchors in turn."""
  rng = np.random.default_rng(0)
  for start in range(0, count, 500):
    memory.add([_record(rng, memory, i) for i in range(start, min(start + 500, count))])


def _record(rng: np.random.Generator, memory: Memory, i: int) -> Record:
  base_TA, corrected_TA = 0.005 * rng.standard_normal((2, *memory.header.chunk_shape))
  kind = (CORRECTION, ANCHOR)[i % 2]
  return Record(key=rng.standard_normal(memory.header.key_dim), base_chunk=base_TA, corrected_chunk=corrected_TA,
                kind=kind, outcome="success", provenance={"source": "policy"})


def joints(count: int) -> ActionSpace:
  """Returns the actions of so many joints that are told where to be, in rad."""
  return ActionSpace((False,) * count, (3.0,) * count, (-3.0,) * count, (3.0,) * count)
