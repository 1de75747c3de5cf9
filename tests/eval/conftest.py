"""A made-up run of realistic shape: three conditions, four policies, 40 shared seeds and a stream each."""

import numpy as np
import pytest

from eval.records import EpisodeRecord

# Success of each policy by condition; 'nominal' is where a memory can only do harm.
RATES = {
  "nominal": {"base": 0.85, "base_z0": 0.97, "textbook": 0.95, "memory": 0.95},
  "camera_shift": {"base": 0.35, "base_z0": 0.45, "textbook": 0.5, "memory": 0.85},
  "tool_offset": {"base": 0.5, "base_z0": 0.6, "textbook": 0.6, "memory": 0.75},
}
STAGES_MS = {"prepare": 0.6, "policy": 21.0, "search": 20.8, "steer": 0.4, "total": 22.0}
KINDS = ("miss", "drop", "collision", "timeout")


@pytest.fixture
def run_records() -> list[EpisodeRecord]:
  """Records of the whole run; one evaluation episode and one stream episode of it crashed."""
  rng = np.random.default_rng(7)
  records = []
  for condition, rates in RATES.items():
    records += _stream(rng, condition, rates)
    luck_S = rng.random(40)  # Shared by the policies: seeds differ in difficulty.
    for policy, rate in rates.items():
      records += [_evaluated(rng, condition, policy, seed, luck_S[seed] < rate) for seed in range(40)]
  return records


def _stream(rng, condition: str, rates) -> list[EpisodeRecord]:
  records = []
  for index in range(60):
    share = rates["base_z0"] + (rates["memory"] - rates["base_z0"]) * min(index / 40, 1)
    failed = rng.random() > share
    crashed = condition == "nominal" and index == 30
    records.append(
      EpisodeRecord(
        phase="stream",
        policy="memory",
        task="place",
        condition=condition,
        stream=condition,
        seed=1000 + index,
        index=index,
        outcome="crashed" if crashed else "failure" if failed else "success",
        failure_kind="miss" if failed and not crashed else "",
        corrected=failed and not crashed,
        records_added=12,
        memory_records=12 * (index + 1),
        error="Traceback:\nRuntimeError: no contact" if crashed else "",
        extra={"memory_bytes": 4096 * (index + 1)},
      )
    )
  return records


def _evaluated(rng, condition: str, policy: str, seed: int, succeeded: bool) -> EpisodeRecord:
  crashed = (condition, policy, seed) == ("tool_offset", "memory", 11)
  remembers = policy in ("textbook", "memory")
  stages = {s: ms for s, ms in STAGES_MS.items() if s not in (("policy",) if remembers else ("search", "steer"))}
  outcome = "crashed" if crashed else "success" if succeeded else "failure"
  return EpisodeRecord(
    phase="eval",
    policy=policy,
    task="place",
    condition=condition,
    stream=condition if remembers else "",
    stream_episodes=60 if remembers else 0,
    seed=seed,
    index=seed,
    outcome=outcome,
    failure_kind=KINDS[seed % 4] if outcome == "failure" else "",
    steps=int(rng.integers(80, 200)),
    decisions=20,
    latency_ms={s: list(ms * rng.lognormal(0, 0.15, size=20)) for s, ms in stages.items()},
    abstained=3 if policy == "memory" else 0,
    error="Traceback:\nFileNotFoundError: '/home/me/scene.xml'" if crashed else "",
  )


@pytest.fixture
def clip() -> dict:
  """A clip of two sides of different length: a square that crosses the picture."""
  frames = [_frame(step) for step in range(40)]
  return {
    "title": "place",
    "condition": "camera_shift",
    "seed": 3,
    "frames_without": np.stack(frames[:25]),
    "frames_with": np.stack(frames),
    "outcome_without": "miss",
    "outcome_with": "success",
  }


def _frame(step: int) -> np.ndarray:
  frame = np.full((64, 64, 3), 200, np.uint8)
  frame[28:36, step : step + 8] = (200, 40, 30)
  return frame
