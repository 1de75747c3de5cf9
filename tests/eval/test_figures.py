"""Charts and clips: what is drawn, that it is safe to embed, and how large it gets."""

import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from eval import figures
from eval.report import summarize
from pi0rag_jax.errors import Pi0RagError


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
  assert figures.svg(panel).startswith("<?xml")


def test_the_reference_of_a_stream_is_the_harder_control(summary):
  reference = next(c for c in summary["cells"] if (c["policy"], c["condition"]) == ("base_z0", "camera_shift"))
  text = figures.svg(figures.learning_panels(summary)[1])
  assert f"base (z=0), evaluated: {100 * reference['success_rate']:.1f} %" in text


def test_a_stream_is_named_only_where_there_are_several():
  one = {"task": "place", "condition": "shift", "stream": "a"}
  assert figures.stream_label(one, [one]) == "place, shift"
  assert figures.stream_label(one, [one, one | {"stream": "b"}]) == "place, shift (a)"


def test_svg_is_xml_with_both_themes_and_repeats_exactly(summary):
  panel = figures.success_panels(summary)[0]
  text = figures.svg(panel)
  ElementTree.fromstring(text)
  assert "prefers-color-scheme:dark" in text and figures.DARK["memory"] in text
  assert text.count(figures.LIGHT["memory"]) == 1, "only the variable's definition keeps the colour"
  assert text == figures.svg(panel)


def test_names_are_text_not_markup_or_mathematics(summary):
  for cell in summary["cells"]:
    cell["policy"] = "<script>$x$ & $"
  text = figures.svg(figures.success_panels(summary)[0])
  assert "<script>" not in text and "&lt;script&gt;$x$ &amp; $" in text


def test_pngs_are_written_for_what_there_is(tmp_path, summary):
  written = figures.write_pngs(tmp_path, summary)
  assert [path.name for path in written] == ["success.png", "learning_curve.png", "latency.png"]
  assert all(Image.open(path).format == "PNG" for path in written)
  assert figures.write_pngs(tmp_path, summarize([], {})) == []


def test_a_clip_shows_both_sides_enlarged_and_rests_on_the_last_frame(clip):
  content = figures.clip_webp(clip["frames_without"], clip["frames_with"])
  image = Image.open(io.BytesIO(content))
  assert image.size == (2 * 192 + figures.CLIP_GAP_PX, 192) and image.n_frames == 40
  image.seek(39)
  pixels = np.asarray(image.convert("RGB")).astype(int)
  # The left side ended at step 24, the right one at step 39; the square is three times as large.
  assert abs(pixels[96, 3 * (24 + 4)] - (200, 40, 30)).max() < 30
  assert abs(pixels[96, 192 + figures.CLIP_GAP_PX + 3 * (39 + 4)] - (200, 40, 30)).max() < 30
  assert len(content) <= figures.CLIP_BYTES


def test_a_busy_clip_loses_frames_rather_than_grow():
  noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8)
  content = figures.clip_webp(noise, noise, limit_bytes=200_000)
  assert len(content) <= 200_000 and Image.open(io.BytesIO(content)).n_frames < 12


def test_sides_of_different_size_are_refused():
  with pytest.raises(Pi0RagError, match="frames of one size"):
    figures.clip_webp(np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8))
