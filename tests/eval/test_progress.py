"""Progress in a log file and in a terminal."""

import io

from rich.console import Console

from eval.progress import SweepProgress, format_pace


class Clock:
  """A clock that stands still until it is moved."""

  def __init__(self):
    self.now_s = 100.0

  def __call__(self) -> float:
    return self.now_s


def test_a_log_file_gets_few_plain_lines():
  clock, out = Clock(), io.StringIO()
  with SweepProgress(Console(file=out, width=40), clock=clock, interval_s=30) as progress:
    stage = progress.stage("eval [memory]", 120, done=20)
    for _ in range(100):
      clock.now_s += 1
      stage.advance(note="91 % succeeded")
  lines = out.getvalue().splitlines()
  assert lines[0] == "eval [memory]: 100 of 120 episodes to run"
  expected = "eval [memory]: 50/120 (42 %), 1.0 episodes/s, 0:01:10 left, 91 % succeeded"
  assert lines[1] == expected, "the rate leaves out what an earlier run did"
  assert lines[-1].startswith("eval [memory]: 120/120 (100 %)") and len(lines) == 5


def test_a_terminal_gets_bars():
  out = io.StringIO()
  console = Console(file=out, force_terminal=True, width=100)
  with SweepProgress(console) as progress:
    stage = progress.stage("stream [a]", 2)
    stage.advance(2)
    progress.log("saved [all]")
  assert "stream [a]" in out.getvalue() and "2/2" in out.getvalue() and "saved [all]" in out.getvalue()


def test_a_finished_stage_needs_no_work():
  out = io.StringIO()
  with SweepProgress(Console(file=out)) as progress:
    progress.stage("eval", 5, done=5)
    progress.stage("none", 0)
  assert "0 of 5 episodes to run" in out.getvalue()


def test_slow_episodes_are_told_in_seconds():
  assert (format_pace(2.5), format_pace(0.1), format_pace(None)) == ("2.5 episodes/s", "10.0 s/episode", "")
