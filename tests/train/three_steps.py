"""Three steps of a tiny policy on however many devices there are: python -m three_steps ADDRESS INDEX COUNT KIND..."""

import functools
import json
import sys

import jax
import numpy as np
import tiny

from eval.benchmarks import hlo
from pi0rag_jax.models import pi0
from train import optimizer, parallel, policy_loss, step


def train(kind: str) -> dict:
  """Returns losses, norms and layout after three steps of a kind of `parallel.KINDS`."""
  config = tiny.make_config("unused", learning_rate=1e-2, warmup_steps=1, batch_size=8)
  model = pi0.Pi0Config.from_dict(config.model.to_dict())
  rng = np.random.default_rng(0)
  size = config.batch_size
  batch = {
    "image": {name: rng.integers(0, 255, (size, tiny.PIXELS, tiny.PIXELS, 3), dtype=np.uint8)
              for name in tiny.CAMERAS},
    "state": rng.normal(size=(size, 10)).astype(np.float32),
    "tokenized_prompt": np.ones((size, 8), np.int32),
    "tokenized_prompt_mask": np.ones((size, 8), bool),
    "actions": rng.normal(size=(size, tiny.HORIZON, 5)).astype(np.float32),
    "targets": rng.normal(size=(size, 7)).astype(np.float32),
    "index": np.arange(size, dtype=np.int32),
  }
  init = lambda key: {"policy": pi0.init(model, key), "auxiliary": policy_loss.init_head(key, model, 7)}  # noqa: E731
  # The initializers are slow to compile.
  params = jax.tree.map(lambda x: rng.normal(scale=0.2, size=x.shape).astype(x.dtype),
                        jax.eval_shape(init, jax.random.key(0)))
  devices = parallel.KINDS[kind](**({"min_bytes": 0} if kind == "fsdp" else {}))
  optimize = optimizer.make_optimizer(config)
  loss = functools.partial(policy_loss.batch_loss, pi0.Pi0(model), options=None, draws=2)
  state = devices.create(functools.partial(step.init_state, optimizer=optimize), devices.place(params))
  take_step = devices.compile_train(functools.partial(
    step.train_step, loss_fn=loss, optimizer=optimize, seed=0, ema_decay=0.9, mean=devices.mean))
  losses, reused = [], True
  placed = devices.place_batch(jax.tree.map(parallel.local_rows, batch))
  compiled = take_step.lower(state, {}, placed).compile()
  moved = hlo.Program(compiled.as_text()).collectives().values()
  for _ in range(3):
    before = _places(state)
    state, metrics = jax.block_until_ready(take_step(state, {}, placed))
    reused &= _places(state) == before
    losses.append([float(metrics[name]) for name in ("loss", "grad_norm")])
  largest = max(jax.tree.leaves(state.params), key=lambda x: x.size)
  return {
    "devices": jax.device_count(), "losses": losses, "shapes": [list(x.shape) for x in jax.tree.leaves(state.params)],
    "ema": float(sum(np.abs(x).sum() for x in jax.tree.leaves(parallel.fetch(state.ema)))),
    "moved": sum(nbytes for _, nbytes in moved) / sum(x.nbytes for x in jax.tree.leaves(params)),
    "local": largest.addressable_data(0).size / largest.size, "reused": reused}


def _places(state) -> list[int]:
  """Returns where the arrays of a state lie on this process's first device: given up, they are written in place."""
  return [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves((state.params, state.opt_state))]


if __name__ == "__main__":
  address, index, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  if count > 1:
    jax.distributed.initialize(address, num_processes=count, process_id=index)
  for kind in sys.argv[4:]:
    print(json.dumps(train(kind)))
