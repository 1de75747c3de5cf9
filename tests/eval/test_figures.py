"""Charts of a summary: what is drawn of which policy."""

import dataclasses

import pytest
from PIL import Image

from eval import figures
from eval.summary import summarize
from pi0rag_jax.pages import panels


@pytest.fixture
def summary(run_records):
  return summarize(run_records, {})


def test_every_setting_stream_and_policy_has_a_panel_with_words(summary):
  counts = {name: len(make(summary)) for name, make in figures.CHARTS.items()}
  assert counts == {"success": 3, "frozen": 0, "learning_curve": 3, "latency": 4}
  rate = next(c for c in summary["cells"] if (c["policy"], c["condition"]) == ("memory", "camera_shift"))
  alt = figures.success_panels(summary)[1].alt
  assert "camera_shift" in alt and f"memory {100 * rate['success_rate']:.1f} %" in alt


def test_a_memory_that_was_evaluated_while_it_learned_has_a_curve_from_the_policy_without_it(run_records):
  early = [dataclasses.replace(r, stream_episodes=20) for r in run_records
           if (r.phase, r.policy, r.condition) == ("eval", "memory", "camera_shift")]
  (panel,) = figures.frozen_panels(summarize([*run_records, *early], {}))
  curve = panel.alt[panel.alt.index("camera_shift: ") :].split(";")[0]
  assert [part.split(" after ")[1] for part in curve.rstrip(".").split(", ")] == ["0", "20", "60"]
  assert panels.svg(panel).startswith("<?xml")


def test_the_reference_of_a_stream_is_the_harder_control(summary):
  reference = next(c for c in summary["cells"] if (c["policy"], c["condition"]) == ("base_z0", "camera_shift"))
  text = panels.svg(figures.learning_panels(summary)[1])
  assert f"base (z=0), evaluated: {100 * reference['success_rate']:.1f} %" in text


def test_a_stream_is_named_only_where_there_are_several():
  one = {"task": "place", "condition": "shift", "stream": "a"}
  assert figures.stream_label(one, [one]) == "place, shift"
  assert figures.stream_label(one, [one, one | {"stream": "b"}]) == "place, shift (a)"


def test_names_are_text_not_markup_or_mathematics(summary):
  for cell in summary["cells"]:
    cell["policy"] = "<script>$x$ & $"
  text = panels.svg(figures.success_panels(summary)[0])
  assert "<script>" not in text and "&lt;script&gt;$x$ &amp; $" in text


def test_pngs_are_written_for_what_there_is(tmp_path, summary):
  written = panels.write_pngs(tmp_path, summary, figures.CHARTS)
  assert [path.name for path in written] == ["success.png", "learning_curve.png", "latency.png"]
  assert all(Image.open(path).format == "PNG" for path in written)
  assert panels.write_pngs(tmp_path, summarize([], {}), figures.CHARTS) == []
