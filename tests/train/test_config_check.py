"""Configurations are refused before any work; the project's own are not."""

import importlib

import pytest
import tiny

from pi0rag_jax.errors import Pi0RagError
from train import config_check, loop

FILES = {"panda_small": ("",), "panda_tasks": ("",), "small_from_scratch": ("", "debug"),
         "mobile_vla_lstm": ("", "light", "debug"),
         "robovlms_lstm": ("", "light", "debug"),
         **dict.fromkeys(("pi0_libero_lora", "pi05_droid_lora", "pi0_aloha_sim_lora", "pi0_full_fsdp"), ("", "debug"))}


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name, each in FILES.items() for variant in each])
def test_the_projects_configurations_pass(name, variant):
  get_config = importlib.import_module(f"configs.{name}").get_config
  config_check.check(get_config(variant) if variant else get_config())


def test_configurations_from_before_an_optional_field_pass():
  config = tiny.make_config("data").copy_and_resolve_references().unlock()
  del config.wandb_project
  config_check.check(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"lerning_rate": 1.0}, "unknown entry of the configuration: 'lerning_rate'; did you mean 'learning_rate'"),
    ({"batch_size": 0}, "batch_size is 0; allowed: whole numbers from 1"),
    ({"batch_size": -4, "microbatches": 1}, "batch_size is -4"),
    ({"batch_size": 6, "microbatches": 4}, "batch_size 6 must be a multiple of the 1 devices times 4 microbatches"),
    ({"validate_every": 0}, "validate_every is 0"), ({"steps": 10**30}, "steps is 1000"),
    ({"learning_rate": -1.0}, "learning_rate is -1.0; allowed: numbers from 0.0 to 100.0"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ({"clip_norm": 0.0}, "clip_norm is 0.0"), ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ({"validation_fraction": -0.1}, "validation_fraction is -0.1"), ({"warmup_steps": -5}, "warmup_steps is -5"),
    ({"threads": 0}, "threads is 0; allowed: whole numbers from 1 to 1000"), ({"seed": -1}, "seed is -1"),
    ({"control_hz": float("nan")}, "control_hz is nan"),
    ({"asset_id": "../x"}, r"asset_id is '../x'; allowed: the name"),
    ({"asset_id": ""}, "asset_id is ''"), ({"start": "draw:x"}, "draw:x"),
    ({"parallel": "ddp"}, "unknown parallel 'ddp'"),
    ({"schedule": "cosin"}, "unknown schedule 'cosin'"),
  ])
def test_mistakes_are_named_before_data_are_read(changes, message, tmp_path):
  with pytest.raises(Pi0RagError, match=message):
    loop.train_and_evaluate(tiny.make_config("/no/data", **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_missing_field_is_named_with_the_file_that_explains_it():
  config = tiny.make_config("data").copy_and_resolve_references().unlock()
  del config.clip_norm
  with pytest.raises(Pi0RagError, match=r"lacks clip_norm; configs/openpi_finetune\.py explains"):
    config_check.check(config)
  del config.kind
  with pytest.raises(Pi0RagError, match="has no field 'kind'"):
    config_check.check(config)


def test_a_score_that_validation_does_not_find_is_refused_before_the_first_step(tmp_path):
  config = tiny.make_config(tiny.write_data(tmp_path / "data"), best_by="path_eror")
  with pytest.raises(Pi0RagError, match=r"unknown score, as best_by, 'path_eror'\. Did you mean 'path_error'"):
    loop.train_and_evaluate(config, tmp_path / "run")
  assert not list((tmp_path / "run" / "checkpoints").iterdir())
