"""How well scores tell, which share is kept, and what embedding took."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi0rag_jax.curation import baselines, verdicts
from pi0rag_jax.errors import Pi0RagError
from train.curation import embed, scores, summary
from train.peak_memory import PeakMemory

LENGTH = {baselines.LENGTH_ONLY: np.array([9.0, 7, 8, 5])}


@pytest.mark.parametrize("flaws", [[""] * 4, ["clean"] * 4, ["detour"] * 4, ["clean", "", "clean", ""]])
def test_without_both_classes_there_is_nothing_to_tell(flaws):
  assert scores.aurocs({"state": np.arange(4.0)}, LENGTH, flaws) == {}


def test_each_flaw_is_told_from_the_clean_ones():
  flaws = ["clean", "detour", "clean", "near_miss"]
  found = scores.aurocs({"state": np.array([0.5, 0.6, 0.7, 0.1])}, LENGTH, flaws)
  assert {flaw: {name: told["value"] for name, told in each.items()} for flaw, each in found.items()} == {
    verdicts.ALL_FLAWS: {"state": 0.75, "length_only": 1.0}, "detour": {"state": 0.5, "length_only": 1.0},
    "near_miss": {"state": 1.0, "length_only": 1.0}}
  # Shorter is better here: the direction is that of all flaws.
  turned = scores.aurocs({}, {"length_only": -LENGTH["length_only"]}, flaws)
  assert turned["detour"]["length_only"]["value"] == 1.0


def test_the_table_has_a_column_per_flaw_of_any_data_set():
  estimate = lambda value: {"value": value, "low": 0.1, "high": 0.9, "n": 9}  # noqa: E731
  member = {"kind": "step_mlp", "inputs": ["state"], "validated_on": "late", "validation_loss": 0.5,
            "auroc_validation_rollouts": estimate(0.8),
            "auroc_demonstrations": {"a": {"all flaws": estimate(0.7)}, "b": {}}}
  plain = {"auroc_demonstrations": member["auroc_demonstrations"],
           "auroc_rollouts": {"late": {"whole": estimate(0.99), "cut": estimate(0.6)}}}
  agreeing = {"kind": "agreement", "inputs": ["embeddings"],
              "auroc_demonstrations": {"a": {"all flaws": estimate(0.8)}, "b": {}}}
  found = {"classifiers": {"state": member}, "scorers": {"prefix_agreement": agreeing},
             "baselines": dict.fromkeys(summary.BASELINES, plain)}
  first, agreed, length, pace = summary.rows(found)
  assert list(first) == list(agreed) == list(length) == list(pace)
  assert first["AUROC, all flaws"] == "0.700 [0.10, 0.90], -" and agreed["AUROC, all flaws"].startswith("0.800")
  assert length["scorer"] == "length alone" and length["AUROC, validation rollouts"] == "0.600 [0.10, 0.90]"


def test_a_threshold_that_keeps_nearly_all_is_warned_of(caplog):
  scores_J = np.append(np.linspace(0.5, 1, 40), np.nan)
  check = lambda count, rule: scores.check_share(np.arange(41) < count, scores_J, rule, 0.5)  # noqa: E731
  check(38, "demo_score")
  check(40, "fraction")
  assert "next to nothing" not in caplog.text
  check(39, "demo_score")
  assert "the rule 'demo_score' leaves out 1 of 40 demonstrations, next to nothing: choose another" in caplog.text
  with pytest.raises(Pi0RagError, match=r"no demonstration scores 0.500 or more .*the best has 1.000"):
    check(0, "fixed")


class Embedded:
  """Stands for Sources: so many of ten frames have to be computed."""

  def __init__(self, computed: int, cache: str):
    self._computed, self._cache = computed, cache

  def embed(self, source, policy, progress):
    rows = type("Cache", (), {"__len__": lambda _: 10, "directory": Path("root", self._cache)})()
    return types.SimpleNamespace(cache=rows, computed=self._computed, seconds=2.0, frames_per_s=5.0)


def test_what_embedding_took_is_kept_as_long_as_its_cache():
  take = lambda computed, cache, before: embed.embed_source(  # noqa: E731
    Embedded(computed, cache), None, "", "demonstrations", before)
  first: dict[str, Any] = take(10, "a", {})
  assert (first["computed"], first["cached"], first["seconds"]) == (10, 0, 2.0)
  assert take(0, "a", first) == first | {"cached": 10}
  assert take(0, "b", first) == {"cache": "b", "frames": 10, "cached": 10}


def test_the_peak_is_of_the_work_alone():
  before = np.ones(1 << 24)  # 128 MB, gone before the work begins
  del before
  memory = PeakMemory()
  small = memory.growth_mb()
  if small is None:
    pytest.skip("this system does not tell")
  work = np.ones(1 << 22)
  del work
  assert small < 16 < 24 < memory.growth_mb() < 64
