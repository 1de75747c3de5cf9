"""Robots that are decided for at once get what they would get alone, and none pays for another's mistake."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, Record
from pi0rag_jax.policy import directory
from pi0rag_jax.steering import together
from pi0rag_jax.steering.agent import Agent


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


@pytest.fixture(scope="module")
def looks(policy):
  rng = np.random.default_rng(0)
  seen = policy.robot.example()
  pictures = lambda: {name: rng.integers(0, 255, np.shape(picture), np.uint8)  # noqa: E731
                      for name, picture in seen["image"].items()}
  prompts = ("pick", "put the red cube into the bin", "pick")
  return [{**seen, "image": pictures(), "prompt": prompt} for prompt in prompts]


def test_each_gets_what_it_would_get_alone(policy, looks, tmp_path):
  with Memory.open(tmp_path, **policy.memory_header()) as memory:
    own = Agent(policy).decide(policy.start(1), looks[:1])[1]
    memory.add([Record(own.key_BE[0], own.base_BTA[0], np.clip(own.base_BTA[0] + 0.01, -1, 1), CORRECTION, "failure")])
    agent = Agent(policy, memory)
    alone = [agent.session().answer(look) for look in looks]
    found = together.answers([(agent.session(), look) for look in looks])
    for (answer, decision), (wanted, other) in zip(found, alone):
      np.testing.assert_allclose(answer["actions"], wanted["actions"], atol=1e-5)
      np.testing.assert_allclose(decision.key_BE, other.key_BE, atol=1e-5)
      assert answer["neighbours_used"] == wanted["neighbours_used"] and decision.ids_BK.shape == other.ids_BK.shape
    assert found[0][0]["neighbours_used"] == 1
    agent.close()


def test_one_that_is_wrong_leaves_the_others_alone(policy, looks):
  agent = Agent(policy)
  good, wrong, other = together.answers([(agent.session(), looks[0]), (agent.session(), {"state": 3}),
                                         (agent.session(), looks[1])])
  assert isinstance(wrong, Pi0RagError) and good[0]["actions"].shape == other[0]["actions"].shape
  (lonely,) = together.answers([(agent.session(), looks[0])])
  np.testing.assert_array_equal(lonely[0]["actions"], agent.session().infer(looks[0])["actions"])
