"""Asking for help: where failures were, as often as it may, and never because of what was deleted."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import asking
from pi0rag_jax.learning.asking import Asker, AskingConfig
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Record
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.worlds.episode import Step

HEADER = {"key_dim": 6, "action_horizon": 8, "action_dim": ACTIONS.dim, "encoder": "e", "policy": "p"}
DECISIONS = 5
STILL_TA = np.zeros((8, ACTIONS.dim), np.float32)


def episode(rng, number, *, wrong):
  """Returns the records of an episode; where it goes wrong, its last decisions lie elsewhere."""
  records = []
  for decision in range(DECISIONS):
    lost = wrong and decision >= 3
    key_E = rng.standard_normal(6) + np.array([3.0 * lost, 0, 0, 0, 0, 0])
    records.append(Record(key_E, STILL_TA, STILL_TA, CORRECTION if lost else ANCHOR, "failure" if lost else "success",
                          provenance={"source": "human" if lost else "policy", "seed": number, "tick": 4 * decision}))
  return records


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
  rng = np.random.default_rng(0)
  with Memory.open(tmp_path_factory.mktemp("memory"), **HEADER) as opened:
    for number in range(80):
      opened.add(episode(rng, number, wrong=number % 4 == 0))
    yield opened


def step(key_E, tick=0, base_TA=STILL_TA):
  nobody_K = np.zeros(0, int)
  return Step(tick, None, np.asarray(key_E, np.float32), base_TA, base_TA, 0, nobody_K, nobody_K)


def asked(fitted, rng, *, wrong):
  return any(fitted(record.key, 0.0, record.provenance["tick"]) for record in episode(rng, 0, wrong=wrong))


def test_it_asks_where_the_policy_needed_help_and_as_seldom_elsewhere_as_it_may(memory):
  rng = np.random.default_rng(1)
  fitted = asking.fit(memory, ACTIONS, AskingConfig(when="asked", false_asks=0.2))
  needed = np.mean([asked(fitted, rng, wrong=True) for _ in range(200)])
  in_vain = np.mean([asked(fitted, rng, wrong=False) for _ in range(200)])
  assert needed > 0.9 and 0.05 < in_vain < 0.35
  seldom = asking.fit(memory, ACTIONS, AskingConfig(when="asked", false_asks=0.0))
  assert seldom.threshold > fitted.threshold


def test_who_knows_too_little_always_asks(memory, tmp_path):
  few = AskingConfig(when="asked", least=25)
  assert asking.fit(memory, ACTIONS, few) is None
  assert Asker(memory, ACTIONS, few).episode(0)(step(np.zeros(6)))
  with Memory.open(tmp_path, **HEADER) as empty:
    assert asking.fit(empty, ACTIONS, AskingConfig(when="asked")) is None


def test_what_is_deleted_has_no_say(memory, tmp_path):
  rng = np.random.default_rng(0)
  episodes = [episode(rng, number, wrong=number % 4 == 0) for number in range(40)]
  config = AskingConfig(when="asked", least=3)
  with Memory.open(tmp_path / "a", **HEADER) as more, Memory.open(tmp_path / "b", **HEADER) as fewer:
    ids = [more.add(records) for records in episodes]
    more.remove(ids[4])
    for number, records in enumerate(episodes):
      if number != 4:
        fewer.add(records)
    one, other = (asking.fit(m, ACTIONS, config) for m in (more, fewer))
  assert one.threshold == other.threshold
  np.testing.assert_array_equal(one.weights_F, other.weights_F)


def test_a_plan_that_contradicts_the_one_before():
  forward_TA = np.tile(np.float32([0.01, 0, 0, 0, 0]), (8, 1))
  before = step(np.zeros(6), 0, forward_TA)
  assert asking.contradiction(None, before, ACTIONS) == 0
  assert asking.contradiction(before, step(np.zeros(6), 4, forward_TA), ACTIONS) == pytest.approx(0, abs=1e-6)
  # From the fourth tick on 4 ticks are in both: 2, 4, 6 and 8 cm apart.
  assert asking.contradiction(before, step(np.zeros(6), 4, -forward_TA), ACTIONS) == pytest.approx(5.0, rel=1e-3)


def test_at_random_it_asks_as_often_as_it_is_told(memory):
  config = AskingConfig(when="random", random_share=0.1)
  asker = Asker(memory, ACTIONS, config)
  asked = [[asks(step(np.zeros(6))) for _ in range(DECISIONS)] for asks in map(asker.episode, range(400))]
  assert 0.08 < np.mean(asked) < 0.12
  with pytest.raises(Pi0RagError, match="asking 'often'"):
    AskingConfig(when="often")
