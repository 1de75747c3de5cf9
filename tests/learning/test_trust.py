"""The account of what was broken, by hand; and the promise, over all outcomes and over draws."""

import dataclasses
import itertools

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.trust import Trust, TrustConfig, least_total
from pi0rag_jax.worlds.episode import Job, Step, Trace

CONFIG = TrustConfig(broken_max=0.1, share=1.0)


def play(trust: Trust, config: TrustConfig, episodes, first_seed=0) -> list[tuple[bool, bool]]:
  """Plays episodes (alone, with the memory); returns (worked, broken) of each as it really was."""
  truth = []
  for seed, (alone, steered) in enumerate(episodes, first_seed):
    speaks = trust.launch(Job(seed, 0)).trust > 0
    known = alone if speaks and (not steered or config.drawn(seed)) else None
    trust.observe(seed, had_a_say=speaks, success=steered if speaks else alone, alone=known)
    truth.append((alone, speaks and alone and not steered))
  return truth


def test_nothing_is_promised_unless_asked():
  trust = Trust()
  for seed in range(20):
    assert trust.launch(Job(seed, 0)) == Job(seed, 0)
    trust.observe(seed, had_a_say=True, success=False)


def test_it_speaks_once_it_has_earned_an_episode():
  trust = Trust(CONFIG)
  play(trust, CONFIG, [(True, True)] * 9)
  assert not trust.speaks() and trust.worked == 9
  play(trust, CONFIG, [(False, True)] * 5, 9)
  assert not trust.speaks(), "what fails anyway earns nothing"
  play(trust, CONFIG, [(True, True)], 14)
  assert trust.speaks() and trust.launch(Job(99, 0)).trust == 1
  assert not trust.speaks(), "another one under way might be broken as well"
  trust.crashed(99)
  assert trust.speaks()


def test_what_is_broken_is_paid_for():
  trust = Trust(CONFIG)
  play(trust, CONFIG, [(True, True)] * 10 + [(True, False)])
  assert trust.broken == 1 and trust.worked == 11 and not trust.speaks()
  play(trust, CONFIG, [(True, False)] * 9, 20)
  assert trust.broken == 1 and trust.worked == 20 and trust.speaks()


def test_what_fails_alone_too_is_not_broken_and_what_is_not_known_is():
  trust = Trust(CONFIG)
  for alone, broken in ((False, 0), (True, 1), (None, 2)):
    trust.observe(1, had_a_say=True, success=False, alone=alone)
    assert trust.broken == broken
  assert trust.worked == 1
  trust.observe(1, had_a_say=False, success=True)
  assert trust.worked == 2, "without a say it is the policy's own"


def test_forgiven_episodes_let_it_speak_from_the_beginning():
  trust = Trust(dataclasses.replace(CONFIG, forgiven=1))
  assert trust.speaks()
  play(trust, CONFIG, [(True, False)])
  assert trust.broken == 1 and not trust.speaks()


def test_streams_that_share_an_account_earn_for_each_other_but_who_broke_more_waits_longer():
  trust = Trust(CONFIG)
  for seed in range(20):
    trust.observe(seed, had_a_say=False, success=True, stream="good")
  assert trust.speaks("good") and trust.speaks("bad")
  trust.observe(1, had_a_say=True, success=False, alone=True, stream="bad")
  assert trust.worked == 21 and trust.speaks("good"), "2.1 may be broken, and one is"
  assert not trust.speaks("bad"), "0.9 more than it earned itself"
  for seed in range(20, 29):
    trust.observe(seed, had_a_say=False, success=True, stream="good")
  assert trust.speaks("bad"), "2.9 of 3"
  trust.launch(Job(7, 0), "good")
  assert not trust.speaks("bad")
  trust.crashed(7, "bad")
  assert not trust.speaks("bad"), "another stream's episode of the same seed"


def test_jobs_that_go_on_with_an_episode_are_left_alone():
  trust = Trust(CONFIG)
  for job in (Job(1, 0, rewind="moment"), Job(1, 0, attempt=1), Job(1, 0, trust=0.0, repeat=True)):
    assert trust.launch(job) == job


def test_whatever_happens_the_promise_is_kept_if_all_is_repeated():
  config = TrustConfig(broken_max=0.34, share=1.0)
  for outcomes in itertools.product([(True, True), (True, False), (False, False)], repeat=8):
    worked, broken = np.cumsum(play(Trust(config), config, outcomes), axis=0).T
    assert (broken <= 0.34 * worked).all()


def test_with_draws_the_promise_is_kept_but_for_its_confidence():
  """The memory breaks nothing until few draws show what is left of the policy's own ability; then everything."""
  config, kept = TrustConfig(broken_max=0.1, share=0.3, confidence=0.8), []
  for stream in range(200):
    episodes = [(True, True)] * 30 + [(False, True)] * 60 + [(True, False)] * 10
    trust = Trust(config)
    worked, broken = np.cumsum(play(trust, config, episodes, 1000 * stream), axis=0).T
    kept.append((broken <= 0.1 * worked).all())
    assert broken[-1] > 0
  assert np.mean(kept) >= 0.8


def test_a_total_is_bounded_from_below():
  assert least_total(7, 1.0, 0.05) == 7
  assert least_total(0, 0.2, 0.05) == 0
  totals = [least_total(drawn, 0.2, 0.05) for drawn in range(200)]
  assert totals == sorted(totals) and all(total <= drawn / 0.2 for drawn, total in enumerate(totals))
  assert totals[199] > 0.75 * 199 / 0.2, "and not too cautiously"


def test_totals_are_too_large_at_any_time_as_rarely_as_promised():
  """Exactly: over all ways in which 60 things are drawn."""
  chances, too_large = {0: 1.0}, 0.0
  for total in range(1, 61):
    after: dict[int, float] = {}
    for drawn, chance in chances.items():
      for more, share in ((1, 0.3), (0, 0.7)):
        after[drawn + more] = after.get(drawn + more, 0.0) + chance * share
    over = {drawn for drawn in after if least_total(drawn, 0.3, 0.1) > total}
    too_large += sum(after[drawn] for drawn in over)
    chances = {drawn: chance for drawn, chance in after.items() if drawn not in over}
  assert 0.005 < too_large <= 0.1


def _trace(outcome, *, used=3, by="policy", trust=1.0, seed=0) -> Trace:
  step = Step(0, None, np.zeros(1), np.zeros((1, 1)), np.zeros((1, 1)), used, np.zeros(1), np.zeros(1), by=by)
  return Trace(Job(seed, 0, trust=trust), steps=[step], outcome=outcome)


def test_failures_with_a_say_of_the_memory_are_repeated_and_a_share_of_the_successes():
  config = TrustConfig(broken_max=0.02, share=0.3)
  assert config.repeats(_trace("failure")) and config.repeats(_trace("success", by="expert"))
  for other in (_trace("failure", used=0), _trace("failure", trust=0.0), _trace("crashed")):
    assert not config.repeats(other)
  repeated = [config.repeats(_trace("success", seed=seed)) for seed in range(300)]
  assert np.mean(repeated) == pytest.approx(0.3, abs=0.08)
  assert not TrustConfig(share=1.0).repeats(_trace("failure"))


@pytest.mark.parametrize(("fields", "message"), [
    ({"broken_max": 0.0}, r"trust.broken_max is 0.0, allowed: above 0"),
    ({"share": 0.0}, "trust.share is 0.0"), ({"confidence": 1.0}, "confidence 1.0"),
    ({"forgiven": -1}, "trust.forgiven is -1"),
])
def test_bounds(fields, message):
  with pytest.raises(Pi0RagError, match=message):
    TrustConfig(**fields)
