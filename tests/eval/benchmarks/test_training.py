"""Rows of `train`: every variant says what trains, its samples per second and its share of the measured peak."""

import jax
import pytest

from eval.benchmarks import models


def test_rows_of_training_have_their_utilization(run):
  rows = {row["what"]: row for row in run(
    "train", "--size=dummy", "--repeats=2", "--batch=3", "--variants=full,lora_frozen_images,heads")}
  assert set(rows) == {"full", "lora, image tower frozen", "head robovlms", "head mobile_vla"}
  for row in rows.values():
    assert row["samples_per_s"] == pytest.approx(3000 / row["p50_ms"], rel=0.02)
    assert row["tflops"] == pytest.approx(row["model_tflop"] * 1000 / row["p50_ms"], rel=0.02, abs=1e-4)
    assert row["utilization"] >= 0
  full, lora = rows["full"], rows["lora, image tower frozen"]
  whole = sum(x.size for x in jax.tree.leaves(models.params(models.SIZES["dummy"])))
  assert full["trainable"] == whole and full["frozen"] == 0 and full["time_vs_full"] == 1
  assert lora["trainable"] < whole / 2 < lora["frozen"] and lora["model_tflop"] < full["model_tflop"]
  large, small = rows["head robovlms"], rows["head mobile_vla"]
  assert large["trainable"] > small["trainable"] and "size" not in large
