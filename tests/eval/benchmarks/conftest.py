"""Smaller models than the smallest size, of smaller pictures: their programs compile and run in seconds."""

import dataclasses
import json

import pytest

from eval import bench
from eval.benchmarks import models, peak


@pytest.fixture(autouse=True)
def shallow_models(monkeypatch):
  """Replaces the sizes 'dummy' and 'pi05_dummy' by models of fewer layers and tokens."""
  for name in ("dummy", "pi05_dummy"):
    config = models.SIZES[name]
    towers = {tower: dataclasses.replace(getattr(config, tower), depth=depth)
              for tower, depth in (("paligemma", 2), ("expert", 2), ("siglip", 1))}
    monkeypatch.setitem(models.SIZES, name, dataclasses.replace(config, image_size=(56, 56), **towers))


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
  """What the hardware gives is measured on less, and less well."""
  monkeypatch.setitem(peak.SIDES, "cpu", 256)
  monkeypatch.setitem(peak.COPY_BYTES, "cpu", 1 << 20)
  peak.measure.cache_clear()
  yield
  peak.measure.cache_clear()


@pytest.fixture
def run(tmp_path):
  """Returns a function of the command's arguments: the rows that it writes, None if it refuses."""

  def rows(*arguments: str) -> list[dict] | None:
    out = tmp_path / "rows.json"
    return json.loads(out.read_text())["rows"] if bench.main([*arguments, f"--out={out}"]) == 0 else None

  return rows
