"""The check of the promise itself: it sees broken promises, and reads pairs by their seeds."""

import dataclasses
import json

import numpy as np
import pytest

from eval import guarantee
from eval.records import EpisodeRecord, RecordLog
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.trust import TrustConfig

PROMISE = TrustConfig(broken_max=0.1, share=0.5)


def test_a_stream_by_hand():
  episodes = guarantee.Episodes(np.array([(True, False)] * 12), np.zeros(12, int))
  stream = guarantee.play(episodes, 0, dataclasses.replace(PROMISE, share=1.0))
  assert stream.spoke_N.tolist() == [False] * 10 + [True, False]
  assert stream.broken_N.sum() == stream.repeated_N.sum() == 1 and stream.succeeded_N.sum() == 11
  assert stream.kept(PROMISE)
  early = dataclasses.replace(stream, spoke_N=stream.spoke_N[::-1], succeeded_N=stream.succeeded_N[::-1])
  assert not early.kept(PROMISE), "at the end it is as much, at the second episode it is not"
  assert early.kept(dataclasses.replace(PROMISE, forgiven=1))


@pytest.mark.parametrize("scenario", ["does nothing but harm", "ambush, and the policy alone is lost"])
def test_promises_are_kept_and_the_memory_alone_keeps_none(scenario):
  sizes = {"streams": 20, "episodes": 150, "seed": 1, "promise": PROMISE}
  draw = guarantee.SCENARIOS[scenario]
  kept = guarantee.measure(draw, PROMISE, **sizes)
  alone = guarantee.measure(draw, TrustConfig(), **sizes)
  assert kept["promise_kept"] >= 0.95 > 0.5 > alone["promise_kept"]
  assert alone["without_memory"] == alone["repetitions_per_episode"] == 0 == alone["first_say_median"]
  assert 0 < kept["without_memory"] < 1 and kept["success"] > kept["success_alone"] - 0.1
  assert kept["broken"] < 0.1 < alone["broken_worst_stream"]


def test_made_up_episodes_have_their_rates():
  draw = guarantee.made_up(lambda t: np.where(t < 0.5, 0.9, 0.1), 0.5, 0.0)
  alone_N, steered_N = draw(4000, np.random.default_rng(0)).pairs_N2.T
  assert alone_N[:2000].mean() == pytest.approx(0.9, abs=0.03) and alone_N[2000:].mean() == pytest.approx(0.1, abs=0.03)
  assert (alone_N & ~steered_N).sum() / alone_N.sum() == pytest.approx(0.5, abs=0.05)
  assert not (~alone_N & steered_N).any()


def test_places_that_share_an_account_keep_one_promise():
  good, bad = np.array([(True, True), (False, True)]), np.array([(True, False), (False, False)])
  draws = {mixed: guarantee.recorded([good, bad], mixed=mixed) for mixed in (False, True)}
  one = draws[False](50, np.random.default_rng(2))
  assert np.diff(one.stream_N).astype(bool).sum() == 1 and len(one.pairs_N2) == 100
  assert one.pairs_N2[one.stream_N == 0][:, 1].all(), "a stream's pairs are those of its place"
  assert np.diff(draws[True](50, np.random.default_rng(2)).stream_N).astype(bool).sum() > 30
  sizes = {"streams": 10, "episodes": 150, "seed": 1, "promise": PROMISE}
  found = [guarantee.measure(draw, PROMISE, **sizes) for draw in (guarantee.recorded([good]), draws[True])]
  assert found[1]["promise_kept"] == 1
  assert found[1]["broken"] > found[0]["broken"] == 0


def test_pairs_are_those_of_the_same_seed(tmp_path):
  def episode(policy, seed, outcome, stream="", after=0, came_from=""):
    return EpisodeRecord("eval", policy, "push", "shift", stream, seed, seed, outcome, stream_episodes=after,
                         came_from=came_from)

  with RecordLog(tmp_path / "records.jsonl") as log:
    for record in (episode("base_z0", 1, "success"), episode("base_z0", 2, "failure"), episode("base_z0", 3, "crashed"),
                   *(episode("memory", seed, "success", "push/shift", 50) for seed in (3, 2)),
                   episode("memory", 1, "failure", "push/shift", 50), episode("memory", 1, "success", "push/shift", 20),
                   episode("memory", 1, "success", "push/shift, stream 2", 50)):
      log.append(record)
  (found,) = guarantee.pairs(tmp_path, 50).values()
  assert found.tolist() == [[True, False], [False, True]]
  with pytest.raises(Pi0RagError, match="no place with 'memory' after 60 episodes"):
    guarantee.pairs(tmp_path, 60)
  with pytest.raises(Pi0RagError, match=r"has no records.jsonl"):
    guarantee.pairs(tmp_path / "none", 50)


def test_the_report_is_json_and_names_its_settings():
  report = guarantee.run(broken_max=0.1, confidence=0.9, share=0.5, forgiven=2, streams=2, episodes=20, seed=0,
                         sweep=(), after=50)
  json.dumps(report, allow_nan=False)
  assert len(report["rows"]) == 4 * len(guarantee.SCENARIOS)
  assert report["provenance"]["configuration"]["episodes"] == 20
