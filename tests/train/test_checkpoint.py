"""Checkpoints: whole or absent, the last and the best kept, and named errors."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, digests
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


DAMAGES = {
    "flipped": lambda file: file.write_bytes(bytes(byte ^ (i == file.stat().st_size // 2)
                                                   for i, byte in enumerate(file.read_bytes()))),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "removed": lambda file: file.unlink(),
}


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("two")
  store = CheckpointStore(workdir, asset_id="robot", keep=(1,))
  for number in (1, 2):
    store.save(make_state(number), {}, STATS, {"score": 3.0 - number})
  return workdir


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_makes_training_go_on_from_the_older_one(two_checkpoints, tmp_path, caplog, damage):
  for number, file in enumerate(files_of(two_checkpoints / "checkpoints/2")):
    workdir, name = tmp_path / str(number), file.relative_to(two_checkpoints)
    outermost = name == Path("checkpoints/2") / digests.FILE_NAME
    if outermost and damage == "removed":
      continue  # without digests it is read as it is
    shutil.copytree(two_checkpoints, workdir)
    DAMAGES[damage](workdir / name)
    store = CheckpointStore(workdir, asset_id="robot")
    caplog.clear()
    assert int(store.restore(make_state(0), {}).step) == 1, name
    assert outermost or name.name in caplog.text
    assert "it is now '2.damaged', and training goes on from step 1" in caplog.text
    assert store.steps() == [1] and store.best_step() == 1


def test_a_checkpoint_of_before_the_digests_is_given_up_when_it_cannot_be_read(two_checkpoints, tmp_path):
  shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
  store = CheckpointStore(tmp_path, asset_id="robot")
  for file in tmp_path.rglob(digests.FILE_NAME):
    file.unlink()
  assert int(store.restore(make_state(0), {}).step) == 2
  shutil.rmtree(store.folder(2) / "train_state")
  assert int(store.restore(make_state(0), {}).step) == 1


def test_a_damaged_best_checkpoint_is_no_longer_the_best(tmp_path, caplog):
  store = CheckpointStore(tmp_path, asset_id="robot")
  for number, score in ((1, 1.0), (2, 2.0)):
    store.save(make_state(number), {}, STATS, {"score": score})
  (store.folder(1) / "metrics.json").write_text('{"score": 0.5}')
  assert int(store.restore(make_state(0), {}).step) == 2
  assert store.best_step() == 2 and "metrics.json" in caplog.text


def test_without_a_whole_checkpoint_nothing_is_touched(two_checkpoints, tmp_path):
  shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
  for file in tmp_path.rglob("metrics.json"):
    file.unlink()
  store = CheckpointStore(tmp_path, asset_id="robot")
  with pytest.raises(Pi0RagError, match=r"no checkpoint in .* is whole: .*/2 is damaged.*metrics.json is missing; .*/1 "
                     ) as refused:
    store.restore(make_state(0), {})
  assert store.steps() == [1, 2] and "\n" not in str(refused.value)


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path):
  store = CheckpointStore(tmp_path, asset_id="robot", keep=(1,))
  store.save(make_state(1), {}, STATS, {"score": float("nan")})
  store.save(make_state(2), {}, STATS, {"score": 5.0})
  assert np.isnan(store.metrics(1)["score"]) and store.best_step() == 2
