"""`pi0rag COMMAND` is `python -m MODULE`, and every command's --help shows how it is called."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

from pi0rag_jax import __main__ as commands

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def run(monkeypatch, capsys):
  """Returns (status, stdout, stderr) of a command in this process."""

  def call(*arguments):
    monkeypatch.setattr(sys, "argv", ["pi0rag"])
    monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
    try:
      status = commands.main([*arguments])
    except SystemExit as end:
      status = end.code
    return (status, *capsys.readouterr())

  return call


def source(module: str) -> str:
  path = ROOT / module.replace(".", "/")
  return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf8")


@pytest.mark.parametrize("command", commands.COMMANDS.values(), ids=lambda command: command.module)
def test_help_shows_an_example(command):
  """absl's --help prints the docstring; argparse's the epilog, or the docstring as its description."""
  text = source(command.module)
  told = ast.get_docstring(ast.parse(text)) or ""
  if "argparse" in text and "description=__doc__" not in text:
    told = " ".join(re.findall(r'epilog=f?"example: (.*)"', text))
  assert re.search(rf"python -m\s+{command.module}\s+(--)?\w", " ".join(told.split())), told


def test_who_reads_the_list_may_stop():
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run([sys.executable, "-m", "pi0rag_jax", "--help"], stdout=write, stderr=subprocess.PIPE, text=True,
                        check=False)
  os.close(write)
  assert (done.returncode, done.stderr) == (0, "")


def test_the_list_names_every_command(run):
  status, out, _ = run("--help")
  assert status == 0 and all(f"  {name} " in out and command.text in out for name, command in commands.COMMANDS.items())
  status, out, err = run()
  assert status == 2 and not out and "usage: pi0rag COMMAND" in err
  assert run("swep")[0::2] == (2, f"pi0rag: unknown command 'swep'. Did you mean 'sweep'? Valid names: "
                                  f"{', '.join(sorted(commands.COMMANDS))}\n")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_command_runs_as_its_module(run):
  status, out, _ = run("memory", "explain", "--help")
  assert status == 0 and "example: python -m pi0rag_jax.memory explain memory --ids=1,2" in out
  assert sys.argv == ["pi0rag memory", "explain", "--help"]
  status, _, err = run("memory", "inspect", "nowhere")
  assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
