"""Scorers of demonstrations: each by what it is made for, and one interface for all."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.curation import scorers
from pi0rag_jax.curation.scorers import SCORERS, Steps, duplicates, information, joined, plain, progress
from pi0rag_jax.errors import Pi0RagError


def make_steps(count=6, length=20, *, sign=1.0, seed=0, success=np.nan) -> Steps:
  """Returns episodes along a line, a little apart, in which what is done follows from the place."""
  rng = np.random.default_rng(seed)
  places = [np.linspace(0, 1, length + i)[:, None] + 0.01 * rng.standard_normal((length + i, 1)) for i in range(count)]
  looks = tuple(np.concatenate([place, place**2], axis=1).astype(np.float32) for place in places)
  chunks = tuple(sign * np.repeat(np.sin(6 * place)[:, None], 2, axis=1).astype(np.float32) for place in places)
  return Steps(looks, chunks, looks, 0.1, np.full(count, success))


@pytest.fixture(scope="module")
def rollouts():
  """Two checkpoints whose rollouts succeed where they do as the place asks for, and fail where they do the opposite."""
  return {name: joined([make_steps(4, seed=seed, success=1.0), make_steps(4, sign=-1.0, seed=seed + 1, success=0.0)])
          for name, seed in (("early", 10), ("late", 20))}


def test_every_scorer_gives_a_number_per_episode(rollouts):
  steps = make_steps()
  for name, each in SCORERS.items():
    options = {"epochs": 2} if name == "demo_score" else {}
    if name == "progress":
      continue  # trained below
    scores_J = scorers.score(name, steps, rollouts if each.rollouts else None, **options)
    assert scores_J.shape == (6,) and np.isfinite(scores_J).all(), name
    again_J = scorers.score(name, steps, rollouts if each.rollouts else None, **options)
    np.testing.assert_array_equal(scores_J, again_J)


def test_a_wrong_prompt_is_told_by_what_others_did():
  """Two tasks, of which one goes there and one back; the prompts of one episode of each were swapped."""
  there, back = make_steps(5), make_steps(5, sign=-1.0, seed=1)
  said = ["there"] * 5 + ["back"] * 5
  said[2], said[8] = said[8], said[2]
  both = joined([there, back])
  assert not both.prompts and (scorers.score("prompt", both) == 0.5).all()
  asked = dataclasses.replace(both, prompts=tuple([text] * len(look) for text, look in zip(said, both.looks)))
  scores_J = scorers.score("prompt", asked, neighbours=8)
  assert sorted(np.argsort(scores_J)[:2].tolist()) == [2, 8] and scores_J[[2, 8]].max() < 0.5
  assert np.delete(scores_J, [2, 8]).min() > 0.5 and scorers.score("agreement", both)[2] == pytest.approx(
    scorers.score("agreement", asked)[2])
  alike = dataclasses.replace(both, prompts=tuple(["one"] * len(look) for look in both.looks))
  assert scorers.score("prompt", alike) == pytest.approx(0.5), "one prompt: nothing to say"
  with pytest.raises(Pi0RagError, match="prompts of 1 episodes"):
    dataclasses.replace(both, prompts=(["one"],))


def test_wrong_names_options_and_missing_rollouts_are_told():
  with pytest.raises(Pi0RagError, match=r"unknown scorer 'agrement'. Did you mean 'agreement'"):
    scorers.score("agrement", make_steps())
  with pytest.raises(Pi0RagError, match="unknown option of the scorer deminf 'widht'"):
    scorers.score("deminf", make_steps(), widht=3)
  with pytest.raises(Pi0RagError, match=r"the scorer 'outcomes' reads rollouts of a policy .* there are none"):
    scorers.score("outcomes", make_steps())
  with pytest.raises(Pi0RagError, match="8 of 8 rollouts succeeded, 0 failed"):
    scorers.score("outcomes", make_steps(), {"late": make_steps(8, success=1.0)})
  with pytest.raises(Pi0RagError, match="looks, chunks and tool differ in length"):
    Steps(make_steps(2).looks, make_steps(3).chunks, make_steps(2).tool, 0.1, np.zeros(2))


def test_the_mutual_information_of_gaussians_is_what_theory_says():
  rng = np.random.default_rng(0)
  x_B = rng.standard_normal(800)
  for correlation in (0.0, 0.9):
    y_B = correlation * x_B + np.sqrt(1 - correlation**2) * rng.standard_normal(800)
    found = information.contributions(x_B[:, None], y_B[:, None]).mean()
    assert found == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=0.06)


def test_information_is_lost_where_actions_are_noise():
  steps = make_steps(8)
  rng = np.random.default_rng(0)
  chunks = (*steps.chunks[:7], rng.standard_normal(steps.chunks[7].shape).astype(np.float32))
  scores_J = information.mutual_information(Steps(steps.looks, chunks, steps.tool, 0.1, steps.success_J))
  assert scores_J.argmin() == 7 and scores_J[7] < scores_J[:7].min() - 0.5


def test_jerks_are_less_smooth_than_one_reach():
  time_T = np.linspace(0, 1, 60)
  smooth_T = 30 * time_T**2 * (1 - time_T) ** 2  # of minimum jerk
  jerky_T = smooth_T * (1 + 0.8 * np.sin(40 * time_T))
  assert -1.7 < plain.spectral_arc_length(smooth_T, 60) < -1.3
  assert plain.spectral_arc_length(jerky_T, 60) < plain.spectral_arc_length(smooth_T, 60) - 0.1
  assert plain.spectral_arc_length(np.zeros(9), 60) == 0.0 and plain.spectral_arc_length(np.ones(1), 60) == 0.0


def test_twins_are_nothing_new():
  steps = make_steps(5)
  twins = joined([steps, Steps(steps.looks[:1], steps.chunks[:1], steps.tool[:1], 0.1, np.zeros(1))])
  scores_J = duplicates.novelty(twins)
  assert set(np.argsort(scores_J)[:2]) == {0, 5} and scores_J[[0, 5]] == pytest.approx([0, 0], abs=1e-5)


def test_who_stands_still_loses_time():
  steps = make_steps(8, length=30)
  stopped = np.concatenate([steps.looks[0][:15], np.repeat(steps.looks[0][15:16], 30, axis=0), steps.looks[0][15:]])
  chunk = np.repeat(steps.chunks[0][:1], len(stopped), axis=0)
  slow = Steps((*steps.looks[1:], stopped), (*steps.chunks[1:], chunk), (*steps.tool[1:], stopped), 0.1, np.zeros(8))
  scores_J = progress.progress(slow)
  assert scores_J.argmin() == 7 and scores_J[7] < scores_J[:7].mean() - 0.3  # seconds


def test_outcomes_tell_a_habit_of_the_majority(rollouts):
  """Six of ten demonstrations do what failed rollouts did: agreement likes them, outcomes do not."""
  steps = joined([make_steps(6, sign=-1.0, seed=3), make_steps(4, seed=4)])
  assert scorers.score("agreement", steps)[:6].min() > scorers.score("agreement", steps)[6:].max()
  for name in ("outcomes", "agreement_by_success"):
    scores_J = scorers.score(name, steps, rollouts)
    assert scores_J[6:].min() > scores_J[:6].max(), name


def test_a_classifier_of_rollouts_tells_what_they_look_like():
  """Successes are at other places than failures, and so are the demonstrations of either kind."""
  moved = lambda steps, by: Steps(tuple(look + np.float32(by) for look in steps.looks), steps.chunks, steps.tool,  # noqa: E731
                                  0.1, steps.success_J)
  seen = {name: joined([make_steps(4, success=1.0), moved(make_steps(4, success=0.0), 3)]) for name in ("a", "b")}
  scores_J = scorers.score("demo_score", joined([make_steps(2), moved(make_steps(2), 3)]), seen, epochs=60)
  assert scores_J[:2].min() > scores_J[2:].max()


def test_ranks_and_their_mean():
  assert scorers.ranks(np.array([3.0, 1.0, np.nan, 2.0])) == pytest.approx([1.0, 0.0, np.nan, 0.5], nan_ok=True)
  assert scorers.ranks(np.array([1.0, 1.0, 5.0])) == pytest.approx([0.25, 0.25, 1.0])
  assert scorers.combined([np.array([0, 100, 1]), np.array([0.1, 0.2, 0.3])]) == pytest.approx([0, 0.75, 0.75])
  with pytest.raises(Pi0RagError, match="a combination of no scorers"):
    scorers.combined([])
