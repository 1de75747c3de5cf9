import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.robots import normalize, pipeline, plain
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.robots.transforms import compose


def test_a_plain_robot_takes_any_sizes_and_the_panda_its_own():
  raw = {"image": {"top": np.ones((3, 4, 5), np.float32)}, "state": [1, 2, 3], "prompt": b"go",
         "image_mask": {"top": np.False_}}
  robot = make_robot(DataConfig(robot="plain"), "pi0")
  found = robot.observe(raw | {"actions": np.zeros((2, 4))})
  assert found["image"]["top"].shape == (4, 5, 3) and found["image"]["top"].max() == 255 and found["prompt"] == "go"
  assert found["state"].tolist() == [1, 2, 3] and not found["image_mask"]["top"] and found["actions"].shape == (2, 4)
  assert robot.to_robot(np.zeros((2, 4)), np.zeros(3)).shape == (2, 4) and robot.action_map(6).is_identity
  panda = make_robot(DataConfig(robot="panda"), "pi0")
  assert panda.observe(panda.example())["state"].shape == (10,)
  assert panda.to_robot(np.zeros((2, 8)), np.zeros(10)).shape == (2, 5)
  with pytest.raises(Pi0RagError, match="state has 3 numbers, the robot has 10"):
    panda.observe(raw)
  with pytest.raises(Pi0RagError, match=r"state has shape \(1, 3\); allowed: \(P,\)"):
    robot.observe(raw | {"state": [[1, 2, 3]]})
  with pytest.raises(Pi0RagError, match="image_mask is bool; allowed: a dictionary"):
    robot.observe(raw | {"image_mask": True})


def test_an_example_is_what_a_policy_takes():
  robot = plain.with_example(make_robot(DataConfig(robot="plain"), "pi0"), ("top", "side"), 3, (8, 6))
  found = robot.observe(robot.example())
  assert list(found["image"]) == ["top", "side"] and found["image"]["side"].shape == (8, 6, 3)
  panda = make_robot(DataConfig(robot="panda"), "pi0")
  assert plain.with_example(panda, ("top",), 3, (8, 6)) is panda


def test_its_actions_are_as_wide_as_their_statistics():
  stats = {name: normalize.NormStats(np.ones(dim), np.ones(dim)) for name, dim in (("state", 2), ("actions", 3))}
  group = pipeline.policy_transforms(DataConfig(robot="plain"), ModelConfig(), registry.model("dummy"), stats,
                                     text_tokenizer=None)
  found = compose(group.outputs)({"state": np.zeros(8), "actions": np.zeros((4, 8))})
  assert found["actions"].tolist() == [[1] * 3] * 4
