"""What a policy is made of, told without reading it."""

import json
import pathlib
import shutil
import types

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import digests, norm_stats, orbax_source
from pi0rag_jax.policy import directory, inspection
from pi0rag_jax.policy.__main__ import main

MANIFESTS = pathlib.Path(__file__).resolve().parents[2] / "third_party/openpi/manifests"


@pytest.fixture
def unread(monkeypatch):
  """Fails whatever reads arrays or whole files of a checkpoint."""
  monkeypatch.setattr(orbax_source.OrbaxSource, "read", lambda *_: pytest.fail("arrays were read"))
  monkeypatch.setattr(digests, "check", lambda *_: pytest.fail("digests were checked"))


def write(folder: pathlib.Path, manifest: str) -> pathlib.Path:
  """Writes a checkpoint of a manifest's shapes, whose arrays say how large they are and hold nothing."""
  shapes = {tuple(name.split("/")): array["shape"]
            for name, array in json.loads((MANIFESTS / f"{manifest}.json").read_text()).items()}
  tree = traverse_util.unflatten_dict({(*key, "value"): np.zeros((), np.float32) for key in shapes})
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    checkpointer.save(folder / "params", args=ocp.args.PyTreeSave({"params": tree}))
  for key, shape in shapes.items():
    file = folder / "params" / ".".join(("params", *key, "value")) / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": shape, "chunks": shape}))
  return folder


def save_stats(folder: pathlib.Path, asset: str, **changes) -> None:
  one = np.ones(14)
  stats = {"mean": 0 * one, "std": one, "q01": -one, "q99": one}
  norm_stats.save_norm_stats(folder, asset, {"state": stats | changes, "actions": stats})


def test_a_shipped_policy(unread):
  found = inspection.inspect("panda_small")
  total = found["parts"].pop("all")
  assert total == {"parameters": 830_981, "bytes": 4 * 830_981, "types": ["float32"]}
  assert list(found["parts"]) == ["vision", "embedding", "language", "expert", "projections"]
  assert sum(part["parameters"] for part in found["parts"].values()) == total["parameters"]
  assert found["parts"]["embedding"]["parameters"] == 128 * 96
  assert found["tokens"] == {"each camera": 16, "prompt, at most": 14, "prefix": 46, "actions": 16}
  assert found["robot"] == "panda" and found["state"] == 10 and not found["doubts"]  # what is hidden is no doubt
  assert found["actions"][4] == {"integrates": False, "cost": 2.0, "low": 0.0, "high": 1.0,
                                 "demonstrated": "0 to 1 (q01, q99)"}
  assert json.loads(json.dumps(found)) == found
  text = inspection.in_words(found | {"parts": {"all": total}})
  assert "action[4]      a place" in text and "830,981" in text and text.endswith("doubts         none")


def test_all_of_pi0_without_reading_it(unread, tmp_path):
  folder = write(tmp_path / "pi0_aloha_sim" / "20000", "pi0")
  asset = "lerobot/aloha_sim_transfer_cube_human"
  still = np.arange(14) == 3
  save_stats(folder, asset, q01=np.where(still, -1e-6, -1.0), q99=np.where(still, 1e-6, 1.0))
  found = inspection.inspect(str(folder))
  assert found["parts"]["all"]["parameters"] == 3_238_048_528 and found["parts"]["all"]["bytes"] == 4 * 3_238_048_528
  assert found["flops"]["encode"] == pytest.approx(3.99e12, rel=0.01) and found["tokens"]["prefix"] == 816
  assert [text[:22] for text in found["doubts"]] == ["state[3] hardly varies"]
  assert "action[0-5]    a place, a unit costs 3" in inspection.in_words(found)


def test_what_is_missing_or_does_not_fit_is_told(unread, tmp_path):
  shutil.copytree(directory.ASSETS / "panda_small", tmp_path / "bare", ignore=shutil.ignore_patterns("assets"))
  found = inspection.inspect(str(tmp_path / "bare"))
  assert found["flops"] and found["actions"][0]["demonstrated"] is None and "has no assets/" in found["doubts"][0]
  found = inspection.inspect(str(write(tmp_path / "step", "pi0_dummy")))  # of which no configuration is known
  assert found["family"] == "pi0" and "expert" in found["parts"] and found["flops"] is None
  assert "nothing says whose it is" in found["doubts"][0] and "arrays differ" in found["doubts"][1]
  assert "robot" not in found and "doubts" in inspection.in_words(found)


def test_other_units_than_the_robots_are_doubted(tmp_path):
  folder = tmp_path / "policy"
  shutil.copytree(directory.ASSETS / "panda_small", folder)
  file = next(folder.rglob(norm_stats.FILE_NAME))
  stats = json.loads(file.read_text())
  for values in stats["norm_stats"]["actions"].values():
    values[:3] = [1000 * value for value in values[:3]]  # millimetres
  file.write_text(json.dumps(stats))
  doubts = inspection.inspect(str(folder))["doubts"]
  assert [text[:10] for text in doubts] == [f"actions[{dim}]" for dim in range(3)]
  assert doubts[0].endswith("the robot's limits are -0.015 to 0.015: other units?")


def test_stages_are_timed():
  calls = []
  call = lambda name, *answer: lambda *_: calls.append(name) or answer  # noqa: E731
  policy = types.SimpleNamespace(
    robot=types.SimpleNamespace(name="robot", example=dict), start=lambda rows: (), prepare=call("prepare"),
    encode=call("encode", (), np.zeros(1)), decode=call("decode"), sample=call("sample"))
  found = inspection.latency(policy, repeats=2)
  assert list(found) == list(inspection.STAGES) and all(0 < each["p50"] <= each["p95"] for each in found.values())
  assert calls == ["prepare", "encode", *(stage for stage in inspection.STAGES for _ in range(3))]
  policy.robot.example = None
  with pytest.raises(Pi0RagError, match="'robot' has no example observation"):
    inspection.latency(policy)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["panda_smal"], "Did you mean 'panda_small'"),
    (["gs://bucket/nothing"], "inspecting downloads nothing"),
    (["pi0_aloha_sim", "--checkpoint=nowhere"], "no checkpoint directory at nowhere"),
    (["panda_small", "--checkpoint=nowhere"], "has parameters of its own"),
  ],
)
def test_wrong_use_is_one_line(arguments, message, capsys):
  assert main(["inspect", *arguments]) == 2
  out, err = capsys.readouterr()
  assert not out and message in err and err.count("\n") == 1
