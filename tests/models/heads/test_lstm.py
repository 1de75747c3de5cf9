import functools

import jax
import numpy as np

from pi0rag_jax.models.heads import base


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_the_episode_history_is_one_window_as_long_as_the_stream(make_head, features_BWD):
  head, params = make_head("lstm", history="episode")
  whole = base.apply(head, params, features_BWD)
  state = base.init_state(head, 3)
  assert state["h"].shape == (3, 1, 2, 8)
  step = jax.jit(functools.partial(base.step, head))
  for t in range(features_BWD.shape[1]):
    state, output = step(params, state, features_BWD[:, t])
    np.testing.assert_allclose(output.motion, whole.motion[:, t], atol=1e-5)
    np.testing.assert_allclose(output.gripper_logits, whole.gripper_logits[:, t], atol=1e-5)


def test_one_layer_by_hand(make_head, features_BWD):
  head, params = make_head("lstm", layers=1, input_norm=False)
  layer, readout = params["layers_0"], params["readout"]["motion"]["Dense_0"]
  h = c = np.zeros((3, 8))
  for t in range(3):
    gates = features_BWD[:, t] @ layer["input"]["kernel"] + layer["input"]["bias"] + h @ layer["recurrent"]
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
  wanted = (h @ readout["kernel"] + readout["bias"]).reshape(3, 2, 2)
  np.testing.assert_allclose(base.apply(head, params, features_BWD[:, :3]).motion[:, -1], wanted, atol=1e-5)
