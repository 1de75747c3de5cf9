"""Command line: `python -m pi0rag_jax.policy inspect|export|predict`.

The last two lie above the policy, in `serving` and `learning`, and are imported when they run.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
import sys

from pi0rag_jax.errors import Pi0RagError, exit_status


def inspect(arguments) -> int:
  """Prints what the policy is made of, without loading it; with `--latency` what its stages take."""
  from absl import logging

  from pi0rag_jax.policy import inspection

  logging.set_verbosity(logging.ERROR)  # Orbax warns of what its older versions did not write
  found = inspection.inspect(arguments.policy, arguments.checkpoint)
  if arguments.latency:
    from pi0rag_jax.policy import compiling, directory

    compiling.keep_programs()
    found["latency_ms"] = inspection.latency(directory.load(arguments.policy, checkpoint=arguments.checkpoint))
  print(json.dumps(found, indent=1) if arguments.json else inspection.in_words(found))
  return 0


def export(arguments) -> int:
  """Writes the policy's programs and parameters, and what runs them without this package."""
  from pi0rag_jax.serving import export
  from pi0rag_jax.steering import retrieval, rules

  policy = _load(arguments)
  prompts = list(arguments.prompts)
  of_memory = {}
  if arguments.memory:
    with _memory(arguments, policy) as memory:
      prompts += sorted({record.prompt for _, record in memory.records()} - {""})
      unit = policy.unit_distance or float(retrieval.UnitDistance(memory))
      of_memory = {"unit_distance": unit, "chunk_dtype": memory.header.chunk_dtype}
    if math.isinf(unit):
      raise Pi0RagError(f"the memory in {_address(arguments)} has no records of two episodes: what is near cannot be "
                        "measured yet")
  names = export.write(policy, arguments.out, rule=rules.preset(arguments.rule), platforms=arguments.platforms,
                       prompts=prompts, lengths=arguments.lengths, **of_memory)
  folder = pathlib.Path(arguments.out).expanduser()
  size = sum(path.stat().st_size for path in folder.iterdir())
  print(f"{len(names)} programs ({', '.join(names)}) and parameters, {size / 1e6:.3g} MB, are in {folder}; try them: "
        f"python {folder / 'run.py'}")
  return 0


def predict(arguments) -> int:
  """Writes what the policy would do at the frames of a data set."""
  from pi0rag_jax import files
  from pi0rag_jax.learning import accuracy, interventions, predict
  from pi0rag_jax.policy import compiling
  from pi0rag_jax.steering.agent import Agent

  compiling.keep_programs()
  policy = _load(arguments)
  dataset, to_robot = interventions.opened(arguments, policy)
  with contextlib.ExitStack() as opened:
    memory = opened.enter_context(_memory(arguments, policy)) if arguments.memory else None
    agent = Agent(policy, memory, arguments.rule)
    opened.callback(agent.close)
    counts = predict.predict(agent, dataset, arguments.out, to_robot=to_robot, stride=arguments.stride,
                             batch=arguments.batch, progress=_show)
  print(f"{counts.decisions} decisions in {counts.episodes} episodes are in {arguments.out}"
        + (f", {counts.found} episodes were there already" if counts.found else ""))
  for what, reason in dataset.damaged.items():
    print(f"left out: {what}: {reason}")
  if arguments.tolerance:
    found = accuracy.measure(arguments.out, dataset, policy.space, steps=arguments.steps or policy.spec.execute_steps,
                             tolerance=arguments.tolerance)
    files.write_json(pathlib.Path(arguments.out).expanduser() / accuracy.FILE_NAME, dataclasses.asdict(found))
    low, high = found.interval_95
    print(f"{found.right:.1%} ({low:.1%} to {high:.1%}) of {found.steps} steps are right: each entry within "
          f"{arguments.tolerance:.0%} of its range")
  return 0


def _show(done: int, episodes: int, rate: float) -> None:
  print(f"episode {done} of {episodes}, {rate:.3g} decisions per s", file=sys.stderr, flush=True)


def _load(arguments):
  from pi0rag_jax.policy import directory
  from pi0rag_jax.steering.agent import start_with

  spec, _ = directory.describe(arguments.policy, arguments.checkpoint)
  return directory.load(
    arguments.policy, checkpoint=arguments.checkpoint, key_name=arguments.key_name, weights=arguments.weights,
    start=start_with(_address(arguments), spec, arguments.start), default_prompt=arguments.prompt)


def _address(arguments):
  from pi0rag_jax.memory import address

  return address.given(arguments)


def _memory(arguments, policy):
  from pi0rag_jax.memory.memory import Memory

  return Memory.open(_address(arguments), create=False, read_only=True, **policy.memory_header())


def parser() -> argparse.ArgumentParser:
  """Returns the command line's parser; `run` in its result is the command."""
  top = argparse.ArgumentParser(
    prog="python -m pi0rag_jax.policy", description="Look into a policy, take it elsewhere, or ask it.",
    epilog="example: python -m pi0rag_jax.policy inspect panda_small")
  commands = top.add_subparsers(required=True, metavar="COMMAND")
  _add_inspect(commands, top.prog)
  added = {}
  for name, run, example, text in (
    ("export", export, "--policy=panda_small --platforms=cpu,cuda --out=exported",
     "write StableHLO programs, parameters and a runner that needs none of this package"),
    ("predict", predict, "--policy=panda_small --data=recordings --stride=10 --out=predictions",
     "write what the policy would do at the frames of a data set; killed, it goes on where it was"),
  ):
    command = added[name] = commands.add_parser(name, help=text, description=text,
                                                epilog=f"example: {top.prog} {name} {example}")
    command.set_defaults(run=run)
    command.add_argument("--policy", required=True, help="any, as the server takes it")
    command.add_argument("--checkpoint", help="of an openpi configuration, as the server takes it")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    command.add_argument("--memory", metavar="MEMORY", help="of this policy: a folder, or an address on a server")
    command.add_argument("--memory_credentials", metavar="FILE", help="passwords of a memory on a server")
    command.add_argument("--memory_version", type=int, metavar="N", help="read a memory on a server as it was then")
    command.add_argument("--rule", default="residual", help="preset of the steering (default residual)")
    command.add_argument("--key_name", default="", help="key statistics of the policy; its own by default")
    command.add_argument("--start", help="where the flow starts: zero, draw:SEED or new; the policy's own by default")
    command.add_argument("--weights", help="how matrices are stored: int8, w8a8, fp8 or bfloat16")
    command.add_argument("--prompt", help="where an observation has none")
  added["export"].add_argument("--platforms", type=_names, default=(), metavar="cpu,cuda,tpu",
                               help="to run on; this machine's by default")
  added["export"].add_argument("--lengths", type=_counts, default=(), metavar="16,32",
                               help="of padded prompts, in tokens; all by default")
  added["export"].add_argument("--prompts", action="append", default=[], metavar="TEXT",
                               help="that the runner knows without a tokenizer; may be repeated; those of --memory too")
  _add_predict(added["predict"])
  return top


def _add_inspect(commands, program: str) -> None:
  text = "say what a policy is made of, without loading it: parameters, FLOPs, tokens, robot, doubtful statistics"
  command = commands.add_parser(
    "inspect", help=text, description=text,
    epilog=f"example: {program} inspect pi0_aloha_sim --checkpoint=checkpoints/pi0_aloha_sim/20000")
  command.set_defaults(run=inspect)
  command.add_argument("policy", metavar="POLICY", help="any, as the server takes it, or a checkpoint alone")
  command.add_argument("--checkpoint", help="of an openpi configuration, as the server takes it")
  command.add_argument("--latency", action="store_true", help="load it too, and time its stages on this machine")
  command.add_argument("--json", action="store_true", help="print JSON")


def _add_predict(command: argparse.ArgumentParser) -> None:
  command.add_argument("--data", required=True, metavar="DATA", help="of any format that pi0rag_jax.data reads")
  command.add_argument("--stride", type=_count, metavar="N", help="frames between two decisions (default 1)")
  command.add_argument("--batch", type=_count, default=32, metavar="N", help="frames seen at once (default 32)")
  command.add_argument("--tolerance", type=float, metavar="SHARE", help="say how many steps are right: no entry off "
                       "by more than this share of its range, such as 0.1")
  command.add_argument("--steps", type=_count, metavar="N", help="of a chunk, for --tolerance (default: as executed)")
  command.add_argument("--columns", help="the robot's keys by the data set's columns, JSON; by default as the policy's "
                       "configuration says in `repack`")
  command.add_argument("--state", help="without columns, the stored field of the state")
  command.add_argument("--actions", help="stored field of the actions")
  command.add_argument("--cameras", type=_names, metavar="camera=STORED,...",
                       help="the policy's cameras and those stored; by default as in its training, or of one name")
  command.add_argument("--fps", type=float, help="frames per second, where the data set says none or a wrong one")
  command.add_argument("--skip_bad", action="store_true", help="leave damaged episodes out instead of stopping")


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status: 2 for a user's mistake, with one line that says it."""
  arguments = parser().parse_args(argv)
  return exit_status(lambda: arguments.run(arguments))


def _names(text: str) -> tuple[str, ...]:
  return tuple(filter(None, text.split(",")))


def _counts(text: str) -> tuple[int, ...]:
  return tuple(map(_count, _names(text)))


def _count(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{text} is no count, allowed: 1 or more")
  return value


if __name__ == "__main__":
  sys.exit(main())
