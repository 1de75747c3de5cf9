"""Smaller models than the smallest size: their programs compile in seconds, which is most of these tests' time."""

import dataclasses
import json

import pytest

from eval import bench
from eval.benchmarks import models


@pytest.fixture(autouse=True)
def shallow_models(monkeypatch):
  """Replaces the sizes 'dummy' and 'pi05_dummy' by models of fewer layers."""
  for name in ("dummy", "pi05_dummy"):
    config = models.SIZES[name]
    towers = {tower: dataclasses.replace(getattr(config, tower), depth=depth)
              for tower, depth in (("paligemma", 2), ("expert", 2), ("siglip", 1))}
    monkeypatch.setitem(models.SIZES, name, dataclasses.replace(config, **towers))


@pytest.fixture
def run(tmp_path):
  """Returns a function of the command's arguments: the rows that it writes, None if it refuses."""

  def rows(*arguments: str) -> list[dict] | None:
    out = tmp_path / "rows.json"
    return json.loads(out.read_text())["rows"] if bench.main([*arguments, f"--out={out}"]) == 0 else None

  return rows
