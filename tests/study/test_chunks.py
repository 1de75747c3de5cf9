"""The flow of a policy: its steps, its draws, and what cannot be studied."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from pi0rag_jax.study import chunks


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(str(tiny_policy_dir))


@pytest.fixture(scope="module")
def found(policy, observations):
  return chunks.study(policy, [chunks.Moment("tick 0", observations[0])], draws=3, steps=(4, 1), seed=7)


def test_chunks_are_the_policys_own(policy, observations, found):
  (seen,) = found
  noise_BTX = np.random.default_rng(7).standard_normal((3, *policy.noise_shape)).astype(np.float32)
  _, encoded = policy.encode((), policy.prepare([observations[0]] * 3))
  np.testing.assert_allclose(seen.draws_BTA, np.asarray(policy.decode(encoded, noise_BTX))[:3], atol=1e-5)
  np.testing.assert_allclose(seen.zero_TA, np.asarray(policy.decode(encoded))[0], atol=1e-5)


def test_the_first_step_foresees_what_a_single_step_makes(observations, tiny_policy_dir, found):
  (seen,) = found
  single = directory.load(str(tiny_policy_dir), denoising_steps=1)
  _, encoded = single.encode((), single.prepare([observations[0]]))
  np.testing.assert_allclose(seen.foreseen_NTA[0], np.asarray(single.decode(encoded))[0], atol=1e-5)
  assert seen.foreseen_NTA.shape == (2, *seen.zero_TA.shape)  # two denoising steps
  np.testing.assert_allclose(seen.foreseen_NTA[-1], seen.zero_TA, atol=1e-5)  # the last step goes where it looks


def test_rows(policy, found):
  rows = chunks.rows(policy, found)
  assert [(row["measure"], row.get("steps")) for row in rows] == [("moment", None), ("error", 1), ("error", 4)]
  assert rows[1]["error"] > rows[2]["error"] == 0 and rows[0]["detour"] >= 1


def test_how_much_is_between_two_groups():
  two_BF = np.asarray([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
  assert chunks.split_share(two_BF) == pytest.approx(1.0)
  line_BF = np.stack([np.linspace(0, 1, 1000), np.zeros(1000)], axis=1)
  assert chunks.split_share(line_BF) == pytest.approx(0.75, abs=1e-3)
  two_entries_BF = np.random.default_rng(1).standard_normal((200, 2)) * [1.0, 0.01]
  two_entries_BF[:, 1] += np.repeat([0.0, 1.0], 100)  # a gripper, open or shut
  assert chunks.entry_split(two_entries_BF) == (pytest.approx(1.0, abs=1e-3), 1)
  normal_BF = np.random.default_rng(0).standard_normal((4000, 1)) @ np.asarray([[1.0, 2.0]])
  assert chunks.split_share(normal_BF) == pytest.approx(2 / np.pi, abs=0.02)


@pytest.mark.parametrize(
  ("changes", "arguments", "message"),
  [
    ({"head": {"head": {"chunk": 4}}}, {}, "policy 'tiny' is a head, whose chunks come of no flow; allowed: a"),
    ({}, {"draws": 0}, "draws are 0; allowed: 2 or more"),
    ({}, {"steps": (0, 1)}, "steps are 0, 1; allowed: two numbers or more, each 1 or more"),
    ({}, {"steps": ()}, "steps are none"),
  ],
)
def test_what_cannot_be_studied(policy, changes, arguments, message):
  spec = dataclasses.replace(policy.spec, **changes)
  with pytest.raises(Pi0RagError, match=message):
    chunks.check(spec, **{"draws": 8, "steps": (1, 10), **arguments})
