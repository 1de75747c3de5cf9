"""Small networks: what they learn, and that they are the same again."""

import numpy as np

from pi0rag_jax.steering import networks


def test_a_network_learns_a_mapping_and_is_the_same_again():
  rng = np.random.default_rng(0)
  inputs_NI = rng.normal(3.0, 5.0, (300, 2))
  targets_NO = np.stack([np.sin(inputs_NI[:, 0] / 5), inputs_NI[:, 1] / 5], axis=1)
  fresh, before = networks.fit(inputs_NI, targets_NO, steps=0, seed=1)
  network, error = networks.fit(inputs_NI, targets_NO, steps=150, seed=1)
  assert error < 0.2 * before
  assert np.abs(networks.apply(fresh, inputs_NI)).max() < 0.1, "at first it asks for next to nothing"
  again, _ = networks.fit(inputs_NI, targets_NO, steps=150, seed=1)
  other, _ = networks.fit(inputs_NI, targets_NO, steps=150, seed=2)
  np.testing.assert_array_equal(again["kernel_0"], network["kernel_0"])
  assert np.abs(other["kernel_0"] - network["kernel_0"]).max() > 1e-3


def test_an_input_that_never_changes_does_no_harm():
  inputs_NI = np.zeros((8, 3))
  network, error = networks.fit(inputs_NI, np.ones((8, 1)), steps=1, seed=0)
  assert np.isfinite(error) and np.isfinite(networks.apply(network, inputs_NI)).all()
