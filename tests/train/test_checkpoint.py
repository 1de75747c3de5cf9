"""Checkpoints: whole or absent, the last and the best kept, and named errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.robots.normalize import NormStats
from train import checkpoint, step
from train.checkpoint import CheckpointStore

STATS = {"state": NormStats(np.zeros(2), np.ones(2))}


def make_state(number: int, width: int = 3) -> step.TrainState:
  params = {"policy": {"w": jnp.full((width,), float(number))}, "auxiliary": {"v": jnp.zeros(2)}}
  state = step.init_state(params, optax.adamw(1e-3))
  assert state.ema is not None
  ema = jax.tree.map(lambda x: x + 0.5, params)
  return step.TrainState(step=jnp.asarray(number, jnp.int32), params=params, ema=ema, opt_state=state.opt_state)


def test_a_state_comes_back_as_it_was(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot")
  saved = make_state(7)
  store.save(saved, {}, STATS, {"score": 1.0})
  restored = CheckpointStore(tmp_path, asset_id="robot").restore(make_state(0), {})
  assert jax.tree.structure(restored) == jax.tree.structure(saved)
  jax.tree.map(np.testing.assert_array_equal, restored, saved)
  assert (store.folder(7) / "assets/robot/norm_stats.json").is_file()


def test_frozen_parameters_complete_the_policy(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot")
  frozen = {"policy": {"base": jnp.full(2, 0.5, jnp.bfloat16)}}
  saved = make_state(7).replace(ema=None)
  store.save(saved, frozen, STATS, {"score": 1.0})
  policy = checkpoints.load_params(store.folder(7))
  assert sorted(policy) == ["base", "w"] and policy["base"].dtype == jnp.bfloat16
  restored = store.restore(make_state(0).replace(ema=None), frozen)
  jax.tree.map(np.testing.assert_array_equal, restored, saved)


def test_no_checkpoint_restores_nothing(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot")
  assert store.restore(make_state(0), {}) is None
  assert store.best_step() is None


def test_the_last_and_the_best_are_kept(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot")
  for number, score in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
    store.save(make_state(number), {}, STATS, {"score": score})
  assert store.steps() == [2, 4]
  assert store.best_step() == 2
  assert store.metrics(2) == {"score": 1.0}


def test_others_are_kept_where_that_is_asked_for(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot", keep=(1, 3))
  for number, score in ((1, 3.0), (2, 4.0), (3, 2.0), (4, 1.0)):
    store.save(make_state(number), {}, STATS, {"score": score})
  assert store.steps() == [1, 3, 4]


def test_a_kill_in_a_save_leaves_the_previous_one_whole(tmp_path, monkeypatch):
  store = CheckpointStore(tmp_path, asset_id="robot")
  store.save(make_state(1), {}, STATS, {"score": 1.0})

  class Killed(BaseException):
    pass

  def die(*_):
    raise Killed

  monkeypatch.setattr(checkpoint.norm_stats, "save_norm_stats", die)
  with pytest.raises(Killed):
    store.save(make_state(2), {}, STATS, {"score": 0.5})
  monkeypatch.undo()
  assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # what the kill left
  again = CheckpointStore(tmp_path, asset_id="robot")
  assert again.steps() == [1]
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
  assert int(again.restore(make_state(0), {}).step) == 1
  again.save(make_state(2), {}, STATS, {"score": 0.5})
  assert again.steps() == [2]


def test_another_configuration_is_named(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot")
  store.save(make_state(1), {}, STATS, {"score": 1.0})
  with pytest.raises(Pi0RagError, match=r"of another configuration: .* arrays differ, the first is 'opt_state"):
    store.restore(make_state(0, width=4), {})
