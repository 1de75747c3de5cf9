"""What a compiler made of a program, read from the text of its optimized HLO: kernels, loops, moves and collectives."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterator

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What takes no launch of its own: names of data, what a TPU fetches beside its work, and the ends of what was started.
_FREE = frozenset({
  "copy-start", "slice-start", "slice-done",
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
  "opt-barrier", "partition-id", "replica-id", "copy-done", "async-done", "async-update", "all-gather-done",
  "all-reduce-done", "collective-permute-done"})
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# A fusion of these alone computes nothing.
_MOVES = frozenset({
  "copy", "transpose", "concatenate", "slice", "dynamic-slice", "convert", "pad", "broadcast", "reshape", "reverse"})


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  shape: str  # of the result, as text
  op: str
  rest: str  # operands, attributes and metadata

  def called(self, *kinds: str) -> list[str]:
    """Returns the computations that the instruction names as one of some kinds, such as `body`."""
    named = [re.findall(rf"\b{kind}=(%?[\w.\-]+|\{{[^}}]*\}})", self.rest) for kind in kinds]
    return [name for groups in named for group in groups for name in re.findall(r"[\w.\-]+", group)]

  @property
  def arrays(self) -> list[tuple[int, int]]:
    """(entries, bytes) of each array of the result."""
    return [_size(*found) for found in _ARRAY.findall(self.shape)]


@dataclasses.dataclass(frozen=True)
class Run:
  """A computation that the device runs, and how often one call of the program does."""

  name: str
  times: int
  in_loop: bool
  instructions: tuple[Instruction, ...]  # those of computations that it calls among them


@dataclasses.dataclass(frozen=True)
class Move:
  """An instruction that moves an array."""

  name: str
  in_loop: bool


class Program:
  """The text, by computation."""

  def __init__(self, text: str):
    self._computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
      header = _HEADER.match(line)
      if header:
        current = self._computations.setdefault(header[2], [])
        self._entry = header[2] if header[1] else getattr(self, "_entry", header[2])
        continue
      instruction = _INSTRUCTION.match(line)
      if instruction:
        current.append(Instruction(*instruction.groups()))

  @functools.cached_property
  def runs(self) -> list[Run]:
    """The entry, then the bodies of loops."""
    return list(self._runs(self._entry, 1, in_loop=False))

  @property
  def trip_counts(self) -> list[int]:
    """Of each loop whose count is known; 0 for another one."""
    return [self._trips(loop) for run in self.runs for loop in run.instructions if loop.op == "while"]

  def kernels(self, run: Run) -> int:
    """Returns how many operations the device is asked for, one launch each where nothing records them."""
    return sum(_is_kernel(instruction) for instruction in run.instructions)

  @property
  def graphs(self) -> int:
    """Stretches without a loop's turn between them, each of which a GPU may be given as one recorded graph."""
    total = 0
    for run in self.runs:
      marks = "".join("|" if each.op == "while" else "k" for each in run.instructions
                      if each.op == "while" or _is_kernel(each))
      total += run.times * len([stretch for stretch in marks.split("|") if stretch])
    return total

  def moves(self, entries: Collection[int]) -> list[Move]:
    """Returns what moves or converts an array of so many entries, as a weight has, and computes nothing."""
    return [Move(each.name, run.in_loop) for run in self.runs for each in run.instructions
            if self._moves(each) and any(count in entries for count, _ in each.arrays)]

  def collectives(self) -> dict[str, tuple[int, int]]:
    """Returns (how many, their bytes) by kind in one call; of what is gathered or reduced the whole counts."""
    count, nbytes = collections.Counter(), collections.Counter()
    for run in self.runs:
      sizes = {each.name: sum(size for _, size in each.arrays) for each in run.instructions}
      for each in run.instructions:
        kind = each.op.removesuffix("-start")
        if kind in _COLLECTIVES:
          operands = sum(sizes.get(name, 0) for name in re.findall(r"%?([\w.\-]+)", each.rest.split("), ")[0]))
          # What is started has operands and results side by side.
          result = sizes[each.name] - (operands if each.op != kind and each.shape.startswith("(") else 0)
          count[kind] += run.times
          nbytes[kind] += run.times * max(result, operands)
    return {kind: (count[kind], nbytes[kind]) for kind in count}

  def cycles(self, run: Run) -> int:
    """Returns the cycles that a TPU's compiler expects of one turn, 0 where it says none."""
    return sum(int(found[1]) for each in run.instructions if (found := _CYCLES.search(each.rest)))

  def _runs(self, name: str, times: int, *, in_loop: bool) -> Iterator[Run]:
    instructions = tuple(self._inlined(name))
    yield Run(name, times, in_loop, instructions)
    for loop in instructions:
      if loop.op == "while":
        for body in loop.called("body"):
          yield from self._runs(body, times * max(self._trips(loop), 1), in_loop=True)

  def _trips(self, loop: Instruction) -> int:
    """Returns how often a loop turns: as the compiler says, or up to the only number that its condition knows."""
    found = _TRIPS.search(loop.rest)
    if found:
      return int(found[1])
    condition = [each for name in loop.called("condition") for each in self._computations.get(name, ())]
    limits = [each.rest.split(")")[0] for each in condition if each.op == "constant"]
    counts_up = any(each.op == "compare" and "direction=LT" in each.rest for each in condition)
    return int(limits[0]) if counts_up and len(limits) == 1 and limits[0].isdigit() else 0

  def _inlined(self, name: str) -> Iterator[Instruction]:
    for instruction in self._computations.get(name, ()):
      yield instruction
      if instruction.op in ("call", "conditional", "async-start"):
        for inner in instruction.called("to_apply", "calls", "branch_computations", "true_computation",
                                        "false_computation"):
          yield from self._inlined(inner)

  def _moves(self, instruction: Instruction) -> bool:
    if instruction.op != "fusion":
      return instruction.op in _MOVES
    inner = [each.op for name in instruction.called("calls") for each in self._computations.get(name, ())]
    return not set(inner) - _MOVES - _FREE and bool(set(inner) & _MOVES)


def _is_kernel(instruction: Instruction) -> bool:
  return instruction.op not in _FREE and "ConcatBitcast" not in instruction.rest


def _size(dtype: str, dims: str) -> tuple[int, int]:
  """Returns (entries, bytes) of an array."""
  count = math.prod(int(dim) for dim in dims.split(",") if dim)
  bits = re.search(r"\d+", dtype)
  return count, math.ceil(count * _BYTES.get(dtype, int(bits[0]) / 8 if bits else 0))
