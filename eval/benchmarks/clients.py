"""`clients`: several clients of one server, who ask as often as they are answered, one at a time or by windows."""

import argparse
import contextlib
import pathlib
import tempfile
import threading
import time

from eval.benchmarks import timing
from eval.benchmarks.teaching import HOST, POLICY, observations, serving
from pi0rag_jax.serving.client import WebsocketClientPolicy


def clients(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for one client, and for `--robots` of them with each of `--windows`, ms; 0 is one at a time."""
  seen = observations()
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
    ports = {window: opened.enter_context(serving(pathlib.Path(folder), None, f"--batch_window_ms={window}"))
             for window in flags.windows}
    seconds = 60.0 * flags.minutes / (1 + len(flags.windows))
    rows = [_row(ports[window], count, window, seen, seconds) for count, window in (
      (1, flags.windows[0]), *((flags.robots, window) for window in flags.windows))]
  alone = rows[1]["per_second"] if flags.windows[0] == 0 else rows[0]["per_second"]
  return [{**row, "against_one_at_a_time": round(row["per_second"] / alone, 3)} for row in rows]


def _row(port: int, count: int, window: int, seen: list[dict], seconds: float) -> dict:
  taken_ms: list[list[float]] = [[] for _ in range(count)]

  def live(times: list[float], until_s: float) -> None:
    with contextlib.closing(WebsocketClientPolicy(HOST, port)) as robot:
      while time.perf_counter() < until_s:
        start_s = time.perf_counter()
        robot.infer(seen[len(times) % len(seen)])
        times.append(1000 * (time.perf_counter() - start_s))

  until_s = time.perf_counter() + seconds
  robots = [threading.Thread(target=live, args=(times, until_s)) for times in taken_ms]
  for robot in robots:
    robot.start()
  for robot in robots:
    robot.join()
  every = [ms for times in taken_ms for ms in times]
  return {"policy": POLICY, "clients": count, "window_ms": window, "decisions": len(every),
          "per_second": round(len(every) / seconds, 1), **timing.summary(every),
          "fewest_of_a_client": min(map(len, taken_ms)), "most_of_a_client": max(map(len, taken_ms))}
