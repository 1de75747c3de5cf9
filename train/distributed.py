"""Training on several hosts: `jax.distributed` from flags, before anything else touches jax.

Every process gets the same command, with its own --process_id; all of them see the same workdir.
"""

import os
from typing import Any

import jax
from absl import flags

from pi0rag_jax.errors import Pi0RagError

_LEAST_THREADS = 8
NAMES = ("coordinator_address", "num_processes", "process_id")


def define_flags() -> None:
  """Defines the flags of a command that runs on several hosts."""
  flags.DEFINE_string("coordinator_address", None, "Of process 0, as host:port. With --num_processes, --process_id.")
  flags.DEFINE_integer("num_processes", None, "How many processes train together.", lower_bound=1)
  flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
  flags.DEFINE_boolean("distributed", False, "Finds the above by itself: on TPU pods, Slurm, MPI and Kubernetes.")


def split_cpu(devices: int) -> None:
  """Lets the CPU count as several devices. Errors: Pi0RagError once jax has begun to compute, when it is too late."""
  # A collective waits for ever where there are more devices than threads.
  os.environ["NPROC"] = str(max(devices, int(os.environ.get("NPROC", 0)), os.cpu_count() or 1, _LEAST_THREADS))
  try:
    jax.config.update("jax_num_cpu_devices", devices)
  except RuntimeError as error:
    raise Pi0RagError(f"--cpu_devices={devices}: jax has begun to compute already; start a process for it") from error


def refuse(values: flags.FlagValues, other: str) -> None:
  """Raises Pi0RagError where flags ask for several processes beside something else that cannot be."""
  if given := [name for name in (*NAMES, "distributed") if values[name].value]:
    raise Pi0RagError(f"--{given[0]} and {other}: leave one of them out")


def initialize(values: flags.FlagValues) -> None:
  """Joins the other processes if the flags ask for it."""
  given: dict[str, Any] = {name: values[name].value for name in NAMES if values[name].value is not None}
  if not given and not values.distributed:
    return
  if not values.distributed:
    check(given)
  try:
    jax.distributed.initialize(**given)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())
    raise Pi0RagError(f"cannot join the other processes: {reason}; give --coordinator_address=HOST:PORT, "
                      "--num_processes and --process_id") from error


def check(given: dict) -> None:
  """Raises for flags that do not say all that is needed."""
  missing = [f"--{name}" for name in NAMES if name not in given]
  if missing:
    raise Pi0RagError(f"{', '.join(f'--{name}' for name in given)} without {', '.join(missing)}: several processes "
                      "need all three, or --distributed where the cluster knows them")
  if given["process_id"] >= given["num_processes"]:
    raise Pi0RagError(f"--process_id={given['process_id']}: with --num_processes={given['num_processes']} it is 0 to "
                      f"{given['num_processes'] - 1}")
  if ":" not in given["coordinator_address"]:
    raise Pi0RagError(f"--coordinator_address={given['coordinator_address']} has no port, such as "
                      f"{given['coordinator_address']}:1234")
