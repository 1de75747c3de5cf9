"""`loop`: control cycles at a fixed rate, from uint8 pictures to actions on the host, with a full memory."""

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from eval.benchmarks import memory, models, timing
from eval.benchmarks.meter import Meter
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.policy import directory, keys
from pi0rag_jax.policy.network import FlowPolicy
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.robots import fake
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.pipeline import policy_transforms
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.steering.retrieval import Retriever

KEY_DIM = 512
EXECUTE_STEPS = 5
WARM_UP = 20


def loop(flags: argparse.Namespace) -> Iterator[dict]:
  """Yields a row for each number of cameras and rate: cycles per second, jitter, missed deadlines, time by stage.

  `python_ms` is the CPU time of Python in one `infer`, see Meter; the least of some turns, since others only add.
  """
  config = rules.preset("residual")
  for cameras in flags.cameras:
    policy = _policy(flags.size, cameras, flags.steps[0])
    with tempfile.TemporaryDirectory() as folder, Memory.open(
        folder, **policy.memory_header(), capacity=flags.records) as records:
      memory.fill(records, flags.records)
      agent = Agent(policy, records, config, feeding=flags.feeding)
      split = _host_and_device(agent, _device_work(policy, records, config), flags.repeats)
      split["python_ms"] = _python_ms(agent, flags.repeats)
      for rate in flags.rates:
        yield {"size": flags.size, "cameras": cameras, "records": flags.records, "feeding": flags.feeding,
               "rate_hz": rate, **_cycles(agent, rate, flags.cycles), **split}
      agent.close()


def _cycles(agent: Agent, rate_hz: int, count: int) -> dict[str, float]:
  """Returns what came of so many cycles, each begun on the clock; one that comes late begins at once.

  A cycle misses its deadline when its actions are there only after the next one was due: late by its own time, or by
  that of those before it.
  """
  observations = [_observation(agent.policy, np.random.default_rng(seed)) for seed in range(8)]
  for observation in observations[:1] * WARM_UP:
    agent.decide((), [observation])
  begun_s, ended_s, stages = [], [], {}
  start = time.perf_counter()
  due_s = start + np.arange(count + 1) / rate_hz
  for i in range(count):
    time.sleep(max(0.0, due_s[i] - time.perf_counter()))
    begun_s.append(time.perf_counter())
    _, found = agent.decide((), [observations[i % len(observations)]])
    ended_s.append(time.perf_counter())
    for name, ms in found.latency_ms.items():
      stages.setdefault(name, []).append(ms)
  begun_s, ended_s = np.array(begun_s), np.array(ended_s)
  return {"cycles": count, "achieved_hz": round(count / (max(ended_s[-1], due_s[-1]) - start), 2),
          **timing.summary(1000 * (ended_s - begun_s)),
          "jitter_ms": round(float(np.diff(1000 * begun_s, prepend=1000 * due_s[0] - 1000 / rate_hz).std()), 3),
          "missed": int((ended_s > due_s[1:]).sum()),
          **{f"{name}_p50_ms": round(float(np.median(ms)), 3) for name, ms in stages.items() if name != "total"}}


def _host_and_device(agent: Agent, device_work: Callable, repeats: int) -> dict[str, float]:
  """Returns the time of a decision's work on the device alone, and what a decision takes beyond it."""
  observation = [_observation(agent.policy, np.random.default_rng(0))]
  taken = timing.interleaved({"call": lambda: agent.decide((), observation)[1].actions_BTA, "device": device_work},
                             repeats=repeats)
  return {f"{name}_work_p50_ms": round(float(np.median(ms)), 3)
          for name, ms in (("device", taken["device"]), ("host", taken["call"] - taken["device"]))}


def _python_ms(agent: Agent, repeats: int) -> float:
  observation, meter = _observation(agent.policy, np.random.default_rng(0)), Meter()
  taken_ms = []
  with meter.sparing([agent]):
    for _ in range(repeats):
      start_s = meter.read()
      for _ in range(WARM_UP):
        agent.infer(observation)
      taken_ms.append(1000 * (meter.read() - start_s) / WARM_UP)
  return round(min(taken_ms), 3)


def _device_work(policy: Policy, records: Memory, config: rules.SteeringConfig) -> Callable:
  """Returns a call of all that a decision computes on the device, as one program whose inputs are there already."""
  retriever = Retriever(records, config, policy.space, unit_distance=policy.unit_distance)
  steer = functools.partial(rules.steer, config=config, space=policy.space)

  def decide(params, inputs, start_BTX, neighbours):
    _, encoded = policy.encode_fn(params, (), inputs)
    return encoded.key_BE, steer(policy.decode_fn(params, encoded, start_BTX), neighbours)

  key_BE = np.random.default_rng(1).standard_normal((1, policy.key_dim)).astype(np.float32)
  neighbours = {name: array for name, array in retriever(key_BE).items() if name != "ids_BK"}
  inputs = jax.device_put((policy.prepare([_observation(policy, np.random.default_rng(0))]), policy.start_of_flow(1),
                           neighbours))
  return functools.partial(policy.compiled(decide), *inputs)


def _policy(size: str, cameras: int, steps: int) -> Policy:
  """Returns a policy of random parameters whose robot has as many joints as the model has actions."""
  config = models.SIZES[size]
  params = models.params(config)
  config, _ = models.with_cameras(config, models.observation(config, batch=1), cameras)
  data = DataConfig(robot=lambda data, family: dataclasses.replace(
    fake.robot(data, family), actions=memory.joints(config.action_dim)), asset_id="bench")
  spec = PolicySpec(name="bench", model=ModelConfig(family="pi05" if config.pi05 else "pi0"), sizes=config, data=data,
                    control_hz=50.0, execute_steps=EXECUTE_STEPS, denoising_steps=steps)
  stats = {name: NormStats(zero, zero + 1, zero - 1, zero + 1) for name, zero in (
    ("state", np.zeros(config.state_size)), ("actions", np.zeros(config.action_dim)))}
  recipe = keys.KeyRecipe(projection_dim=min(KEY_DIM, keys.feature_width(keys.KeyRecipe(), config)))
  tokenizer = directory.tokenizer_of(directory.ASSETS / "panda_tasks", config)
  group = policy_transforms(data, spec.model, config, stats, text_tokenizer=tokenizer)
  return FlowPolicy(spec, params, robot=make_robot(data, spec.family), group=group, stats=stats,
                    key_stats=keys.KeyStats.identity(recipe, keys.feature_width(recipe, config)))


def _observation(policy: Policy, rng: np.random.Generator) -> dict:
  sizes = policy.spec.network
  return {"image": {name: rng.integers(0, 256, (*sizes.image_size, 3), np.uint8) for name in sizes.image_keys},
          "state": rng.standard_normal(sizes.state_size).astype(np.float32), "prompt": "pick up the red cube"}
