"""What can be served: served actions are the local ones, and mistakes in naming a policy are said."""

import pathlib
import shutil
import types

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.openpi.named_configs import CONFIGS
from pi0rag_jax.policy import compiling, shipped
from pi0rag_jax.policy.openpi_policy import OpenpiPolicy, policy_transforms
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.robots.robot import robot_transforms
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.robots.transforms import compose
from pi0rag_jax.serving import examples, policies
from pi0rag_jax.serving.policies import RobotPolicy
from pi0rag_jax.steering.agent import SteeredPolicy

TESTS = pathlib.Path(__file__).parents[1]
TOKENIZER = TESTS / "robots" / "recorded" / "tokenizer" / "tiny_paligemma_like.model"
SHIPPED = "panda_small"
CHECKPOINT = TESTS / "golden" / "pi0" / "checkpoint"
# A model of the golden case's sizes under the configuration of openpi's DROID policy.
CONFIG = f"""
import dataclasses, json, pathlib
from eval import parity
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS
from pi0rag_jax.openpi import named_configs
from pi0rag_jax.openpi.config import ModelConfig

class Small(ModelConfig):
  def build(self):
    case = json.loads(pathlib.Path({str(CHECKPOINT.parent / "case.json")!r}).read_text())
    return parity.read_config(case["kind"], case["config"], dict.fromkeys(f"in/image/{{k}}" for k in OPENPI_CAMERAS))

def get_config():
  config = named_configs.get_config("pi0_droid")
  return dataclasses.replace(config, model=Small(), policy_metadata={{"reset_pose": [0, 1.5]}})
"""


@pytest.fixture
def droid(tmp_path, monkeypatch):
  """The served policy of a configuration file."""
  monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
  (tmp_path / "big_vision").mkdir()
  shutil.copy(TOKENIZER, tmp_path / "big_vision" / "paligemma_tokenizer.model")
  (tmp_path / "mine.py").write_text(CONFIG)
  return lambda: policies.openpi_policy(str(tmp_path / "mine.py"), str(CHECKPOINT), default_prompt="wave")


def test_an_openpi_policy_is_served(droid, connect):
  served, local = droid(), droid()
  assert served.example["prompt"] == "wave"  # it is compiled for a prompt of this length
  client = connect(served.policy, served.metadata)
  assert client.get_server_metadata() == {"reset_pose": [0, 1.5]}
  rng = np.random.default_rng(0)
  observation = {**served.example, "observation/joint_position": rng.normal(size=7)}
  del observation["prompt"]
  # Their noise comes from the same seed, in the same order.
  for _ in range(2):
    found, wanted = client.infer(observation), local.policy.infer(observation)
    assert found.keys() == wanted.keys() | {"server_timing"} and found["actions"].shape == (6, 8)
    np.testing.assert_array_equal(found["actions"], wanted["actions"])


@pytest.fixture(scope="module")
def small():
  return Policy.load(shipped.directory(SHIPPED))


@pytest.fixture
def memory_dir(small, observations, tmp_path):
  """A memory of one correction, made where the first observation is."""
  decision = SteeredPolicy(small).infer(observations[:1])
  base_TA = decision.base_BTA[0]
  corrected_TA = base_TA + np.float32([0, 0.005, 0, 0, 0])
  with Memory.open(tmp_path, key_dim=small.key_dim, action_horizon=16, action_dim=5, policy=small.fingerprint,
                   encoder=small.key_stats.recipe.name) as memory:
    memory.add([Record(key=decision.key_BE[0], base_chunk=base_TA, corrected_chunk=corrected_TA, kind="correction",
                       outcome="success", provenance={"source": "expert", "seed": 0})])
  return tmp_path


def test_ones_own_policy_is_served_with_its_memory(small, memory_dir, observations, connect):
  base_TA = SteeredPolicy(small).infer(observations[:1]).actions_BTA[0]
  with Memory.load(memory_dir) as memory:
    local_TA = SteeredPolicy(small, memory).infer(observations[:1]).actions_BTA[0]
  with policies.own_policy(SHIPPED, str(memory_dir)) as served:
    client = connect(served.policy, served.metadata)
    metadata = client.get_server_metadata()
    assert metadata["execute_steps"] == 4 and metadata["memory_records"] == 1 and metadata["action_horizon"] == 16
    found = client.infer(observations[0])
  assert found["neighbours_used"] == 1 and np.abs(found["actions"] - base_TA).max() > 1e-3
  np.testing.assert_array_equal(found["actions"], local_TA)
  timing = found["policy_timing"]
  assert timing["infer_ms"] >= timing["prefix_ms"] > 0 and "retrieval_ms" in timing


def test_no_request_waits_for_the_compiler(small, memory_dir, observations):
  with Memory.load(memory_dir) as memory:
    policy = RobotPolicy(SteeredPolicy(small, memory))
    policy.compile(observations[0])
    with compiling.counted() as at_a_request:
      policy.infer(observations[1])
  assert at_a_request.needed == 0


def test_without_a_memory_it_is_the_base_policy(small, observations):
  found = RobotPolicy(SteeredPolicy(small)).infer(observations[0])
  assert found["neighbours_used"] == 0
  np.testing.assert_array_equal(found["actions"], SteeredPolicy(small).infer(observations[:1]).actions_BTA[0])


@pytest.mark.parametrize(("changes", "message"), [
  ({"image": None}, "needs 'image', a map with the cameras base_0_rgb, left_wrist_0_rgb; it has image, state, prompt"),
  ({"image": {}}, "'base_0_rgb'"),
  ({"state": np.zeros(3)}, "state has 3 numbers, the robot has 10"),
  ({"prompt": None}, "prompt is None: send a text, or start the server with --default_prompt"),
])
def test_observations_that_do_not_fit_are_refused(small, observations, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    RobotPolicy(SteeredPolicy(small)).infer({**observations[0], **changes})


def test_default_prompts_are_for_observations_without(small, observations):
  silent = {key: value for key, value in observations[0].items() if key != "prompt"}
  policy = RobotPolicy(SteeredPolicy(small), default_prompt=observations[0]["prompt"])
  np.testing.assert_array_equal(policy.infer(silent)["actions"], policy.infer(observations[0])["actions"])


def test_a_memory_must_be_there_and_the_policys(small, tmp_path):
  with pytest.raises(Pi0RagError, match="no memory in /none"), policies.own_policy(SHIPPED, "/none"):
    pass
  with Memory.open(tmp_path, key_dim=small.key_dim, action_horizon=16, action_dim=5, policy="another",
                   encoder=small.key_stats.recipe.name):
    pass
  with pytest.raises(Pi0RagError, match="another"), policies.own_policy(SHIPPED, str(tmp_path)):
    pass


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.data.robot in examples.ROBOTS])
def test_examples_fit_their_robots(name):
  config = CONFIGS[name]
  robot = robot_transforms(config.data, config.model.family)
  inputs = compose(robot.inputs)(examples.ROBOTS[config.data.robot]())
  assert inputs["prompt"] == examples.PROMPT and inputs["image"] and np.isfinite(inputs["state"]).all()


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.data.robot == "fake"])
def test_examples_fit_the_debug_models(name):
  config = CONFIGS[name]
  model = config.model.build()
  group = policy_transforms(config.data, config.model, model, {}, text_tokenizer=SentencePieceTokenizer(TOKENIZER))
  policy = OpenpiPolicy(model, {}, group)
  inputs = policy.model_input(examples.model_example(policy))
  assert inputs["tokenized_prompt"].any() and inputs["image"]["base_0_rgb"].shape == (224, 224, 3)


@pytest.mark.parametrize(("text", "example"), [
  ("def example_observation():\n  return {'joints': 1}", {"joints": 1}), ("", None)])
def test_a_robot_of_ones_own_may_bring_its_example(tmp_path, monkeypatch, text, example):
  monkeypatch.setattr(policies, "create_policy", lambda *_, **__: types.SimpleNamespace(metadata={}))
  (tmp_path / "mine.py").write_text(f"from configs.my_robot import get_config\n{text}\n")
  assert policies.openpi_policy(str(tmp_path / "mine.py"), None).example == example


@pytest.mark.parametrize(("text", "message"), [
  ("x = 1", "mine.py has no get_config()"),
  ("def get_config():\n  return {}", "returns a dict, serving needs a TrainConfig as in configs/my_robot.py"),
  (None, "no configuration file .*mine.py; configs/my_robot.py is an example"),
])
def test_files_that_are_no_configuration_are_refused(tmp_path, text, message):
  if text is not None:
    (tmp_path / "mine.py").write_text(text)
  with pytest.raises(Pi0RagError, match=message):
    policies.openpi_policy(str(tmp_path / "mine.py"), None)


def test_unknown_names_are_refused():
  with pytest.raises(Pi0RagError, match="Did you mean 'pi0_droid'"):
    policies.openpi_policy("pi0_drod", None)
  with pytest.raises(Pi0RagError, match=r"unknown policy .* 'panda_smal'\. Did you mean 'panda_small'"), \
       policies.own_policy("panda_smal", None):
    pass
