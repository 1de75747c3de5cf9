"""Trust in records: by comparison with all episodes, and fading with time."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.memory import Header, Neighbours
from pi0rag_jax.steering import credit, rules


@pytest.fixture
def found():
  """Three records: one that helped, one that hurt, one of which nothing is known."""
  empty = Neighbours.empty(1, 3, Header(4, 2, 2, "encoder", "policy"))
  return dataclasses.replace(empty, helped_BK=np.array([[6.0, 0.0, 0.0]], np.float32),
                             hurt_BK=np.array([[0.0, 4.0, 0.0]], np.float32), episode_BK=np.array([[90, 50, 80]]))


def test_the_default_trusts_all(found):
  trust = credit.trust(found, rules.preset("residual"), episodes=100, successes=10)
  assert trust.tolist() == [[1, 1, 1]] and trust.dtype == np.float32


def test_a_record_is_compared_with_the_average_episode(found):
  config = rules.preset("forgetting", half_life=0.0, utility_prior=4.0, utility_min=0.0)
  # 49 + 1 of 98 + 2 succeeded: (0 + 4 / 2) / (4 + 4) = 1/4, half of the average.
  np.testing.assert_allclose(credit.trust(found, config, episodes=98, successes=49), [[1, 0.5, 1]])
  strict = dataclasses.replace(config, utility_min=0.51)
  np.testing.assert_allclose(credit.trust(found, strict, episodes=98, successes=49), [[1, 0, 1]])
  # Where all fails it is not the record's fault: its four failures are as good as its prior.
  hard = credit.trust(found, dataclasses.replace(config, utility_prior=1e6), episodes=98, successes=0)
  np.testing.assert_allclose(hard, 1, rtol=1e-5)


def test_a_record_is_silenced_once_there_is_evidence_that_it_harms(found):
  config = rules.preset("residual", silenced_at=20.0, harmless=0.02)
  assert credit.trust(found, config, episodes=100, successes=90).tolist() == [[1, 0, 1]]
  for helped, hurt, trusted in ((0, 1, 0), (1, 1, 1), (0, 0.5, 1), (40, 2, 1), (4, 3, 0)):
    one = dataclasses.replace(found, helped_BK=np.full((1, 3), helped), hurt_BK=np.full((1, 3), hurt))
    assert credit.trust(one, config, episodes=100, successes=90)[0, 0] == trusted, (helped, hurt)


def test_harmless_records_are_silenced_as_rarely_as_promised(found):
  """Over all ways in which 40 episodes end, one of ten of which is hurt."""
  config = rules.preset("residual", silenced_at=10.0, harmless=0.1)
  hurt_K = np.arange(41)[None]
  chance_K, silenced = np.zeros(41), 0.0
  chance_K[0] = 1.0
  for episodes in range(1, 41):
    chance_K = 0.9 * chance_K + 0.1 * np.append(0.0, chance_K[:-1])
    counts = {"helped_BK": np.maximum(episodes - hurt_K, 0), "hurt_BK": hurt_K, "mask_BK": np.ones((1, 41), bool)}
    quiet_K = credit.trust(dataclasses.replace(found, **counts), config, episodes=100, successes=90)[0] == 0
    quiet_K &= hurt_K[0] <= episodes
    silenced += chance_K[quiet_K].sum()
    chance_K[quiet_K] = 0.0
  assert 0.01 < silenced <= 0.1


def test_trust_halves_with_every_half_life_without_help(found):
  config = rules.preset("residual", half_life=10.0)
  np.testing.assert_allclose(credit.trust(found, config, episodes=100, successes=0), [[0.5, 0.5**5, 0.25]])
