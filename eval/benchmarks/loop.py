"""`loop`: control cycles at a fixed rate, from uint8 pictures to actions on the host, with a full memory."""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from eval.benchmarks import memory, models, timing
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import compiling, keys, shipped
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.robots import normalize
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import SteeredPolicy
from pi0rag_jax.steering.retrieval import Retriever

KEY_DIM = 512
EXECUTE_STEPS = 5
WARM_UP = 20


def loop(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each number of cameras and rate: cycles per second, jitter, missed deadlines, time by stage."""
  rows, config = [], rules.preset("residual")
  for cameras in flags.cameras:
    policy = _policy(flags.size, cameras, flags.steps[0])
    with tempfile.TemporaryDirectory() as directory:
      horizon, action_dim = policy.chunk_shape
      with Memory.open(directory, key_dim=policy.key_dim, action_horizon=horizon, action_dim=action_dim,
                       encoder="bench", policy=policy.fingerprint, capacity=flags.records) as records:
        memory.fill(records, flags.records)
        steered = SteeredPolicy(policy, records, config)
        split = _host_and_device(steered, _device_work(policy, records, config), flags.repeats)
        rows += [{"size": flags.size, "cameras": cameras, "records": flags.records, "rate_hz": rate,
                  **_cycles(steered, rate, flags.cycles), **split} for rate in flags.rates]
        steered.close()
  return rows


def _cycles(policy: SteeredPolicy, rate_hz: int, count: int) -> dict[str, float]:
  """Returns what came of so many cycles, each begun on the clock; one that comes late begins at once.

  A cycle misses its deadline when its actions are there only after the next one was due: late by its own time, or by
  that of those before it.
  """
  observations = [_observation(policy.policy, np.random.default_rng(seed)) for seed in range(8)]
  for observation in observations[:1] * WARM_UP:
    policy.infer([observation])
  begun_s, ended_s, stages = [], [], {}
  start = time.perf_counter()
  due_s = start + np.arange(count + 1) / rate_hz
  for i in range(count):
    time.sleep(max(0.0, due_s[i] - time.perf_counter()))
    begun_s.append(time.perf_counter())
    found = policy.infer([observations[i % len(observations)]])
    ended_s.append(time.perf_counter())
    for name, ms in found.latency_ms.items():
      stages.setdefault(name, []).append(ms)
  begun_s, ended_s = np.array(begun_s), np.array(ended_s)
  return {"cycles": count, "achieved_hz": round(count / (max(ended_s[-1], due_s[-1]) - start), 2),
          **timing.summary(1000 * (ended_s - begun_s)),
          "jitter_ms": round(float(np.diff(1000 * begun_s, prepend=1000 * due_s[0] - 1000 / rate_hz).std()), 3),
          "missed": int((ended_s > due_s[1:]).sum()),
          **{f"{name}_p50_ms": round(float(np.median(ms)), 3) for name, ms in stages.items() if name != "total"}}


def _host_and_device(policy: SteeredPolicy, device_work: Callable, repeats: int) -> dict[str, float]:
  """Returns the time of a decision's work on the device alone, and what a decision takes beyond it."""
  observation = [_observation(policy.policy, np.random.default_rng(0))]
  taken = timing.interleaved({"call": lambda: policy.infer(observation).actions_BTA, "device": device_work},
                             repeats=repeats)
  return {f"{name}_work_p50_ms": round(float(np.median(ms)), 3)
          for name, ms in (("device", taken["device"]), ("host", taken["call"] - taken["device"]))}


def _device_work(policy: Policy, records: Memory, config: rules.SteeringConfig) -> Callable:
  """Returns a call of all that a decision computes on the device, as one program whose inputs are there already."""
  layout = policy.spec.action_layout
  retriever = Retriever(records, config, layout, unit_distance=policy.key_stats.unit_distance)
  steer = functools.partial(rules.steer, config=config, layout=layout)

  def decide(params, key_params, observation, start_BTA, neighbours):
    encoded = policy.encode_fn(params, key_params, observation)
    base_BTA = policy.denoise_fn(params, encoded.prefix, encoded.state_BA, start_BTA)
    return encoded.key_BE, steer(base_BTA, neighbours)

  key_BE = np.random.default_rng(1).standard_normal((1, policy.key_dim)).astype(np.float32)
  neighbours = {name: array for name, array in retriever(key_BE).items() if name != "ids_BK"}
  inputs = jax.device_put((policy.model_input([_observation(policy, np.random.default_rng(0))]),
                           policy.start_of_flow(1, None), neighbours))
  program = jax.jit(decide, compiler_options=compiling.options(policy.params))
  return lambda: program(policy.params, policy.key_params, *inputs)


def _policy(size: str, cameras: int, steps: int) -> Policy:
  """Returns a policy of random parameters whose robot has as many joints as the model has actions."""
  config = models.SIZES[size]
  params = models.params(config)
  config, _ = models.with_cameras(config, models.observation(config, batch=1), cameras)
  spec = PolicySpec(
    name="bench", model=config, state_dim=config.state_size, action_layout=memory.joints(config.action_dim),
    asset_id="bench", task="", renderer="", image_size=config.image_size[0], control_hz=50.0,
    execute_steps=EXECUTE_STEPS, denoising_steps=steps)
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
