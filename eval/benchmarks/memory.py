"""`retrieval`: what search and steering add to one decision. `memory`: resident bytes of a full memory."""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Record
from pi0rag_jax.policy import steering
from pi0rag_jax.policy.retrieval import Retriever
from pi0rag_jax.policy.spec import PANDA_ACTIONS, ActionLayout

# Key and chunk sizes: the small policy's, and those that a pi0 checkpoint with projected keys has.
SIZES = {"panda_small": (106, 16, 5), "pi0": (512, 50, 32)}
RECORDS = (100, 1_000, 10_000)
DECISIONS = 300
WARM_UP = 50


def retrieval(_: argparse.Namespace) -> list[dict]:
  """Returns the time that the memory adds to one decision (batch 1), in three parts and in all."""
  rows = []
  for name, (key_dim, horizon, action_dim) in SIZES.items():
    for count in RECORDS:
      with tempfile.TemporaryDirectory() as directory:
        memory = Memory.open(directory, key_dim=key_dim, action_horizon=horizon, action_dim=action_dim,
                             encoder="bench", policy="bench", capacity=max(RECORDS))
        with memory:
          fill(memory, count)
          rows.append({"size": name, "key_dim": key_dim, "horizon": horizon, "action_dim": action_dim,
                       "records": count, "k": steering.preset("residual").k, **_time_decisions(memory, action_dim)})
  return rows


def memory(flags: argparse.Namespace) -> list[dict]:
  """Returns the resident bytes and query times of a memory of 10,000 records (key 512, chunk 50 x 32)."""
  command = [sys.executable, "-m", "pi0rag_jax.memory.footprint", "--records", str(flags.records)]
  measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
  sizes = {name: value for name, value in measured.items() if name not in ("filled", "opened")}
  return [{"case": case, **sizes, **measured[case]} for case in ("filled", "opened")]


def _time_decisions(memory: Memory, action_dim: int) -> dict[str, float]:
  config = steering.preset("residual")
  layout = PANDA_ACTIONS if action_dim == PANDA_ACTIONS.dim else joints(action_dim)
  retriever = Retriever(memory, config, layout, unit_distance=float(np.sqrt(2 * memory.header.key_dim)))
  steer = jax.jit(functools.partial(steering.steer, config=config, layout=layout))
  base_BTA = jnp.zeros((1, *memory.header.chunk_shape), jnp.float32)
  rng = np.random.default_rng(1)
  search_ms, steer_ms = [], []
  for _ in range(WARM_UP + DECISIONS):
    key_BE = rng.standard_normal((1, memory.header.key_dim)).astype(np.float32)
    started = time.perf_counter()
    found = retriever(key_BE)
    searched = time.perf_counter()
    jax.block_until_ready(steer(base_BTA, {n: a for n, a in found.items() if n != "ids_BK"}))
    search_ms.append(1000 * (searched - started))
    steer_ms.append(1000 * (time.perf_counter() - searched))
  parts = {"retrieval": search_ms[WARM_UP:], "steer": steer_ms[WARM_UP:],
           "total": np.add(search_ms, steer_ms)[WARM_UP:]}
  return {f"{part}_p{q}_ms": round(float(np.percentile(values, q)), 3)
          for part, values in parts.items() for q in (50, 95)}


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


def joints(count: int) -> ActionLayout:
  """Returns the layout of so many joint positions."""
  return ActionLayout(position=tuple(range(count)), rotation=(), gripper=(), low=(-1.0,) * count, high=(1.0,) * count)
