"""Panels: SVG that is safe to embed and follows the reader's theme, PNG of what there is."""

import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from pi0rag_jax.pages import panels


@pytest.fixture
def panel():
  return panels.Panel("a panel", "A line.", lambda axes: axes.plot([0, 1], [0, 1], color=panels.LIGHT["green"]))


def test_svg_is_xml_with_both_themes_and_repeats_exactly(panel):
  text = panels.svg(panel)
  ElementTree.fromstring(text)
  assert "prefers-color-scheme:dark" in text and panels.DARK["green"] in text
  assert text.count(panels.LIGHT["green"]) == 1, "only the variable's definition keeps the colour"
  assert text == panels.svg(panel)


def test_themes_have_the_same_colours():
  assert panels.LIGHT.keys() == panels.DARK.keys()


def test_pngs_are_written_for_what_there_is(tmp_path, panel):
  written = panels.write_pngs(tmp_path, 3, {"some": lambda count: [panel] * count, "none": lambda count: []})
  assert [path.name for path in written] == ["some.png"] and Image.open(written[0]).format == "PNG"
