"""FLOPs of a step, against counts by hand; the peak that they are compared with."""

import jax
import jax.numpy as jnp
import pytest

from train import utilization

LAYERS, BATCH, WIDTH = 5, 4, 8
# One product per layer forward, two backward.
FORWARD = LAYERS * 2 * BATCH * WIDTH * WIDTH


def _loss(remat: bool):
  def layer(x_BD, kernel_DD):
    return jnp.tanh(x_BD @ kernel_DD), None

  def loss(params, frozen, batch, rng):
    del frozen, rng
    body = jax.checkpoint(layer) if remat else layer
    x_BD, _ = jax.lax.scan(body, batch["x"], params["kernel"])
    return jnp.mean(x_BD), {}

  return loss


ARGS = ({"kernel": jnp.ones((LAYERS, WIDTH, WIDTH))}, {}, {"x": jnp.ones((BATCH, WIDTH))})


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_count_each_and_rematerialization_does_not(remat):
  assert utilization.step_flops(_loss(remat), *ARGS) == 3 * FORWARD


def test_xla_counts_a_scan_once():
  """Why its cost analysis is not used."""
  gradient = jax.jit(jax.grad(lambda params: _loss(False)(params, {}, ARGS[2], None)[0]))
  assert gradient.lower(ARGS[0]).compile().cost_analysis()["flops"] < 1.5 * 3 * FORWARD / LAYERS


def test_what_is_frozen_has_no_gradient():
  def loss(params, frozen, batch, rng):
    del rng
    return jnp.mean(batch["x"] @ frozen["kernel"] @ params["kernel"]), {}

  kernel = {"kernel": jnp.ones((WIDTH, WIDTH))}
  one = 2 * BATCH * WIDTH * WIDTH
  # Both products forward; backward only the trainable kernel's.
  assert utilization.step_flops(loss, kernel, kernel, ARGS[2]) == 3 * one


@pytest.mark.parametrize(
  ("kind", "peak"),
  [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
   ("NVIDIA A100-SXM4-80GB", 312e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("cpu", None)])
def test_peaks(kind, peak):
  assert utilization.peak_flops(kind) == peak


def test_unknown_devices_have_no_utilization(monkeypatch):
  count = jax.device_count()
  assert utilization.readings(2e12, 3.0) == {"tflops_per_device": 6.0 / count}
  monkeypatch.setattr(utilization, "peak_flops", lambda kind: 1e13)
  assert utilization.readings(2e12, 3.0)["mfu"] == pytest.approx(0.6 / count)
