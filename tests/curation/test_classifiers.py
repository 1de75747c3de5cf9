"""Classifiers: their shapes, what the mask leaves out, the order of steps, and what cannot be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.curation import classifiers
from pi0rag_jax.errors import Pi0RagError

MASK = np.array([[True, True, True, False], [True, False, False, False]])


@functools.partial(jax.jit, static_argnums=0)
def answer(module, inputs, mask):
  return module.apply(module.init(jax.random.key(0), inputs, mask), inputs, mask)


def logits(name, inputs, mask=MASK, **options):
  """Returns what a classifier of fixed random parameters answers."""
  return np.asarray(answer(classifiers.classifier(name, options), inputs, mask))


@pytest.mark.parametrize("name", sorted(classifiers.CLASSIFIERS))
def test_the_mask_decides_what_counts(name):
  inputs = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
  found = logits(name, inputs)
  per_step = classifiers.CLASSIFIERS[name].per_step
  assert found.shape == ((2, 4) if per_step else (2,))
  changed = logits(name, np.where(MASK[..., None], inputs, 50.0))
  np.testing.assert_allclose(*((each[MASK] if per_step else each) for each in (found, changed)), atol=1e-5)
  # Another valid step matters to its own episode and to no other.
  other = logits(name, inputs + np.array([1.0, 0.0])[:, None, None])
  assert np.abs(other - found)[0].max() > 1e-4
  np.testing.assert_allclose(other[1], found[1], atol=1e-5)


def test_only_the_transformer_knows_the_order_of_the_steps():
  inputs = np.random.default_rng(1).normal(size=(1, 4, 3)).astype(np.float32)
  whole = np.ones((1, 4), bool)
  turned = lambda name, **options: np.abs(  # noqa: E731
    logits(name, inputs, whole, **options) - logits(name, inputs[:, ::-1], whole, **options)).max()
  assert turned("transformer") > 1e-3
  assert turned("pool_mlp", every=1) < 1e-6


def test_the_defaults_are_demo_scores():
  step = classifiers.classifier("step_mlp")
  shapes = jax.eval_shape(step.init, jax.random.key(0), jnp.zeros((1, 1, 7)), jnp.ones((1, 1), bool))["params"]
  widths = sorted(leaf.shape for leaf in jax.tree.leaves(shapes) if leaf.ndim == 2)
  assert widths == [(7, 8), (8, 1), (8, 8)] and step.dropout == 0.3
  assert classifiers.classifier("prefix").hidden == (128, 64)
  for name, kind in classifiers.CLASSIFIERS.items():
    assert (kind.success_weight, classifiers.default_rule(name)) in ((4.0, "demo_score"), (1.0, "fixed"))
    assert kind.per_step == (kind.success_weight == 4.0)


def test_pools_by_hand():
  values = jnp.array([[[1.0, -2.0], [3.0, -4.0], [99.0, 99.0]], [[7.0, 7.0]] * 3])
  mask = jnp.array([[True, True, False], [False] * 3])
  np.testing.assert_allclose(classifiers.pool(values, mask, "mean"), [[2, -3], [0, 0]])
  np.testing.assert_allclose(classifiers.pool(values, mask, "max_min"), [[3, -2, 1, -4], [0, 0, 0, 0]])


def test_tokens_that_are_not_valid_are_left_out():
  step = np.array([[[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]]], np.float32)  # two tokens of width 2, and one of padding
  one = np.ones((1, 1), bool)
  short = logits("prefix", step[..., :4], one, tokens=2)
  np.testing.assert_allclose(logits("prefix", step, one, tokens=3), short, atol=1e-6)
  with pytest.raises(Pi0RagError, match="inputs of width 6 are no 4 tokens"):
    logits("prefix", step, one, tokens=4)


@pytest.mark.parametrize(("name", "options", "message"), [
  ("step", {}, "unknown classifier 'step'. Did you mean 'step_mlp'"),
  ("step_mlp", {"hiden": (4,)}, "unknown option of the classifier step_mlp 'hiden'. Did you mean 'hidden'"),
  ("pool_mlp", {"pool": "sum"}, "unknown pool of the classifier pool_mlp 'sum'"),
  ("pool_mlp", {"every": 0}, "every is 0; allowed: whole numbers from 1"),
  ("prefix", {"dropout": 1.0}, "dropout is 1.0; allowed: 0 up to"),
  ("transformer", {"success_weight": 0.0}, "success_weight is 0.0; allowed: above 0"),
])
def test_what_cannot_be_is_refused(name, options, message):
  with pytest.raises(Pi0RagError, match=message):
    classifiers.classifier(name, options)
