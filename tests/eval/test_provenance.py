"""What a result says about its origin, and what it must not say."""

import dataclasses
import json
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from eval import provenance as module
from eval.provenance import plain, provenance, without_paths


def test_it_is_json_with_the_promised_fields():
  found = provenance({"a": 1}, seeds=[3, 1], renderer="ray caster", wall_clock_s=1.5)
  again = json.loads(json.dumps(found, allow_nan=False))
  assert {"configuration", "commit", "seeds", "versions", "renderer", "hardware"} <= again.keys()
  assert again["seeds"] == [1, 3] and again["versions"]["numpy"] == np.__version__
  assert again["hardware"]["cores"] >= 1 and again["hardware"]["memory_gib"] > 0


def test_it_names_no_machine_user_or_folder():
  text = json.dumps(provenance({"out": str(Path.home() / "runs/x"), "here": Path.cwd()}))
  assert str(Path.home()) not in text and str(Path.cwd()) not in text


@pytest.mark.parametrize(
  "text, expected",
  [
    ("/home/me/runs/a", "…/a"),
    ("~/runs/a/", "…/a"),
    ("--out=/data/runs/a", "--out=…/a"),
    ("No such file: '/home/me/a.npz'", "No such file: '…/a.npz'"),
    ("gs://bucket/pi0/params", "gs://bucket/pi0/params"),
    ("configs/quickstart.py", "configs/quickstart.py"),
    ("pick and/or place", "pick and/or place"),
  ],
)
def test_local_paths_are_cut_to_their_last_name(text, expected):
  assert without_paths(text) == expected


def test_configurations_become_plain():
  @dataclasses.dataclass
  class Part:
    width: int

  config = ml_collections.ConfigDict({"part": Part(3), "rates": (1, 2.5), "size": np.int32(4)})
  config.limit = float("inf")
  expected = {"part": {"width": 3}, "rates": [1, 2.5], "size": 4, "limit": "inf"}
  assert plain(config) == expected


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
  (tmp_path / "provenance.py").touch()
  monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
  assert module.commit() is None


def test_without_git_there_is_no_commit(monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert module.commit() is None


def test_jax_is_not_loaded_to_be_described(monkeypatch):
  monkeypatch.delitem(module.sys.modules, "jax", raising=False)
  assert module.hardware()["jax_devices"] is None
