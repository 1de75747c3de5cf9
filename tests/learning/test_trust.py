"""When the memory is stopped, and when it works again."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.trust import Trust, TrustConfig
from pi0rag_jax.worlds.episode import Job

CONFIG = TrustConfig(share=0.1)


def stream(trust, first_seed, episodes, *, alone, steered):
  """Plays episodes with these rates of success; returns the share in which the memory worked."""
  rng, worked = np.random.default_rng(first_seed), []
  for seed in range(first_seed, first_seed + episodes):
    job = trust.launch(Job(seed, 0))
    worked.append(job.trust > 0)
    trust.observe(steered=job.trust > 0, success=bool(rng.random() < (steered if job.trust else alone)))
  return np.mean(worked[episodes // 2 :])


def test_a_memory_that_helps_goes_on_but_for_the_share():
  assert stream(Trust(CONFIG), 0, 400, alone=0.5, steered=0.9) == pytest.approx(0.9, abs=0.05)


def test_a_stale_memory_is_stopped_and_works_again_once_it_helps_again():
  trust = Trust(CONFIG)
  stream(trust, 0, 200, alone=0.5, steered=0.9)
  assert stream(trust, 1000, 400, alone=0.95, steered=0.7) < 0.2
  assert not trust.trusted
  assert stream(trust, 2000, 600, alone=0.3, steered=0.9) > 0.8


def test_without_a_share_and_in_replays_the_memory_always_works():
  assert Trust().launch(Job(3, 0)).trust == 1.0
  compared = [seed for seed in range(100) if Trust(CONFIG).launch(Job(seed, 0)).trust == 0]
  assert 3 < len(compared) < 20
  assert Trust(CONFIG).launch(Job(compared[0], 0, rewind="moment")).trust == 1.0


def test_better_is_a_probability():
  trust = Trust(CONFIG)
  assert trust.better() == 0.5
  for _ in range(20):
    trust.observe(steered=True, success=True)
    trust.observe(steered=False, success=False)
  assert trust.better() > 0.999


def test_bounds():
  with pytest.raises(Pi0RagError, match=r"0 to 0\.5"):
    TrustConfig(share=0.8)
  with pytest.raises(Pi0RagError, match="stop_below"):
    TrustConfig(stop_below=0.9)
