"""`loop`: control cycles at a fixed rate, from uint8 pictures to actions on the host, with a full memory."""

import argparse
import tempfile
import time

import numpy as np

from eval.benchmarks import memory, models, timing
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import keys, normalize, shipped, steering
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.rag_policy import SteeredPolicy
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.policy.tokenizer import SentencePieceTokenizer

KEY_DIM = 512
EXECUTE_STEPS = 5
WARM_UP = 20


def loop(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each number of cameras and rate: cycles per second, jitter, missed deadlines, time by stage."""
  rows = []
  for cameras in flags.cameras:
    policy = _policy(flags.size, cameras)
    with tempfile.TemporaryDirectory() as directory:
      horizon, action_dim = policy.chunk_shape
      with Memory.open(directory, key_dim=policy.key_dim, action_horizon=horizon, action_dim=action_dim,
                       encoder="bench", policy=policy.fingerprint, capacity=flags.records) as records:
        memory.fill(records, flags.records)
        steered = SteeredPolicy(policy, records, steering.preset("residual"))
        rows += [{"size": flags.size, "cameras": cameras, "records": flags.records, "rate_hz": rate,
                  **_cycles(steered, rate, flags.cycles)} for rate in flags.rates]
        steered.close()
  return rows


def _cycles(policy: SteeredPolicy, rate_hz: int, count: int) -> dict[str, float]:
  """Returns what came of so many cycles, each begun on the clock; one that comes late begins at once."""
  observations = [_observation(policy.policy, np.random.default_rng(seed)) for seed in range(8)]
  for observation in observations[:1] * WARM_UP:
    policy.infer([observation])
  begun_s, taken_ms, stages = [], [], {}
  start = time.perf_counter()
  for i in range(count):
    time.sleep(max(0.0, start + i / rate_hz - time.perf_counter()))
    begin = time.perf_counter()
    found = policy.infer([observations[i % len(observations)]])
    begun_s.append(begin)
    taken_ms.append(1000 * (time.perf_counter() - begin))
    for name, ms in found.latency_ms.items():
      stages.setdefault(name, []).append(ms)
  elapsed_s = time.perf_counter() - start
  period_ms = 1000 * np.diff(begun_s)
  return {"cycles": count, "achieved_hz": round(count / elapsed_s, 2), **timing.summary(taken_ms),
          "jitter_ms": round(float(period_ms.std()), 3),
          "missed": int((np.array(taken_ms) > 1000 / rate_hz).sum()),
          **{f"{name}_p50_ms": round(float(np.median(ms)), 3) for name, ms in stages.items() if name != "total"}}


def _policy(size: str, cameras: int) -> Policy:
  """Returns a policy of random parameters whose robot has as many joints as the model has actions."""
  config = models.SIZES[size]
  params = models.params(config)
  config, _ = models.with_cameras(config, models.observation(config, batch=1), cameras)
  spec = PolicySpec(
    name="bench", model=config, state_dim=config.state_size, action_layout=memory.joints(config.action_dim),
    asset_id="bench", task="", renderer="", image_size=config.image_size[0], control_hz=50.0,
    execute_steps=EXECUTE_STEPS, denoising_steps=10)
  stats = {name: normalize.NormStats(np.zeros(dim), np.ones(dim))
           for name, dim in (("state", spec.state_dim), ("actions", config.action_dim))}
  recipe = keys.KeyRecipe(projection_dim=min(KEY_DIM, keys.feature_width(keys.KeyRecipe(), config)))
  tokenizer = SentencePieceTokenizer(shipped.directory("panda_tasks") / TOKENIZER_NAME)
  width = keys.feature_width(recipe, config)
  return Policy(spec, params, stats, tokenizer, keys.KeyStats.identity(recipe, width))


def _observation(policy: Policy, rng: np.random.Generator) -> dict:
  size = policy.spec.image_size
  return {"image": {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in policy.spec.model.image_keys},
          "state": rng.standard_normal(policy.spec.state_dim).astype(np.float32), "prompt": "pick up the red cube"}
