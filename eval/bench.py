"""Measurements: `python -m eval.bench NAME --out=FILE.json`, one flat row per measurement.

`peak`: what the hardware gives: matrix TFLOP/s, copy TB/s, time of a launch.
`latency`: one chunk of a model, ours against openpi's structure, by cameras and batch, with its share of the roofline.
`ablate`: the same with each of our changes left out.
`loop`: control cycles at a fixed rate, from pictures to action, with retrieval at 10,000 records.
`retrieval`: what search and steering add to one decision, by the number of records.
`memory`: resident bytes of a full memory, store and index together.
`train`: a training step of everything, and of adapters.
`sweep`: episodes per minute by the number of environments that run at once; needs the simulator.
`options`: fewer steps and warm starts, by success rate and time of a decision; needs the simulator.
"""

import argparse
import importlib
import json
import pathlib
import sys
from collections.abc import Sequence

from eval import provenance
from pi0rag_jax.errors import Pi0RagError

# Module and function; imported when asked for, so that most of them run where only jax is installed.
BENCHMARKS = {
  "peak": ("peak", "peak"), "latency": ("latency", "latency"), "ablate": ("latency", "ablate"),
  "loop": ("loop", "loop"), "retrieval": ("memory", "retrieval"), "memory": ("memory", "memory"),
  "train": ("training", "train"), "sweep": ("sweep", "sweep"),
  "options": ("options", "options")}


def numbers(text: str) -> tuple[int, ...]:
  """Returns the integers of a list such as '1,8,64'."""
  return tuple(int(part) for part in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command."""
  parser = argparse.ArgumentParser(description="Measures, and writes one flat row per measurement.")
  parser.add_argument("name", choices=sorted(BENCHMARKS))
  parser.add_argument("--out", required=True, type=pathlib.Path, help="JSON file to write")
  parser.add_argument("--size", default="midsize", choices=("midsize", "dummy", "pi0"), help="of the model")
  parser.add_argument("--repeats", type=int, default=15, help="turns of what is timed in turn")
  parser.add_argument("--batches", type=numbers, default=(1,), help="latency: batch sizes, as 1,8,64")
  parser.add_argument("--cameras", type=numbers, default=(1, 2, 3), help="latency: cameras present, as 1,2,3")
  parser.add_argument("--kernel", default="xla", choices=("xla", "cudnn"), help="of our attention over the prefix")
  parser.add_argument("--batch", type=int, default=2, help="train: batch size")
  parser.add_argument("--records", type=int, default=10_000, help="memory and loop: records")
  parser.add_argument("--rates", type=numbers, default=(40, 50, 100), help="loop: cycles per second, as 40,50,100")
  parser.add_argument("--cycles", type=int, default=1000, help="loop: cycles of each rate")
  parser.add_argument("--slots", type=numbers, default=(1, 8, 24), help="sweep: environments, as 1,8,24")
  parser.add_argument("--episodes", type=int, default=48, help="sweep and options: episodes of each")
  flags = parser.parse_args(argv)
  module, function = BENCHMARKS[flags.name]
  try:
    rows = getattr(importlib.import_module(f"eval.benchmarks.{module}"), function)(flags)
  except Pi0RagError as error:
    print(f"eval.bench: {error}", file=sys.stderr)
    return 2
  result = {"name": flags.name, "hardware": provenance.hardware(), "versions": provenance.versions(), "rows": rows}
  flags.out.parent.mkdir(parents=True, exist_ok=True)
  flags.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf8")
  for row in rows:
    print("  ".join(f"{name} {value}" for name, value in row.items()))
  return 0


if __name__ == "__main__":
  sys.exit(main())
