"""Command line: `python -m pi0rag_jax.study flow2d|policy`."""

import argparse
import sys
from collections.abc import Sequence

from pi0rag_jax.errors import Pi0RagError, exit_status


class Parser(argparse.ArgumentParser):
  """A parser that says what is wrong in one line."""

  def error(self, message: str):
    raise Pi0RagError(f"{message}; --help says more")


def flow2d(arguments) -> int:
  """Writes what flow matching and diffusion make of a distribution in the plane."""
  from pi0rag_jax.study import flow2d, flow2d_page, report

  if arguments.seeds < 1 or arguments.draws < 10 or arguments.training_steps < 1:
    raise Pi0RagError(f"seeds are {arguments.seeds}, draws {arguments.draws} and training_steps "
                      f"{arguments.training_steps}; allowed: 1, 10 and 1, or more")
  steps = _steps(arguments.steps)
  training = flow2d.Training(steps=arguments.training_steps)
  found = flow2d.study(training=training, steps=steps, draws=arguments.draws, seeds=arguments.seeds)
  headline = flow2d_page.headline(found)
  _tell(report.write(
    arguments.out, kicker="pi0rag_jax study: the flow in the plane", headline=headline, facts=flow2d_page.facts(found),
    sections=flow2d_page.sections(found), rows=found.rows, settings=found.settings), headline)
  return 0


def policy(arguments) -> int:
  """Writes what the flow of a policy does at some moments."""
  from pi0rag_jax.policy import directory
  from pi0rag_jax.study import chunks

  steps, spec = _steps(arguments.steps), directory.describe(arguments.policy, arguments.checkpoint)[0]
  chunks.check(spec, draws=arguments.draws, steps=steps)  # before gigabytes are read
  if arguments.moments < 1:
    raise Pi0RagError(f"moments are {arguments.moments}; allowed: 1 or more")
  from pi0rag_jax.policy import compiling
  from pi0rag_jax.study import policy_study

  compiling.keep_programs()
  page, headline = policy_study.run(arguments, spec, steps)
  _tell(page, headline)
  return 0


def _steps(text: str) -> tuple[int, ...]:
  """Returns the numbers of steps that a flag lists."""
  try:
    steps = tuple(sorted({int(part) for part in text.split(",")}))
  except ValueError:
    raise Pi0RagError(f"--steps is '{text}'; allowed: numbers such as 1,2,5,10,100") from None
  if steps[0] < 1 or len(steps) < 2:
    raise Pi0RagError(f"--steps is '{text}'; allowed: two numbers or more, each 1 or more")
  return steps


def _tell(page, headline: str) -> None:
  print(f"{headline}\nThe page, its pictures and {page.parent / 'summary.json'} are there: {page}")


def parser() -> argparse.ArgumentParser:
  """Returns the command line's parser; `run` in its result is the command."""
  top = Parser(prog="python -m pi0rag_jax.study", description="Explain flow matching by running it.",
               epilog="example: python -m pi0rag_jax.study flow2d --out=runs/flow2d")
  commands = top.add_subparsers(required=True, metavar="STUDY")
  text = "flow matching beside diffusion in the plane: paths, errors by steps, where z = 0 ends, and steering"
  plane = commands.add_parser("flow2d", help=text, description=text, epilog=f"example: {top.prog} flow2d")
  plane.set_defaults(run=flow2d)
  plane.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each kind (default 3)")
  plane.add_argument("--draws", type=int, default=1000, metavar="N", help="samples that are compared (default 1000)")
  plane.add_argument("--training_steps", type=int, default=2000, metavar="N", help="of each training (default 2000)")
  text = "the flow of a policy: chunks by step, how many ways it knows, where a memory moves it"
  of_policy = commands.add_parser(
    "policy", help=text, description=text, epilog=f"example: {top.prog} policy --policy=panda_small --memory=memory")
  of_policy.set_defaults(run=policy)
  _add_policy(of_policy)
  for command, name in ((plane, "flow2d"), (of_policy, "flow")):
    command.add_argument("--steps", default="1,2,5,10,100", metavar="1,2,...", help="of the flow, to be compared")
    command.add_argument("--out", default=f"runs/{name}", metavar="DIR", help=f"folder to write (default runs/{name})")
  return top


def _add_policy(command: argparse.ArgumentParser) -> None:
  command.add_argument("--policy", default="panda_small", help="any pi0 or pi0.5, as the server takes it")
  command.add_argument("--checkpoint", help="of an openpi configuration, as the server takes it")
  command.add_argument("--memory", metavar="MEMORY", help="of this policy")
  command.add_argument("--rule", default="residual", help="preset of the steering (default residual)")
  command.add_argument("--draws", type=int, default=64, metavar="N", help="of noise at each moment (default 64)")
  command.add_argument("--moments", type=int, default=8, metavar="N", help="of the episode, evenly spread (default 8)")
  command.add_argument("--world", help="whose robot sees them; by default the policy's own")
  command.add_argument("--task", help="of the world; by default the first that the policy was trained on")
  command.add_argument("--condition", default="nominal", help="of the world (default nominal)")
  command.add_argument("--seed", type=int, default=300_000, metavar="N", help="of the episode (default 300000)")
  command.add_argument("--data", metavar="DATA", help="recorded episodes instead of a world, of any format")
  command.add_argument("--episode", type=int, default=0, metavar="N", help="of --data (default 0)")
  for name in ("columns", "state", "actions", "prompt"):
    command.add_argument(f"--{name}", help="of --data, as pi0rag_jax.policy predict takes it")
  command.add_argument("--cameras", type=lambda text: tuple(filter(None, text.split(","))),
                       metavar="camera=STORED,...", help="of --data, as pi0rag_jax.policy predict takes it")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one study and returns the exit status: 2 for a user's mistake, with one line that says it."""

  def run() -> int:
    arguments = parser().parse_args(argv)
    return arguments.run(arguments)

  return exit_status(run)


if __name__ == "__main__":
  sys.exit(main())
