"""State files that were damaged at random are refused in one line or read: no traceback, no hang, nothing altered.

Every kind has a short run here and one of 2,000 mutations under `-m slow`; a seed and a number reproduce a mutation.
"""

import json
import pathlib
import shutil
import time

import numpy as np
import pytest

from eval.records import EpisodeRecord, RecordLog, read_records
from pi0rag_jax.curation import labels, saved, selection, thresholds, training
from pi0rag_jax.curation.outcomes import OutcomeLog
from pi0rag_jax.data import splits, validation
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory, feature_cache, head, keys
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.robots import action_tokens
from train import checkpoint, grid
from train.curation import scores

VALUES = (None, True, -1, 0, 1, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 50, "../../etc", "{a.b}", "\0", [],
          {}, [[]], {"a": {}}, [1e30, -5], "1e9", 2**63, -(10**9))
CPU_S = 5.0
PANDA = directory.ASSETS / "panda_small"


def changed_bytes(data: bytes, rng) -> bytes:
  """Returns the bytes with a few of them flipped, cut, doubled or replaced by brackets."""
  data = bytearray(data)
  at, kind = int(rng.integers(len(data))), rng.integers(5)
  length = int(2 ** rng.integers(0, 8))
  if kind == 0:
    data[at] ^= 1 << int(rng.integers(8))
  elif kind == 1:
    del data[at:]
  elif kind == 2:
    data[at:at] = data[at : at + length]
  elif kind == 3:
    data[at:at] = b"[" * 100_000
  else:
    data[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
  return bytes(data)


def changed(data: bytes, rng) -> bytes:
  """Returns JSON, or lines of it, with a value changed or removed, or with changed bytes."""
  lines = data.splitlines() if data.count(b"\n{") else [data]
  at = int(rng.integers(len(lines)))
  if rng.integers(3) == 0:
    lines[at] = changed_bytes(lines[at], rng)
    return b"\n".join(lines)
  top = json.loads(lines[at])
  places = []

  def collect(node):
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
      places.append((node, key))
      if isinstance(value, dict | list):
        collect(value)

  collect(top)
  node, key = places[int(rng.integers(len(places)))]
  if rng.integers(4) == 0:
    del node[key]
  elif isinstance(node, dict) and rng.integers(4) == 0:
    node[f"{key}x"] = node.pop(key)
  else:
    node[key] = VALUES[int(rng.integers(len(VALUES)))]
  lines[at] = json.dumps(top).encode()
  return b"\n".join(lines)


def policy_json(folder):
  shutil.copyfile(PANDA / "policy.json", folder / "policy.json")
  return folder / "policy.json", lambda: PolicySpec.load(folder)


def key_stats(folder):
  spec = PolicySpec.load(PANDA)
  keys.KeyStats.uncalibrated(spec.network).save(folder)
  return folder / keys.FILE_NAME, lambda: keys.KeyStats.load(folder)


def head_of_before(name):
  def make(folder):
    (folder / "head.json").write_text(json.dumps(
      {"head": {"name": "mlp"}, "units": {"quantile": False, "closed": 0.0, "open": 1.0}, "weights": "a",
       "preprocessing": "b"}))
    (folder / "record.json").write_text(json.dumps({"step": 3, "config": {
      "name": "a head", "fields": {"cameras": {"base_0_rgb": "front"}, "default_prompt": "go"}, "stride": 2,
      "backbone": {"name": "light", "checkpoint": ""}, "state_in_prompt": False, "text_tokenizer": ""}}))
    return folder / name, lambda: head.describe(folder)

  return make


def records_jsonl(folder):
  with RecordLog(folder / "records.jsonl") as log:
    for seed in range(4):
      log.append(EpisodeRecord(phase="eval", policy="p", task="t", condition="c", stream="", seed=seed, index=seed,
                               outcome="success", latency_ms={"total": [1.0, 2.0]}))
  return folder / "records.jsonl", lambda: read_records(folder / "records.jsonl")


def outcomes_jsonl(folder):
  with OutcomeLog(folder / "outcomes.jsonl", {"policy": "p"}) as log:
    for seed in range(3):
      log.append(seed, "success", ticks=7)

  def read():
    with OutcomeLog(folder / "outcomes.jsonl", {"policy": "p"}) as log:
      return log.outcomes

  return folder / "outcomes.jsonl", read


def feature_cache_json(folder):
  key = feature_cache.CacheKey("weights", "preprocessing", "data")
  cache = feature_cache.build(folder, key, lambda rows: np.zeros((len(rows), 3), np.float32), 9, width=3, batch_size=4,
                              shard_rows=4)
  return cache.directory / feature_cache.FILE_NAME, lambda: feature_cache.load(folder, key).take(np.arange(9))


def selection_json(folder):
  kept_J = np.array([True, False, True])
  found = selection.Selection("a", np.array([1.0, np.nan, 2.0]), kept_J, 0.5, "fixed")
  selection.write_json(folder / "s.json", [found])
  return folder / "s.json", lambda: selection.read_json(folder / "s.json")


def classifier_json(folder):
  trained = training.TrainedClassifier("step_mlp", {"hidden": [8]}, {"layer": {"kernel": np.ones((2, 2), np.float32)}},
                                       np.zeros(2, np.float32), np.ones(2, np.float32), "a", "b", 3, 0.5)
  rollouts = thresholds.RolloutScores(*(np.array([0.5, np.nan, 1.0]) for _ in range(4)))
  saved.SavedClassifier(trained, rollouts, "recipe", {"a -> b": 0.5}).save(folder / "c")
  return folder / "c" / saved.FILE_NAME, lambda: saved.load(folder / "c")


def labels_json(folder):
  (folder / "labels.json").write_text(json.dumps({"0": 1, "1": "failure", "2": None}))
  return folder / "labels.json", lambda: labels.read_labels(folder / "labels.json")


def splits_json(folder):
  splits.save_splits(folder / splits.FILE_NAME, {"train": [0, 2], "validation": [1], "test": []}, num_episodes=3)
  return folder / splits.FILE_NAME, lambda: splits.load_split(folder, "train", num_episodes=3)


def schema_json(folder):
  validation.Schema({"front": (8, 8)}, 3, 2, 10.0, categories={"a": 1.0}, planned_episodes=4).save(folder)
  return folder / validation.SCHEMA_FILE, lambda: validation.Schema.load(folder).planned()


def processor_json(folder):
  (folder / action_tokens.TOKENIZER_FILE).write_text(json.dumps(
    {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
     "pre_tokenizer": None, "post_processor": None, "decoder": None,
     "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}))
  (folder / action_tokens.PROCESSOR_FILES[0]).write_text(json.dumps({"scale": 10, "min_token": -354, "other": 1}))
  return folder / action_tokens.PROCESSOR_FILES[0], lambda: action_tokens.FastCodec(folder)


def tokenizer_json(folder):
  _, read = processor_json(folder)
  return folder / action_tokens.TOKENIZER_FILE, read


def metrics_json(folder):
  store = checkpoint.CheckpointStore(folder, asset_id="a")
  store.folder(3).mkdir()
  (store.folder(3) / "metrics.json").write_text(json.dumps({"score": 1.5, "loss": None}))
  return store.folder(3) / "metrics.json", store.best_step


def grid_json(folder):
  grid.write(folder, [{"name": "a=1", "point": {"a": 1}, "status": "done", "score": 1.0, "step": 2,
                       "validation": {"loss": 1.0}}, {"name": "a=2", "point": {"a": 2}}])
  return folder / grid.GRID_FILE, lambda: grid.ranked(grid.read(folder))


def scores_json(folder):
  (folder / scores.SCORES_NAME).write_text(json.dumps({"recipes": {"mlp": "x"}, "demonstrations": {"a": {
    "lengths": [3, 4], "scores": {"mlp": [0.5, None]}, "auroc": {"all": {"mlp": {"value": 1.0, "low": 0.5}}},
    "auroc_at_equal_pace": {"mlp": {"value": None, "pairs": 0}}}}}))
  return folder / scores.SCORES_NAME, lambda: scores.read_scores(folder)


KINDS = {
  make.__name__: make for make in (
    policy_json, key_stats, records_jsonl, outcomes_jsonl, feature_cache_json, selection_json, classifier_json,
    labels_json, splits_json, schema_json, processor_json, tokenizer_json, metrics_json, grid_json, scores_json)
} | {"head_json": head_of_before("head.json"), "record_json": head_of_before("record.json")}


def fuzz(kind: str, folder: pathlib.Path, count: int) -> None:
  file, read = KINDS[kind](folder)
  original, refused = file.read_bytes(), 0
  read()
  for number in range(count):
    damaged = changed(original, np.random.default_rng([sorted(KINDS).index(kind), number]))
    file.write_bytes(damaged)
    began = time.process_time()
    try:
      read()
    except Pi0RagError as error:
      refused += 1
      assert "\n" not in str(error) and len(str(error)) < 1500, f"mutation {number} of {kind}: {error}"
    except Exception as error:
      raise AssertionError(f"mutation {number} of {kind} ends in {error!r}") from error
    assert time.process_time() - began < CPU_S, f"mutation {number} of {kind} hangs"
    # A log drops a torn last line, and nothing else changes a file.
    assert kind == "outcomes_jsonl" or file.read_bytes() == damaged
  assert refused > count / 5, f"{refused} of {count} are refused"


@pytest.mark.parametrize("kind", KINDS)
def test_sixty_mutations(kind, tmp_path):
  fuzz(kind, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_mutations(kind, tmp_path):
  fuzz(kind, tmp_path, 2000)
