"""How far a record is trusted, from the episodes in which it had a say and from how long ago it last helped."""

import math

import numpy as np

from pi0rag_jax import anytime
from pi0rag_jax.memory.neighbours import Neighbours
from pi0rag_jax.steering.rules import SteeringConfig


def trust(found: Neighbours, config: SteeringConfig, *, episodes: int, successes: int) -> np.ndarray:
  """Returns float32[B, K] in [0, 1]; 1 everywhere for a rule that forgets nothing.

  A record's rate of success is compared with that of all episodes, since a record that is merely there in a hard
  deployment is not to blame for it: trust = min(1, (helped + n p) / (helped + hurt + n) / p), with p the rate of all
  and n the prior; below `utility_min` it is 0. With every `half_life` of episodes since it was added, or helped last,
  half of the trust goes. With `silenced_at` a record loses all of it once a bet that it hurts more than the share
  `harmless` of its episodes has grown so much: of records that do not, a share of 1 / silenced_at at most ever does.

  Args:
    episodes, successes: of the memory, see Memory.record_outcome.
  """
  trust_BK = np.ones(found.mask_BK.shape, np.float32)
  if config.utility:
    rate = (successes + 1) / (episodes + 2)  # never 0, whatever happened
    prior = config.utility_prior
    own_BK = (found.helped_BK + prior * rate) / (found.helped_BK + found.hurt_BK + prior)
    trust_BK = np.minimum(own_BK / rate, 1.0).astype(np.float32)
    trust_BK[trust_BK < config.utility_min] = 0.0
  if config.silenced_at:
    capital_BK = anytime.log_e_value(found.hurt_BK, found.helped_BK, config.harmless, low=config.harmless)
    trust_BK[capital_BK >= math.log(config.silenced_at)] = 0.0
  if config.half_life:
    trust_BK *= 0.5 ** ((episodes - found.episode_BK) / config.half_life)
  return trust_BK
