"""The table of docs/speed.md from what `eval/benchmarks/device.sh` measured.

  python -m eval.benchmarks.device [--results=DIR] [--fill=docs/speed.md]

It prints the table. `--fill` puts it into the page, of an accelerator's figures of the whole models alone; what was not
measured stays as it is there.
"""

import argparse
import dataclasses
import json
import pathlib
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from eval.bench import Parser
from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError

RESULTS = pathlib.Path("results/bench/device")
# Sizes whose figures the page tells; the last one is of `retrieval`, which has no model.
FULL_SIZES = ("pi0", "pi05", "panda_small")


@dataclasses.dataclass(frozen=True)
class Figure:
  """A line of the table: what it is of, its target, and how it is said of the first row of a step that fits."""

  what: str
  target: str
  said: str
  step: str
  where: Mapping[str, Any]

  def measured(self, results: Mapping[str, dict]) -> str:
    """Returns the figure in words, empty where no row has it: some devices count no bytes, some steps were stopped."""
    names = {name for _, name, _, _ in string.Formatter().parse(self.said) if name}
    for row in results.get(self.step, {}).get("rows", ()):
      known = results[self.step] | row
      if names <= known.keys() and all(row.get(name) == value for name, value in self.where.items()):
        return self.said.format(**known)
    return ""

  def line(self, measured: str) -> str:
    """Returns the line of the table."""
    return " ".join(["|", *(f"{cell} |" if cell else "|" for cell in (self.what, self.target, measured))])


_P50, _RATIO = "{p50_ms:.1f} ms, {of_roofline:.2f} of the limit", "{ratio:.2f} ({low:.2f} to {high:.2f})"
_CYCLES, _TRAINING = "{missed} missed, p99 {p99_ms:.1f} ms", "{utilization:.0%}, {samples_per_s:.1f} examples a second"


def _ours(what: str, target: str, step: str, *, cameras: int = 3, **where) -> Figure:
  return Figure(what, target, _P50, step, {"what": "ours", "cameras": cameras, **where})


FIGURES = (
  _ours("3 cameras, p50", "13 ms, then 10", "latency"),
  _ours("2 cameras, p50", "10 ms, then 7.5", "latency", cameras=2),
  Figure("openpi's structure against ours, 3 cameras, same run", "2", _RATIO, "latency",
         {"what": "naive / ours", "cameras": 3}),
  Figure("openpi itself against ours, same run", "", _RATIO, "openpi", {"what": "openpi / ours"}),
  Figure("40 Hz with retrieval, 1,000 cycles", "no miss, p99 15 ms", _CYCLES, "loop", {"rate_hz": 40}),
  Figure("50 Hz with retrieval, 1,000 cycles", "", _CYCLES, "loop", {"rate_hz": 50}),
  Figure("50 Hz, searched inside the one call", "", _CYCLES, "one_call", {"rate_hz": 50}),
  Figure("host time of a call outside device work", "1 ms", "{host_work_p50_ms:.2f} ms", "loop", {}),
  Figure("LoRA training, SigLIP frozen, batch 32, remat", "35 % of the peak", _TRAINING, "train", {}),
  Figure("the same without remat", "", _TRAINING, "train_whole", {}),
  Figure("device memory, 3 cameras", "8,000 MB", "{peak_MB:,.0f} MB", "memory", {"what": "device"}),
  _ours("cuDNN's attention, 3 cameras", "", "cudnn"),
  _ours("cuDNN's attention, 2 cameras", "", "cudnn", cameras=2),
  _ours("int8 weights, 3 cameras", "", "int8"),
  _ours("pi0.5, 3 cameras", "", "pi05"),
  *(Figure(f"{what}, 3 cameras", "", _P50, "stages", {"what": what}) for what in (
    "vision", "vision and prefix", "denoising")),
  *(_ours(f"{steps} of 10 steps, 3 cameras", "", "steps", steps=steps) for steps in (5, 2, 1)),
  *(_ours(f"{batch} robots in one call, 3 cameras", "", "batches", batch=batch) for batch in (8, 64)),
  *(Figure(f"2 cameras, {what}, against ours", "", "{ratio_vs_ours:.2f}", "ablate", {"what": what}) for what in (
    "without packed layers", "with masked cameras", "with the last prefix layer's output",
    "state and time in each step")),
  Figure("openpi's recorded outputs, products at the highest precision", "0 over their gate", "{over} over their gate",
         "parity", {}),
  Figure("the same at the device's own precision", "", "{over} over their gate", "precision", {}),
  Figure("8 clients of `panda_small`, a window of 2 ms against one at a time", "", "{against_one_at_a_time:.2f}",
         "clients", {"clients": 8, "window_ms": 2}),
  Figure("search and steering of one decision, 10,000 records", "0.8 ms", "{total_p50_ms:.2f} ms", "retrieval",
         {"what": "decision", "size": "pi0", "records": 10_000}),
  Figure("peak of bfloat16 products", "", "{tflops:.0f} TFLOP/s", "peak", {"what": "matrix_bfloat16"}),
  Figure("peak of copies", "", "{tb_per_s:.2f} TB/s", "peak", {"what": "copy"}),
  Figure("one of many small launches", "", "{us:.1f} us", "peak", {"what": "launch"}))


def read(folder: pathlib.Path) -> dict[str, dict]:
  """Returns what each step measured; of one that was stopped, the rows that it had by then."""
  steps = {figure.step for figure in FIGURES}
  found = {step: [folder / f"{step}.json{end}" for end in ("", ".part")] for step in sorted(steps)}
  there = {step: next((path for path in paths if path.exists()), None) for step, paths in found.items()}
  return {step: json.loads(path.read_text(encoding="utf8")) for step, path in there.items() if path}


def check_fit_for_the_page(results: Mapping[str, dict]) -> None:
  """Raises Pi0RagError for figures of a CPU or of smaller models."""
  for step, result in results.items():
    devices = result["hardware"]["jax_devices"] or {"cpu": 1}
    if all(name.startswith("cpu") for name in devices):
      raise Pi0RagError(f"step {step} ran on {', '.join(devices)}: the page's table is of an accelerator")
    for row in result["rows"]:
      if row.get("size", FULL_SIZES[0]) not in FULL_SIZES:
        raise Pi0RagError(f"step {step} is of size {row['size']}: the page's table is of {', '.join(FULL_SIZES[:2])}")


def filled(page: str, results: Mapping[str, dict]) -> str:
  """Returns the page with every figure that is known in its line of the table."""
  lines = page.splitlines()
  for figure in FIGURES:
    places = [i for i, line in enumerate(lines) if line.startswith(f"| {figure.what} |")]
    if len(places) != 1:
      raise Pi0RagError(f"the page has {len(places)} lines of '{figure.what}', 1 is needed")
    if measured := figure.measured(results):
      lines[places[0]] = figure.line(measured)
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command."""
  parser = Parser(prog="eval.benchmarks.device", description="Prints the table of what an accelerator gave.")
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the steps' JSON")
  parser.add_argument("--fill", type=pathlib.Path, help="page whose table is filled, docs/speed.md")
  flags: argparse.Namespace = parser.parse_args(argv)
  results = read(flags.results)
  print("| | target | measured |\n|---|---|---|")
  for figure in FIGURES:
    print(figure.line(figure.measured(results)))
  if flags.fill:
    try:
      check_fit_for_the_page(results)
      files.write_text(flags.fill, filled(flags.fill.read_text(encoding="utf8"), results))
    except (Pi0RagError, OSError) as error:
      print(f"eval.benchmarks.device: {error}", file=sys.stderr)
      return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
