"""Policies cloned from demonstrations: small networks from places to chunks of actions, many trained at once."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from eval.curation import demonstrators
from pi0rag_jax.curation.scorers import Steps
from pi0rag_jax.curation.training import input_scale
from pi0rag_jax.models.heads.mlp import MlpTrunk

HIDDEN = (96, 96)
HORIZON, EXECUTED = 8, 4  # actions of a chunk, and of those that are executed before the next decision
UPDATES, BATCH, LEARNING_RATE = 2_000, 128, 2e-3
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, UPDATES))
TIME_LIMIT = 160  # ticks; demonstrations take 86 on average
ROOM = 8_192  # steps

Policy = dict[str, np.ndarray]  # parameters by name, and `mean` and `std` of looks


class Cloned(nn.Module):
  """Answers a look with a chunk of actions."""

  width: int  # HORIZON A

  @nn.compact
  def __call__(self, look_BF):
    """Returns float32[B, HORIZON A]."""
    return nn.Dense(self.width)(MlpTrunk(HIDDEN, 0.0)(look_BF))


def train(looks_NF: np.ndarray, chunks_ND: np.ndarray, rows: Sequence[np.ndarray], seeds: Sequence[int], *,
          keep: Sequence[float] = (1.0,)) -> list[list[Policy]]:
  """Returns R policies after each share of the training that is kept: parameters, with the scale of their inputs.

  Args:
    looks_NF: float32, of every step.
    chunks_ND: float32, what was done from there on.
    rows: of each policy, the steps that it learns from.
    seeds: of each policy's start and batches.
    keep: shares of all updates, rising.
  """
  mean_F, std_F = input_scale(looks_NF, centred=True)
  room = -(-len(looks_NF) // ROOM) * ROOM  # so that data sets of about a size share a program
  fill = lambda values: jnp.asarray(np.pad(values, ((0, room - len(values)), (0, 0))))  # noqa: E731
  scaled_NF, labels_ND = fill((looks_NF - mean_F) / std_F), fill(chunks_ND)
  rows_RN = jnp.asarray(np.stack([np.pad(each, (0, room - len(each))) for each in rows]))
  count_R = jnp.asarray([len(each) for each in rows])
  network = Cloned(chunks_ND.shape[1])
  keys_R = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  params = jax.vmap(lambda key: network.init(key, scaled_NF[:1]))(keys_R)
  state, found, done = (params, jax.vmap(OPTIMIZER.init)(params)), [], 0
  for share in keep:
    until = round(share * UPDATES)
    state = _updates(network, state, keys_R, rows_RN, count_R, scaled_NF, labels_ND, done, until)
    done, parts = until, jax.device_get(state[0])
    found.append([{"mean": mean_F, "std": std_F, **traverse_util.flatten_dict(
      jax.tree.map(lambda x, r=r: x[r], parts["params"]), sep="/")} for r in range(len(rows))])
  return found


@functools.partial(jax.jit, static_argnums=0)
def _updates(network: Cloned, state, keys_R, rows_RN, count_R, looks_NF, chunks_ND, first, last):
  """Returns (parameters, optimizer state) of all policies after the updates from `first` to `last`."""

  def update(number, state):
    def one(params, optimizer_state, key, rows_N, count):
      chosen_B = rows_N[jax.random.randint(jax.random.fold_in(key, number), (BATCH,), 0, count)]

      def loss(params):
        said_BD: Any = network.apply(params, looks_NF[chosen_B])
        return optax.huber_loss(said_BD, chunks_ND[chosen_B], delta=0.5).mean()

      changes, optimizer_state = OPTIMIZER.update(jax.grad(loss)(params), optimizer_state)
      return optax.apply_updates(params, changes), optimizer_state

    params, optimizer_state = state
    return jax.vmap(one)(params, optimizer_state, keys_R, rows_RN, count_R)

  return jax.lax.fori_loop(first, last, update, state)


def answer(policy: Policy, look_F: np.ndarray) -> np.ndarray:
  """Returns float32[HORIZON, A]; by numpy, since one row is not worth a device."""
  x = (look_F - policy["mean"]) / policy["std"]
  for i in range(len(HIDDEN)):
    x = np.maximum(x @ policy[f"MlpTrunk_0/Dense_{i}/kernel"] + policy[f"MlpTrunk_0/Dense_{i}/bias"], 0)
  return (x @ policy["Dense_0/kernel"] + policy["Dense_0/bias"]).reshape(HORIZON, -1)


def run(task: str, policy: Policy, seed: int) -> tuple[bool, np.ndarray, np.ndarray]:
  """Returns (success, looks float32[T, F] of the decisions, chunks float32[T, HORIZON, A]) of one episode."""
  here, looks, chunks = demonstrators.world(task), [], []
  here.begin(seed)
  for _ in range(0, TIME_LIMIT, EXECUTED):
    looks.append(demonstrators.look(here))
    chunks.append(np.clip(answer(policy, looks[-1]), -1, 1).astype(np.float32))
    progress = here.advance(chunks[-1][:EXECUTED])
    if progress.done:
      return progress.success, np.stack(looks), np.stack(chunks)
  return False, np.stack(looks), np.stack(chunks)


def as_steps(episodes: Sequence[tuple[bool, np.ndarray, np.ndarray]], *, horizon: int, tick_s: float, cut: bool = True
             ) -> Steps:
  """Returns rollouts as scorers see them; cut after the median length of the successes, which tells nobody the outcome.

  What was done from a decision on is what was executed there and after the next ones, `horizon` actions.
  """
  success_J = np.array([float(success) for success, _, _ in episodes])
  lengths = [len(looks) for (success, looks, _) in episodes if success]
  steps = int(np.median(lengths)) if cut and lengths else None
  chunks = []
  for _, looks, chunk_THA in episodes:
    executed_KA = chunk_THA[:, :EXECUTED].reshape(-1, chunk_THA.shape[-1])
    places_TH = np.arange(len(looks))[:, None] * EXECUTED + np.arange(horizon)
    chunks.append(executed_KA[np.minimum(places_TH, len(executed_KA) - 1)][:steps])
  looks = tuple(looks[:steps] for _, looks, _ in episodes)
  return Steps(looks, tuple(chunks), tuple(look[:, demonstrators.HAND] for look in looks), EXECUTED * tick_s, success_J)
