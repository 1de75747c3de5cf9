"""The summary's contract, the page that loads nothing, and sentences that stay honest."""

import dataclasses
import json
from html.parser import HTMLParser

import pytest
from rich.console import Console

from eval import stream
from eval.records import EpisodeRecord
from eval.report import headline, terminal_table, write_html, write_report
from eval.summary import summarize, write_summary
from pi0rag_jax.learning.online import Lesson
from pi0rag_jax.worlds.episode import Job, Trace

CELL_FIELDS = {
  "policy",
  "task",
  "condition",
  "stream",
  "stream_episodes",
  "n",
  "successes",
  "success_rate",
  "interval_95",
  "failures_removed_vs",
  "regressions_vs",
  "steps_mean",
  "failures_by_kind",
  "latency_ms",
  "crashed",
}
VOID = {"meta", "link", "img", "source", "br", "input", "hr"}


def episodes(policy, outcomes, *, condition="shift", stream="", **fields) -> list[EpisodeRecord]:
  """Returns one evaluation episode per letter: s(uccess), f(ailure) or c(rashed); the seed is its place."""
  names = {"s": "success", "f": "failure", "c": "crashed"}
  return [
    EpisodeRecord("eval", policy, "place", condition, stream, seed, seed, names[letter], **fields)
    for seed, letter in enumerate(outcomes)
  ]


def cell_of(summary, policy, condition="shift"):
  return next(c for c in summary["cells"] if (c["policy"], c["condition"]) == (policy, condition))


def test_summary_keeps_the_contract(run_records):
  summary = summarize(run_records, {"commit": None})
  assert {"cells", "streams", "provenance"} <= summary.keys()
  assert all(summary_cell.keys() >= CELL_FIELDS for summary_cell in summary["cells"])
  memory = cell_of(summary, "memory", "camera_shift")
  assert memory["latency_ms"].keys() == {"p50", "p95", "p99"} and memory["latency_ms"]["p50"] > 15
  assert memory["failures_removed_vs"].keys() == {"base", "base_z0", "textbook"}
  assert memory["stream_episodes"] == 60 and cell_of(summary, "base", "nominal")["stream_episodes"] == 0
  assert sum(memory["failures_by_kind"].values()) == memory["n"] - memory["successes"]
  json.dumps(summary, allow_nan=False)


def test_streams_tell_what_was_learned_at_what_cost(run_records):
  stream = next(s for s in summarize(run_records, {})["streams"] if s["stream"] == "nominal")
  assert [(b["start"], b["stop"], b["n"]) for b in stream["learning_curve"]] == [(0, 50, 49), (50, 60, 10)]
  assert stream["records"] == 720 and stream["memory_bytes"] == 4096 * 60 and stream["crashed"] == 1
  assert stream["corrected_episodes"] == sum(b["corrected"] for b in stream["learning_curve"])


def test_the_size_of_a_memory_can_be_given(run_records):
  streams = summarize(run_records, {}, memory_bytes={"nominal": 5})["streams"]
  assert [s["memory_bytes"] for s in streams] == [5, 4096 * 60, 4096 * 60]


def test_paired_numbers_by_hand():
  summary = summarize(episodes("base_z0", "ffffssss") + episodes("memory", "sssffsss", stream="a"), {})
  memory = cell_of(summary, "memory")
  assert memory["failures_removed_vs"] == {"base_z0": 0.5} and memory["regressions_vs"] == {"base_z0": 0.25}
  pair = memory["paired_vs"]["base_z0"]
  assert (pair["fixed"], pair["regressed"], pair["both_failed"], pair["both_succeeded"]) == (3, 1, 1, 3)
  assert cell_of(summary, "base_z0")["failures_removed_vs"] == {}


def test_a_crash_is_neither_a_success_nor_a_failure():
  records = episodes("base", "cfss", error="Traceback\nValueError: '/home/me/x'") + episodes("memory", "scss")
  summary = summarize(records, {})
  base, memory = cell_of(summary, "base"), cell_of(summary, "memory")
  assert (base["n"], base["successes"], base["crashed"]) == (3, 2, 1)
  assert base["success_rate"] == pytest.approx(2 / 3) and base["failures_by_kind"] == {"unspecified": 1}
  assert memory["paired_vs"]["base"]["n"] == 2, "a pair needs both sides"
  assert [crash["error"] for crash in summary["crashes"]] == ["ValueError: '…/x'", "no traceback"]


def test_what_was_partly_done_is_counted_where_the_world_tells(tmp_path):
  """By the record of a rollout's trace, which has what the world told."""
  cell = stream.Cell("eval", "base", "place", "shift")
  traces = [Trace(Job(seed, seed), outcome=outcome, partial=partial) for seed, (outcome, partial) in enumerate(
    (("success", True), ("failure", True), ("failure", False)))]
  told = [stream.episode_record(cell, trace, Lesson(), memory_records=0, tick_s=0.1) for trace in traces]
  summary = summarize(told + episodes("memory", "sff"), {})
  assert [cell_of(summary, name)["partial_successes"] for name in ("base", "memory")] == [2, None]
  path = tmp_path / "report.html"
  write_html(path, summary)
  assert path.read_text().count("partly done <b>1</b>") == 1


def test_only_crashes_leave_no_rate(tmp_path):
  summary = summarize(episodes("base_z0", "cc") + episodes("memory", "ss"), {})
  base = cell_of(summary, "base_z0")
  assert base["success_rate"] is None and base["interval_95"] == [0.0, 1.0] and base["steps_mean"] is None
  write_report(tmp_path, summary)


def test_the_order_of_policies_and_settings():
  records = episodes("memory", "s", condition="b") + episodes("base", "s", condition="a")
  records += episodes("base", "s", condition="b") + episodes("base_z0", "s", condition="b")
  order = [(c["condition"], c["policy"]) for c in summarize(records, {})["cells"]]
  assert order == [("b", "base"), ("b", "base_z0"), ("b", "memory"), ("a", "base")]


def test_a_textbook_baseline_is_that_of_the_same_stream():
  records = episodes("textbook", "ff", stream="a") + episodes("textbook", "ss", stream="b")
  summary = summarize(records + episodes("memory", "ss", stream="a"), {})
  assert cell_of(summary, "memory")["failures_removed_vs"] == {"textbook": 1.0}


@pytest.mark.parametrize(
  "before, after, words",
  [
    ("f" * 10 + "s" * 10, "s" * 20, "The memory removed 100 % of the failures of base (z=0)"),
    ("s" * 20, "f" * 10 + "s" * 10, "nothing to remove"),
    ("f" * 2 + "s" * 18, "f" * 12 + "s" * 8, "made things worse than base (z=0)"),
    ("f" * 10 + "s" * 10, "s" + "f" * 9 + "s" * 10, "no clear difference"),
  ],
)
def test_the_headline_tells_how_it_went(before, after, words):
  summary = summarize(episodes("base_z0", before) + episodes("memory", after), {})
  assert words in headline(summary)


def test_the_headline_of_several_settings_counts_both_sides():
  records = []
  for condition, after in (("a", "s" * 14), ("b", "f" * 14)):
    records += episodes("base_z0", "fffffffsssssss", condition=condition)
    records += episodes("memory", after, condition=condition)
  expected = "The memory clearly helped in 1 of 2 settings and clearly hurt in 1, compared with base (z=0)."
  assert headline(summarize(records, {})) == expected


def test_what_is_clear_is_so_for_all_settings_together():
  records = []
  for condition in "ab":  # 6 of 6 mended: 0.03 each, 0.06 among two
    records += episodes("base_z0", "f" * 6, condition=condition) + episodes("memory", "s" * 6, condition=condition)
  summary = summarize(records, {})
  assert headline(summary).startswith("The memory made no clear difference in any of 2 settings")
  pair = cell_of(summary, "memory", "a")["paired_vs"]["base_z0"]
  assert (pair["p_value"], pair["p_holm"]) == (pytest.approx(2 / 64), pytest.approx(4 / 64))


def test_a_cell_that_was_stopped_says_so(tmp_path):
  records = episodes("base_z0", "f" * 30) + episodes("memory", "s" * 8, stream="a", stream_episodes=5)
  planned = {("place", "shift", "base_z0", "", 0): 30, ("place", "shift", "memory", "a", 5): 30}
  summary = summarize(records, {}, planned=planned, stop_early=True)
  base, memory = cell_of(summary, "base_z0"), cell_of(summary, "memory")
  assert not base["stopped_early"] and memory["stopped_early"] and memory["planned"] == 30
  low, high = memory["interval_anytime_95"]
  assert low < memory["interval_95"][0] and high == 1, "watching costs width"
  pair = memory["paired_vs"]["base_z0"]
  assert pair["p_holm"] == pair["p_value_anytime"] < 0.05 and pair["p_value"] < pair["p_value_anytime"]
  assert pair["better_of_changed"] == 1 and pair["better_of_changed_interval_95"][0] > 0.5
  console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
  console.print(terminal_table(summary))
  assert "8 of 30" in console.export_text()
  write_html(tmp_path / "report.html", summary)
  text = (tmp_path / "report.html").read_text()
  assert "of 30: stopped early" in text and "p values that hold at every look" in text
  assert "stopped early</span>" not in _html(tmp_path, summarize(records, {}))


def _html(folder, summary) -> str:
  write_html(folder / "other.html", summary)
  return (folder / "other.html").read_text()


def test_bad_news_comes_first():
  records = []
  for condition in "ab":
    records += episodes("base_z0", "s" * 12, condition=condition) + episodes("memory", "f" * 12, condition=condition)
  assert headline(summarize(records, {})).startswith("The memory clearly hurt in 2 of 2 settings")


def test_without_a_control_there_is_no_claim():
  assert "nothing to compare" in headline(summarize(episodes("memory", "sss"), {}))
  assert "nothing to compare" in headline(summarize([], {}))


def test_summary_is_written_whole(tmp_path, run_records):
  path = tmp_path / "summary.json"
  path.write_text("old")
  summary = summarize(run_records, {"commit": None})
  write_summary(path, summary)
  assert json.loads(path.read_text()) == summary and list(tmp_path.iterdir()) == [path]


def test_the_table_renders_in_80_columns(run_records):
  console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
  console.print(terminal_table(summarize(run_records, {})))
  text = console.export_text()
  assert "place, camera_shift" in text and "textbook blend" in text and "…" not in text


class Page(HTMLParser):
  """Collects every tag, every address that a browser would load, and the tags left open."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.loads, self.open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.loads += [value for name, value in attrs if name in ("src", "srcset", "href", "data", "poster")]
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path, run_records, clip):
  write_report(tmp_path, summarize(run_records, {"configuration": {"steps": 3}}), [clip])
  text = (tmp_path / "report.html").read_text()
  page = Page(text)
  assert not page.open and page.loads and all(address.startswith("data:") for address in page.loads)
  assert "url(" not in text and "@import" not in text and "<script" not in text
  images = [attrs for tag, attrs in page.tags if tag == "img"]
  assert len(images) == 11 and all(attrs["alt"] for attrs in images)
  assert {"success.png", "learning_curve.png", "latency.png"} <= {path.name for path in tmp_path.iterdir()}


def test_texts_of_the_run_are_escaped(tmp_path, run_records, clip):
  evil = "<script>alert(1)</script>\"'><img src=http://x.test/a>"
  renamed = [dataclasses.replace(r, task=evil, failure_kind=r.failure_kind and evil) for r in run_records]
  renamed = [dataclasses.replace(r, error=f"Error: {evil}") if r.crashed else r for r in renamed]
  summary = summarize(renamed, {"configuration": {"prompt": evil}})
  write_html(tmp_path / "report.html", summary, [clip | {"title": evil, "outcome_with": evil}])
  text = (tmp_path / "report.html").read_text()
  assert "<script" not in text and "&lt;script&gt;" in text
  assert all(address.startswith("data:") for address in Page(text).loads)


def test_an_empty_run_makes_a_page(tmp_path):
  write_report(tmp_path, summarize([], {}))
  assert "nothing to compare" in (tmp_path / "report.html").read_text()
