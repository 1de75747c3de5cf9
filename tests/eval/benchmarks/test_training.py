"""Rows of `train`: every variant says what trains, its samples per second and its share of the measured peak."""

import jax
import pytest

from eval.benchmarks import models
from pi0rag_jax.models.heads import presets


def test_rows_of_training_have_their_utilization(run, monkeypatch):
  small = {"feature_dim": 8, "hidden": 8, "layers": 1, "window": 3}
  monkeypatch.setattr(presets, "PRESETS", {"mobile_vla": {**presets.PRESETS["mobile_vla"], **small}})
  rows = {row["what"]: row for row in run(
    "train", "--size=dummy", "--repeats=2", "--batch=3", "--variants=lora_frozen_images,heads")}
  assert set(rows) == {"lora, image tower frozen", "head mobile_vla"}
  for row in rows.values():
    assert row["samples_per_s"] == pytest.approx(3000 / row["p50_ms"], rel=5e-3)
    assert row["tflops"] == pytest.approx(row["model_tflop"] * 1000 / row["p50_ms"], rel=5e-3)
    assert row["utilization"] > 0 and row["memory_MB"] > row["of_it_temporary_MB"]
  params, count = models.params(models.SIZES["dummy"]), lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  lora, head = rows.values()
  # Adapters and the projections of state, action and time train.
  assert lora["frozen"] == count(params["PaliGemma"]) and lora["trainable"] > count(params) - lora["frozen"]
  assert "size" not in head and not any("time_vs_full" in row for row in rows.values())
