"""Exported policies: the same bits by jax, numpy and faiss alone, and what cannot be exported."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="the extra `export` is not installed")

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Record
from pi0rag_jax.policy import __main__ as command
from pi0rag_jax.serving import export, runner
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import Agent
from tests.steering.conftest import make_policy  # noqa: F401

# What the runner must do without.
ABROAD = """
import sys
sys.modules.update(dict.fromkeys(("pi0rag_jax", "flax", "sentencepiece", "PIL")))
sys.path.insert(0, sys.argv[1])
import numpy as np
import run
seen, _ = run.read_observation(sys.argv[2])
answer = run.Runner(sys.argv[1], memory=sys.argv[3]).infer(seen)
np.savez(sys.argv[4], alone=run.Runner(sys.argv[1]).infer(seen)["actions"], **answer)
"""


@pytest.fixture(scope="module")
def exported(policy, observations, tmp_path_factory):
  """The folder of an export that knows the first observation's prompt, for two platforms."""
  folder = tmp_path_factory.mktemp("exported")
  names = export.write(policy, folder, platforms=("cpu", "cuda"), prompts=[observations[0]["prompt"]])
  assert names == ["encode_16", "decode_16", "sample_16", "steer"]
  return folder


@pytest.fixture(scope="module")
def taught(policy, observations, tmp_path_factory):
  """A memory near the first observation: more corrections than a rule asks for, some alike, and anchors."""
  directory, rng = tmp_path_factory.mktemp("taught"), np.random.default_rng(0)
  _, seen = Agent(policy).answer(observations[0])
  key_E, base_TA = seen.key_BE[0], seen.base_BTA[0]
  with Memory.open(directory, **policy.memory_header()) as memory:
    memory.add([Record(key_E + 0.001 * (i // 3), base_TA, base_TA + 0.002 * rng.standard_normal(base_TA.shape),
                       kind=ANCHOR if i % 7 == 0 else CORRECTION, outcome="success",
                       provenance={"source": "expert", "seed": i}) for i in range(60)])
  return directory


def test_what_was_exported_answers_bit_for_bit_without_the_package(policy, exported, taught, observations, tmp_path):
  seen = observations[0]
  np.savez(tmp_path / "seen.npz", state=seen["state"], prompt=seen["prompt"],
           **{f"image/{name}": picture for name, picture in seen["image"].items()})
  paths = exported, tmp_path / "seen.npz", taught, tmp_path / "a.npz"
  subprocess.run([sys.executable, "-c", ABROAD, *map(str, paths)], check=True, cwd=tmp_path)
  with Memory.load(taught) as memory, np.load(tmp_path / "a.npz") as found:
    agent = Agent(policy, memory)
    _, wanted = agent.answer(seen)
    agent.close()
    assert wanted.used_B[0] > 32 and np.abs(wanted.actions_BTA - wanted.base_BTA).max() > 1e-4
    np.testing.assert_array_equal(found["key"], wanted.key_BE[0])
    np.testing.assert_array_equal(found["base"], wanted.base_BTA[0])
    np.testing.assert_array_equal(found["ids"], wanted.ids_BK[0])
    # FAISS rounds a distance by the row's place in its index, which is another one.
    np.testing.assert_allclose(found["weights"], wanted.weight_BK[0], atol=1e-5)
    np.testing.assert_allclose(found["actions"], wanted.actions_BTA[0], atol=1e-6)
    assert found["used"] == wanted.used_B[0]
    _, alone_BTA = policy.sample((), policy.prepare([seen]))
    np.testing.assert_array_equal(found["alone"], np.asarray(alone_BTA)[0])


def test_prompts_beyond_the_table_take_the_tokenizer(policy, exported, observations):
  loaded = runner.Runner(exported)
  for seen in (observations[1], {**observations[1], "prompt": "pick_up the\nred cube", "state": np.arange(10.0)}):
    wanted, found = policy.prepare([seen]), loaded.inputs(seen)
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    jax.tree.map(np.testing.assert_array_equal, wanted, found)
  noise_TX = np.ones(policy.noise_shape, np.float32)
  wanted_BTA = policy.sample((), policy.prepare([seen]), noise_TX[None])[1]
  np.testing.assert_array_equal(loaded.infer(seen, noise=noise_TX)["actions"], np.asarray(wanted_BTA)[0])


def test_a_robot_that_measures_otherwise(make_policy, seen_by_aloha, tmp_path):  # noqa: F811
  """pi0.5: the state is text, quantiles normalize it, actions are relative to it; a camera is absent."""
  policy = make_policy("pi05")
  wanted = policy.prepare([seen_by_aloha])
  length = wanted["tokenized_prompt"].shape[1]
  export.write(policy, tmp_path / "out", lengths=[length])
  loaded, sample = runner.Runner(tmp_path / "out"), policy.robot.observe(seen_by_aloha)
  found = loaded.inputs(sample)
  jax.tree.map(np.testing.assert_array_equal, wanted, found)
  np.testing.assert_array_equal(loaded.infer(sample)["actions"], np.asarray(policy.sample((), wanted)[1])[0])
  about = json.loads((tmp_path / "out" / export.FILE_NAME).read_text())
  assert not about["raw"] and about["quantile"] and about["discrete_state"]
  with (pytest.warns(UserWarning, match="186 tokens, the model takes 160"),
        pytest.raises(ValueError, match=r"no program sample_160\.stablehlo: prompts of that many tokens were not")):
    loaded.infer({**sample, "prompt": "fold the towel " * 40})


@pytest.fixture
def seen_by_aloha():
  rng = np.random.default_rng(0)
  cameras = ("cam_high", "cam_left_wrist", "cam_right_wrist")
  return {"images": {name: rng.integers(0, 256, (3, 28, 28), np.uint8) for name in cameras},
          "state": 0.2 * rng.standard_normal(14), "prompt": "fold the towel"}


@pytest.mark.parametrize(("change", "message"), [
    ({"image": {}}, r"has the cameras \[\]; exported: \['base_0_rgb', 'left_wrist_0_rgb'\]"),
    ({"state": np.zeros(3)}, r"state has shape \(3,\), or NaN; exported: finite numbers \(10,\)"),
])
def test_the_runner_says_what_it_takes(exported, observations, change, message):
  with pytest.raises(ValueError, match=message):
    runner.Runner(exported).inputs({**observations[0], **change})


def test_a_memory_of_another_policy_is_refused(policy, exported, tmp_path):
  Memory.open(tmp_path / "other", **policy.memory_header() | {"policy": "other-1"}).close()
  with pytest.raises(ValueError, match="the memory's policy is other-1, the policy's tiny-"):
    runner.Runner(exported, memory=tmp_path / "other")


@pytest.mark.parametrize(("kind", "message"), [
    ("pi0_fast", "it is a pi0-FAST, which writes tokens that the host reads as a chunk; allowed: pi0 and pi0.5"),
    ("lstm", "it is a head, whose backbone has a host path of its own"),
])
def test_policies_that_need_the_host(make_policy, tmp_path, kind, message):  # noqa: F811
  with pytest.raises(Pi0RagError, match=message):
    export.write(make_policy(kind), tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rule", "message"), [
    ("guidance", r"runs the policy's flow once more \(flow 'pulled'\); allowed: .* 'residual'"),
    ("residual_dagger", "asks what was fitted"), ("aligned", "aligns paths in time"),
    ("forgetting", "trusts records by how episodes ended"), ("placebo", "shuffles records"),
])
def test_rules_that_need_the_host(policy, tmp_path, rule, message):
  with pytest.raises(Pi0RagError, match=message):
    export.write(policy, tmp_path / "out", rule=rules.preset(rule))


def test_a_program_with_a_callback_is_refused():
  called = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)  # noqa: E731
  with pytest.raises(Pi0RagError, match="the program has a callback: it calls Python of this process"):
    export.serialized(called, ("cpu",), np.zeros(2, np.float32))


def test_the_commands_mistakes_are_one_line(tiny_policy_dir, tmp_path, capsys):
  (tmp_path / "full").write_text("")
  for arguments, message in ((["--platforms=gpu"], "error: unknown platform 'gpu'"),
                             (["--lengths=17"], "error: unknown length of prompts '17'"),
                             ([f"--memory={tmp_path / 'none'}"], "error: no memory in")):
    assert command.main(["export", f"--policy={tiny_policy_dir}", f"--out={tmp_path / 'out'}", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
  assert command.main(["export", f"--policy={tiny_policy_dir}", f"--out={tmp_path}"]) == 2
  assert capsys.readouterr().err.endswith("is there already: give a folder that does not exist, or is empty\n")
