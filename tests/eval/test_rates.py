"""Rates of planning: the same episodes at each, and what they ask of the policy."""

import numpy as np

from eval import rates
from pi0rag_jax.policy import directory
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, Progress


class World:
  """An episode of 20 ticks, of which every second one succeeds."""

  def __init__(self, observation):
    self.observation, self.seeds = observation, []

  def begin(self, seed):
    self.seeds.append(seed)
    self.ticks = 0

  def observe(self):
    return self.observation

  def advance(self, actions_NA):
    self.ticks += 1
    return Progress(self.ticks, self.ticks == 20 and self.seeds[-1] % 2 == 0, self.ticks == 20)

  def close(self):
    pass


def test_each_rate_asks_as_often_as_it_says(tiny_policy_dir, observations, monkeypatch):
  worlds = []
  monkeypatch.setattr(rates.registry, "make_world", lambda config: worlds.append(World(observations[0])) or worlds[-1])
  agent = Agent(directory.load(str(tiny_policy_dir)))
  own, coarse, fine = (rates.measure(agent, "panda", "pick_and_place", "nominal", rate, 2)
                       for rate in ("own", "coarse", "fine"))
  assert [row["inferences_per_episode"] for row in (own, coarse, fine)] == [5, 2, 20]
  assert (fine["inferences_per_s"], own["successes"], own["n"], own["memory"]) == (20, 1, 2, False)
  assert np.unique([world.seeds for world in worlds], axis=0).tolist() == [list(EVALUATION_SEEDS[:2])]
