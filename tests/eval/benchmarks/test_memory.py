"""Rows of `memory`: the device's bytes are those of the arrays there are, and more."""

import dataclasses

import jax
import pytest

from eval.benchmarks import device_memory, models
from pi0rag_jax.models import packing


def test_memory_of_the_device_is_that_of_packed_parameters_and_more(run, monkeypatch):
  assert device_memory.peak_bytes() is None  # a CPU does not count its bytes
  monkeypatch.setattr(device_memory, "peak_bytes", lambda: 5_000_000)
  rows = run("memory", "--size=dummy", "--records=100", "--cameras=1", "--steps=1")
  assert [row["what"] for row in rows] == ["host", "host", "device"]
  config = models.SIZES["dummy"]
  packed, _ = packing.pack(models.params(config), config)
  row = rows[2]
  assert row["parameters_MB"] == pytest.approx(sum(x.nbytes for x in jax.tree.leaves(packed)) / 1e6, abs=1e-3)
  assert row["total_MB"] == pytest.approx(
    row["parameters_MB"] + row["inputs_MB"] + row["temporary_MB"] + row["output_MB"], abs=2e-3)
  assert row["peak_MB"] == 5


@pytest.mark.parametrize("size", ["dummy", "pi05_dummy"])
@pytest.mark.parametrize("aligned", [False, True])
def test_shapes_of_packed_parameters_need_no_parameters(size, aligned):
  config = dataclasses.replace(models.SIZES[size], dtype="bfloat16")
  packed, packed_config = packing.pack(models.params(config), config, aligned=aligned)
  shape = lambda x: (x.shape, str(x.dtype))  # noqa: E731
  assert jax.tree.map(shape, device_memory.shapes_of(packed_config)) == jax.tree.map(shape, packed)
  for weights in packing.WEIGHTS:
    quantized, _ = packing.pack(models.params(config), config, weights=weights, aligned=aligned)
    found = device_memory.quantized_shapes(device_memory.shapes_of(packed_config), weights)
    assert jax.tree.map(shape, found) == jax.tree.map(shape, quantized)
