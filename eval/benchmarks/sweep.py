"""`sweep`: episodes per minute by the number of environments that run at once. The simulator is needed."""

import argparse
import collections
import contextlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from eval.benchmarks import memory
from eval.benchmarks.meter import Meter
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Job

POLICY, TASK, CONDITION = "panda_tasks", "pick_and_place", "camera_shift"
FIRST_SEED = 390_000  # of the tuning range
PROCESSES = 2
TURNS = 3  # of each case, in turn with the others


def sweep(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each number of environments, without and with a memory.

  All run the same episodes of the shipped policy from z = 0: the memory's records are random, hence too far away to
  have a say, and cost what others do. Rates are the medians of some turns. `python_ms` is what Python costs a decision
  in this process: CPU time of all its threads that run Python (which drive, search, and read what the simulation
  processes send), less what they spend in jitted calls and in FAISS's search; XLA's own threads and waiting count
  nothing. It is the least of the turns, since a busy machine only adds.
  """
  with contextlib.ExitStack() as stack:
    policy, meter = directory.load(POLICY), Meter()
    config = rollout.world_config(policy.spec, TASK, CONDITION)
    envs = {slots: stack.enter_context(BatchEnv(config, slots=slots, processes=min(slots, PROCESSES)))
            for slots in flags.slots}
    agents = {0: Agent(policy), flags.records: stack.enter_context(_remembering(policy, flags.records))}
    stack.enter_context(meter.sparing(agents.values()))
    turns = {(records, slots): [] for records in agents for slots in envs}
    for records, slots in turns:
      _run(envs[slots], agents[records], slots, FIRST_SEED - slots)  # compiles
    for _ in range(TURNS):
      for (records, slots), rates in turns.items():
        rates.append(_rates(envs[slots], agents[records], flags.episodes, meter))
  rows = []
  for (records, slots), rates in turns.items():
    rows.append({"task": TASK, "condition": CONDITION, "records": records, "environments": slots,
                 "episodes": flags.episodes,
                 **{name: round(float(np.median([rate[name] for rate in rates])), 1) for name in rates[0]}})
    rows[-1]["python_ms"] = round(min(rate["python_ms"] for rate in rates), 3)
    first = next(row for row in rows if row["records"] == records)
    rows[-1]["vs_first"] = round(rows[-1]["episodes_per_minute"] / first["episodes_per_minute"], 2)
  return rows


def _rates(env: BatchEnv, agent: Agent, episodes: int, meter: Meter) -> dict[str, float]:
  """Returns how fast so many episodes were."""
  start_s, python_s = time.perf_counter(), meter.read()
  decisions = _run(env, agent, episodes, FIRST_SEED)
  seconds = time.perf_counter() - start_s
  return {"episodes_per_minute": 60 * episodes / seconds, "decisions_per_s": decisions / seconds,
          "python_ms": 1000 * (meter.read() - python_s) / decisions}


def _run(env: BatchEnv, agent: Agent, episodes: int, first_seed: int) -> int:
  """Returns the number of decisions of so many episodes."""
  jobs = collections.deque(Job(first_seed + i, i) for i in range(episodes))
  return sum(len(trace.steps) for trace in rollout.run(env, agent, jobs))


@contextlib.contextmanager
def _remembering(policy: Policy, records: int) -> Iterator[Agent]:
  """Yields an agent with a memory of so many random records."""
  with tempfile.TemporaryDirectory() as folder, Memory.open(
      folder, **policy.memory_header(), capacity=records) as filled:
    memory.fill(filled, records)
    agent = Agent(policy, filled)
    yield agent
    agent.close()
