"""Measurements: `python -m eval.bench NAME --out=FILE.json`, one flat row per measurement.

Rows are kept in FILE.json.part as they come, so that a run that is stopped leaves what it measured.

`peak`: what the hardware gives: matrix TFLOP/s, copy TB/s, time of a launch.
`latency`: one chunk of a model, ours against openpi's structure, by cameras, batch and steps of the flow, with its
  share of the roofline; and openpi itself, with `--openpi`.
`ablate`: the same with each of our changes left out.
`loop`: control cycles at a fixed rate, from pictures to action, with retrieval at 10,000 records.
`retrieval`: one search by the number of records and key dims, and what search and steering add to one decision.
`fleet`: many robots that teach one memory on a PostgreSQL of this machine: writes, lag, bytes.
`stores`: a search of a memory in a file against one on a PostgreSQL of this machine: idle, beside writers, without it.
`indices`: exact search against IVF and HNSW by the number of records: time, recall, bytes, how long building takes.
`memory`: resident bytes of a full memory, store and index together, and what sampling takes on the device.
`compile`: what a compiler makes of sampling or training for an accelerator that is not here, from shapes alone: memory,
  kernels, loops, moved weights, bytes between devices. Needs the extra `aot`.
`train`: a training step of everything, of adapters and of heads: samples per second and share of the matrix peak.
`sweep`: episodes per minute by the number of environments that run at once; needs the simulator.
`teaching`: decisions of a server that learns against one that does not; how soon a record is found; robots that teach
  one memory at the same time; needs the simulator, as `wire` does.
`clients`: several clients of one server, decided for one at a time or together; needs the simulator.
`wire`: a memory taught over the wire against one taught in process, and what it is good for.
`options`: fewer steps, warm starts and weights of less precision, by success rate and time of a decision; needs the
  simulator of its world.
"""

import argparse
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from eval import provenance
from eval.benchmarks import targets
from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError

# Module and function; imported when asked for, so that most of them run where only jax is installed.
BENCHMARKS = {
  "peak": ("peak", "peak"), "latency": ("latency", "latency"), "ablate": ("latency", "ablate"),
  "compile": ("compiled", "compile_for"), "loop": ("loop", "loop"), "retrieval": ("retrieval", "retrieval"),
  "fleet": ("fleet", "fleet"), "stores": ("stores", "stores"), "indices": ("indices", "indices"),
  "memory": ("memory", "memory"),
  "train": ("training", "train"), "sweep": ("sweep", "sweep"), "options": ("options", "options"),
  "clients": ("clients", "clients"), "teaching": ("teaching", "teaching"), "wire": ("teaching", "wire")}


# Of `benchmarks.models`, which imports jax: a wrong flag is answered before that.
SIZES = ("midsize", "dummy", "pi0", "pi05_midsize", "pi05_dummy", "pi05")
VARIANTS = ("full", "full_remat", "lora", "lora_frozen_images", "lora_frozen_images_remat", "heads")
CAMERAS = 3
# Of `benchmarks.targets` and `benchmarks.compiled`.
TARGETS = ("a100", "b200", "h100", "h200", "rtx4090", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e")
PROGRAMS = ("infer", "openpi", "lora", "fsdp")
FEEDING = ("overlap", "callback")  # of `steering.agent`


class Parser(argparse.ArgumentParser):
  """Answers a wrong flag with one line."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"{self.prog}: {message}\n")


def number(text: str) -> int:
  """Returns an integer of 1 or more."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"invalid number {text}: must be 1 or more")
  return value


def windows(text: str) -> tuple[int, ...]:
  """Returns the numbers of 0 or more of a list such as '0,2,5'."""
  if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
    raise argparse.ArgumentTypeError(f"invalid windows {text}: must be numbers from 0 on, as 0,2")
  return tuple(map(int, text.split(",")))


def numbers(text: str) -> tuple[int, ...]:
  """Returns the integers of a list such as '1,8,64'."""
  return tuple(number(part) for part in text.split(","))


def cameras(text: str) -> tuple[int, ...]:
  """Returns numbers of cameras."""
  values = numbers(text)
  if max(values) > CAMERAS:
    raise argparse.ArgumentTypeError(f"invalid number of cameras {max(values)}: the models have {CAMERAS}")
  return values


def variants(text: str) -> tuple[str, ...]:
  """Returns the names of trainings."""
  names = tuple(text.split(","))
  for name in names:
    if name not in VARIANTS:
      raise argparse.ArgumentTypeError(f"invalid variant '{name}': choose from {', '.join(VARIANTS)}")
  return names


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of all flags; a benchmark reads those that its name stands before, and the shared ones."""
  parser = Parser(prog="eval.bench", description="Measures, and writes one flat row per measurement.",
                  epilog="example: python -m eval.bench latency --size=pi0 --cameras=2,3 --out=latency.json")
  add = parser.add_argument
  add("name", choices=sorted(BENCHMARKS))
  add("--out", required=True, type=pathlib.Path, help="JSON file to write")
  add("--size", choices=SIZES, help="of the model; compile takes pi0, the others midsize")
  add("--repeats", type=number, default=15, help="turns of what is timed in turn")
  add("--cameras", type=cameras, default=(1, 2, 3),
      help="latency, loop, memory: cameras present, as 1,2,3; compile: the last")
  add("--steps", type=numbers, default=(10,), help="latency: steps of the flow, as 10,5,2,1; others take the first")
  add("--kernel", default="xla", choices=("xla", "cudnn"), help="latency, ablate, memory, compile: of our attention")
  add("--weights", choices=("int8", "w8a8", "fp8", "bfloat16"),
      help="latency, ablate, compile: how our matrices are stored, see models/packing.py")
  add("--batches", type=numbers, default=(1,), help="latency: batch sizes, as 1,8,64")
  add("--stages", default=True, action=argparse.BooleanOptionalAction, help="latency: its parts too")
  add("--openpi", type=pathlib.Path, help="latency: a checkout of openpi, which is then timed too")
  add("--openpi-python", type=pathlib.Path, help="latency: its environment's interpreter (.venv/bin/python in it)")
  add("--batch", type=number, help="train: batch size, 2; compile: of all devices, 8 for each")
  add("--target", choices=TARGETS, help="compile: the accelerator")
  add("--program", default="infer", choices=PROGRAMS, help="compile: sampling, ours or openpi's structure, or a step")
  add("--devices", type=number, default=1, help="compile: of the training")
  add("--layers", type=number, help="compile: of each tower when sampling, for a quick comparison; all by default")
  add("--variants", type=variants, default=VARIANTS, help=f"train: what is trained, of {','.join(VARIANTS)}")
  add("--records", type=number, default=10_000, help="memory, loop, stores: records")
  add("--record-counts", type=numbers, default=(10**3, 10**4, 10**5, 10**6),
      help="retrieval, indices: records, as 1000,10000")
  add("--key-dims", type=numbers, default=(256, 512, 1024, 2048), help="retrieval, indices: key widths, as 256,512")
  add("--rates", type=numbers, default=(40, 50, 100), help="loop: cycles per second, as 40,50,100")
  add("--cycles", type=number, default=1000, help="loop: cycles of each rate")
  add("--feeding", default="overlap", choices=FEEDING, help="loop: searches while the device decodes, or in one call")
  add("--slots", type=numbers, default=(1, 8, 24), help="sweep: environments, as 1,8,24; options: the last")
  add("--episodes", type=number, default=48, help="sweep, options: episodes of each; wire: that teach")
  add("--policy", default="panda_tasks", help="options: a policy of the world's robot")
  add("--world", default="panda", help="options: a family of worlds, as metaworld")
  add("--places", type=lambda text: tuple(text.split(",")),
      default=("pick_and_place/nominal", "pick_and_place/camera_shift"),
      help="options: tasks and conditions, as push-v3/nominal,reach-v3/nominal")
  add("--options", type=lambda text: tuple(text.split(",")), default=(),
      help="options: beside ten steps, as '5 steps,int8 weights,fp8'; all by default")
  add("--corrected", type=number, default=40, help="wire: episodes that may be taken over")
  add("--evaluated", type=number, default=100, help="wire: episodes with and without the memory")
  add("--robots", type=number, default=8, help="teaching, clients: that ask at the same time; fleet: that teach")
  add("--minutes", type=float, default=10.0,
      help="teaching, clients, fleet: for how long; indices: to build HNSW at most")
  add("--windows", type=windows, default=(0, 2), help="clients: ms that the server waits; 0: one at a time")
  return parser


def measure(flags: argparse.Namespace) -> Iterable[dict]:
  """Yields the rows of a benchmark."""
  compiles = flags.name == "compile"
  flags.size = flags.size or ("pi0" if compiles else "midsize")
  if compiles:
    if flags.target is None:
      raise Pi0RagError(f"compile needs --target=NAME: {', '.join(TARGETS)}")
    targets.prepare()
  import jax  # not above: a wrong flag is answered before

  module, function = BENCHMARKS[flags.name]
  try:
    yield from getattr(importlib.import_module(f"eval.benchmarks.{module}"), function)(flags)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise Pi0RagError(f"the device has too little memory for this: {str(error).splitlines()[0]}") from error


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command."""
  flags = make_parser().parse_args(argv)
  rows, part = [], flags.out.with_name(f"{flags.out.name}.part")
  try:
    for row in measure(flags):
      rows.append(row)
      _write(part, flags.name, rows)
      print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
  except Pi0RagError as error:
    print(f"eval.bench: {error}", file=sys.stderr)
    return 2
  _write(part, flags.name, rows)
  part.replace(flags.out)
  return 0


def _write(path: pathlib.Path, name: str, rows: list[dict]) -> None:
  result = {"name": name, "hardware": provenance.hardware(), "versions": provenance.versions(), "rows": rows}
  files.write_text(path, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  sys.exit(main())
