"""Times openpi's own sampling. `openpi_latency` runs this file in openpi's environment: it imports nothing of ours.

The one argument is a JSON object: `model` (fields of openpi's Pi0Config), `image_size`, `batches`, `cameras`, `steps`
and `repeats`. The last line written is a JSON object too: the number of parameters and the times of each case.
"""

import functools
import json
import sys
import time

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def make_config(fields):
  """Returns openpi's configuration of a model; older checkouts have it in another file."""
  try:
    from openpi.models.pi0_config import Pi0Config  # pyright: ignore[reportMissingImports]
  except ModuleNotFoundError:
    from openpi.models.pi0 import Pi0Config  # pyright: ignore[reportMissingImports]
  return Pi0Config(**fields)


def make_model(config):
  """Returns (graph, state) of the model with random bfloat16 parameters, as openpi serves it."""
  graph, state = nnx.split(nnx.eval_shape(config.create, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray((0.02 * rng.standard_normal(x.shape, np.float32)).astype(jnp.bfloat16))  # noqa: E731
  return graph, jax.tree.map(draw, state)


def observe(config, image_size, batch, cameras):
  """Returns a batch with pictures of all cameras, of which the first `cameras` are not masked."""
  from openpi.models.model import Observation  # pyright: ignore[reportMissingImports]

  rng = np.random.default_rng(1)
  image = rng.integers(0, 255, (batch, *image_size, 3)).astype(np.uint8)
  return Observation.from_dict({
    "image": {name: jnp.asarray(image) for name in CAMERAS},
    "image_mask": {name: jnp.full(batch, i < cameras) for i, name in enumerate(CAMERAS)},
    "state": jnp.asarray(rng.standard_normal((batch, config.action_dim)), jnp.float32),
    "tokenized_prompt": jnp.ones((batch, config.max_token_len), jnp.int32),
    "tokenized_prompt_mask": jnp.ones((batch, config.max_token_len), bool)})


def times_ms(call, repeats):
  """Returns the ms of so many calls, waited for; one call, uncounted, comes before."""
  taken = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(1000 * (time.perf_counter() - start))
  return taken[1:]


def main(request):
  """Returns the number of parameters and a list of cases."""
  config = make_config(request["model"])
  graph, state = make_model(config)
  cases = []
  for steps in request["steps"]:
    # The steps are a constant of the program, as in a policy that is given none.
    sample = jax.jit(lambda state, rng, obs, n=steps: nnx.merge(graph, state).sample_actions(rng, obs, num_steps=n))
    for batch in request["batches"]:
      for cameras in request["cameras"]:
        obs = observe(config, request["image_size"], batch, cameras)
        call = functools.partial(sample, state, jax.random.key(0), obs)
        cases.append({"batch": batch, "cameras": cameras, "steps": steps, "ms": times_ms(call, request["repeats"])})
  return {"parameters": sum(x.size for x in jax.tree.leaves(state)), "cases": cases}


if __name__ == "__main__":
  print("\n" + json.dumps(main(json.loads(sys.argv[1]))))
