"""One name for all commands: `pi0rag COMMAND ...`, or `python -m pi0rag_jax COMMAND ...`; without one it lists them.

Each is a module that does the same as `python -m MODULE`, and that nothing imports before it is asked for.
"""

import os
import runpy
import sys
from typing import NamedTuple

from pi0rag_jax import errors


class Command(NamedTuple):
  """What `python -m module` does, in one line."""

  module: str
  text: str


COMMANDS = {
  "sweep": Command("eval.sweep", "run policies by conditions and seeds, with and without memory, and report"),
  "train": Command("train.launch", "train what a configuration says; stopped, it goes on"),
  "serve": Command("pi0rag_jax.serving.server", "serve a policy to robots, with a memory that they may teach"),
  "robot": Command("pi0rag_jax.robots.run", "run a robot by any policy, here or behind a server, in one control loop"),
  "memory": Command("pi0rag_jax.memory", "look into a memory, explain, merge, export, migrate it"),
  "data": Command("pi0rag_jax.data", "check, count, split and time recorded episodes of any format"),
  "policy": Command("pi0rag_jax.policy", "say what a policy is made of, ask it about a data set, take it elsewhere"),
  "study": Command("pi0rag_jax.study", "explain flow matching by running it: in the plane, and in a policy's chunks"),
  "curate": Command("train.curate", "keep the demonstrations that a policy should learn from"),
  "choose": Command("pi0rag_jax.curation", "score and mix demonstrations of any format, write out a chosen part"),
  "teach": Command("pi0rag_jax.sim.teach", "teach a simulated Panda by hand, in a browser"),
  "interventions": Command("pi0rag_jax.learning.interventions", "teach a memory from recorded take-overs"),
  "collect": Command("pi0rag_jax.worlds.collect", "write demonstrations of any world with an expert"),
  "collect-panda": Command("pi0rag_jax.sim.collect", "write those of the simulated Panda, flawed ones too"),
  "calibrate": Command("train.calibrate", "measure where a policy's keys lie"),
  "norm-stats": Command("train.norm_stats", "compute what states and actions are normalized by"),
  "taught": Command("eval.taught", "make a data set of what a sweep's streams taught"),
  "bench": Command("eval.bench", "measure speed and memory"),
  "parity": Command("eval.parity", "hold models to recorded outputs of openpi"),
  "across": Command("eval.across", "put sweeps of several trained policies together"),
  "detectors": Command("eval.detectors", "hold failure detectors to a simulation's truth"),
  "curation": Command("eval.curation", "hold scorers of demonstrations to policies trained on what they keep"),
  "guarantee": Command("eval.guarantee", "check the promise of what is not broken, and its price"),
  "consolidation": Command("eval.consolidation", "go from memory to weights and back, and measure it"),
  "vla-eval": Command("pi0rag_jax.serving.vla_eval", "serve a policy to the benchmarks of vla-eval"),
}


def overview() -> str:
  """Returns what `pi0rag --help` prints."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:{width}}  {command.text}" for name, command in COMMANDS.items()]
  return "\n".join(["usage: pi0rag COMMAND ...", "", *lines, "", "`pi0rag COMMAND --help` says more, as in",
                    "  pi0rag sweep --config=configs/quickstart.py --out=runs/quickstart"])


def main(argv: list[str] | None = None) -> int:
  """Runs one command, which may end the process itself; returns the exit status, 2 for none or an unknown one."""
  name, *others = (sys.argv[1:] if argv is None else argv) or [""]
  if name in ("-h", "--help"):
    try:
      print(overview(), flush=True)
    except BrokenPipeError:  # of `| head`, which has seen enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  if name not in COMMANDS:
    message = str(errors.unknown_name("command", name, COMMANDS)) if name else overview()
    print(f"pi0rag: {message}" if name else message, file=sys.stderr)
    return 2
  sys.argv = [f"pi0rag {name}", *others]
  sys.path[0] = os.getcwd()  # as `python -m`: a configuration may name modules that lie there
  runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
