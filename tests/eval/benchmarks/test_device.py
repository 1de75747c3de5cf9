"""The plan of `device.sh` and the table that it fills: commands are read, none is run."""

import json
import os
import pathlib
import re
import subprocess

import pytest

from eval import bench
from eval.benchmarks import device

REPOSITORY = pathlib.Path(__file__).parents[3]
SCRIPT = REPOSITORY / "eval/benchmarks/device.sh"
# Flags that name the rows of a benchmark, by the column that says which one it is.
ROWS = {"cameras": "cameras", "steps": "steps", "batch": "batches", "rate_hz": "rates", "window_ms": "windows"}
PYTHON = """#!/bin/sh
for word; do case $word in --out=*) out=${word#--out=} ;; esac; done
case "$*" in *--kernel=cudnn*) echo refused; exit 2 ;; esac
[ -z "$out" ] || echo "$*" > "$out"
"""


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
  return subprocess.run(["bash", SCRIPT, *arguments], env=os.environ | variables, capture_output=True, text=True)


def plan(**variables: str) -> dict[str, list[str]]:
  lines = [line.split() for line in script("--list", **variables).stdout.splitlines()]
  assert all(5 <= int(seconds) <= 200 for _, seconds, *_ in lines)
  assert len({name for name, *_ in lines}) == len(lines)
  return {name: command for name, _, *command in lines}


@pytest.mark.parametrize("variables", [{"OPENPI": "checkout"}, {"REHEARSE": "1", "SIZES": "dummy"}])
def test_every_step_is_a_command_there_is(variables):
  flags_of_parity = set(re.findall(r'DEFINE_\w+\("(\w+)"', (REPOSITORY / "eval/parity.py").read_text()))
  for name, (_, _, module, *arguments) in plan(**variables).items():
    assert arguments[-1].endswith(f"device/{name}.json")
    if module == "eval.bench":
      bench.make_parser().parse_args(arguments)
    else:
      given = [argument.removeprefix("--").split("=") for argument in arguments]
      assert module == "eval.parity" and {flag for flag, _ in given} <= flags_of_parity
      assert all((REPOSITORY / value / "io.npz").exists() for flag, value in given if flag == "case")


def test_every_figure_is_of_a_row_that_a_step_has():
  steps = {name: arguments for name, (_, _, _, *arguments) in plan(OPENPI="checkout").items()}
  assert steps.keys() == {figure.step for figure in device.FIGURES}
  for figure in device.FIGURES:
    if figure.step not in ("parity", "precision"):
      flags = vars(bench.make_parser().parse_args(steps[figure.step]))
      assert all(value in flags[ROWS[name]] for name, value in figure.where.items() if name in ROWS), figure.what


def test_a_second_run_does_what_is_left(tmp_path):
  python = tmp_path / "python"
  python.write_text(PYTHON)
  python.chmod(0o755)
  places = {"PYTHON": str(python), "RESULTS": str(tmp_path / "out"), "SCRATCH": str(tmp_path / "scratch")}
  late = script(REHEARSE="1", DEVICE_SECONDS="9", **places)
  assert late.returncode == 1 and "latency      left out: no time" in late.stdout
  first, second = script(**places), script(**places)
  names = plan(**places).keys()
  assert {path.stem for path in (tmp_path / "out").iterdir()} == names - {"cudnn"}
  assert re.search(r"cudnn +[0-9] s: refused", first.stdout) and "there already" not in first.stdout
  assert second.stdout.count("there already") == len(names) - 1
  assert second.returncode == 1 and f"{len(names) - 1} steps measured, 1 missing" in second.stdout


def test_wrong_use_is_one_line():
  for said, run in {"jax sees no accelerator": script(PYTHON="false"), "allowed: --list": script("--all"),
                    "allowed: pi0, midsize, dummy": script(SIZES="huge")}.items():
    assert run.returncode == 2 and said in run.stderr and run.stderr.count("\n") == 1 and not run.stdout


def results(folder: pathlib.Path, rows: list[dict], *, name: str = "latency.json", on: str = "gpu: H200") -> None:
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(json.dumps({"hardware": {"jax_devices": {on: 1}}, "rows": rows}))


def test_the_page_is_filled_with_what_there_is(tmp_path, capsys):
  page, blank = tmp_path / "speed.md", (REPOSITORY / "docs/speed.md").read_text()
  page.write_text(blank)
  run = lambda: device.main([f"--results={tmp_path / 'out'}", f"--fill={page}"])  # noqa: E731
  ours = {"size": "pi0", "what": "ours", "p50_ms": 12.34, "of_roofline": 0.5432}
  results(tmp_path / "out", [{**ours, "cameras": 2}, {**ours, "cameras": 3, "p50_ms": 15}])
  cycles = {"rate_hz": 40, "missed": 1, "p99_ms": 14, "host_work_p50_ms": 0.5}
  results(tmp_path / "out", [cycles], name="loop.json.part")
  results(tmp_path / "out", [{"what": "device", "size": "pi0"}], name="memory.json")  # of a device that counts no bytes
  assert run() == 0
  lines = page.read_text().splitlines()
  wanted = {"| 2 cameras, p50 | 10 ms, then 7.5 | 12.3 ms, 0.54 of the limit |",
            "| 3 cameras, p50 | 13 ms, then 10 | 15.0 ms, 0.54 of the limit |",
            "| 40 Hz with retrieval, 1,000 cycles | no miss, p99 15 ms | 1 missed, p99 14.0 ms |",
            "| host time of a call outside device work | 1 ms | 0.50 ms |"}
  assert wanted <= set(lines) and len(lines) == len(blank.splitlines())
  for rows, on, said in (([], "cpu: cpu", "ran on cpu: cpu"), ([{"size": "dummy"}], "gpu: H200", "is of size dummy")):
    results(tmp_path / "out", rows, on=on)
    capsys.readouterr()
    assert run() == 2 and said in capsys.readouterr().err and page.read_text().splitlines() == lines
