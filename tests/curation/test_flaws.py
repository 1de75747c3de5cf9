"""Flaws of recordings: each does what it says and no more, and as many are flawed as was asked."""

import collections

import numpy as np
import pytest

from pi0rag_jax.curation import flaws
from pi0rag_jax.curation.flaws import FLAWS, Recording, Surroundings
from pi0rag_jax.errors import Pi0RagError

AROUND = Surroundings(10.0, np.array([1.0, 2.0]), ("push", "pull"), integrates=(0,), bias_A=np.array([1.0, -1.0]))


def make_recording(frames=40):
  return Recording(np.arange(frames), np.tile([[1.0, 2.0]], (frames, 1)), ["push"] * frames)


def flawed(name, seed=0, recording=None):
  return FLAWS[name](recording or make_recording(), AROUND, np.random.default_rng(seed))


def test_noise_is_in_the_data_sets_units_and_a_bias_is_the_same_for_all():
  change_KA = flawed("action_noise", recording=make_recording(4000)).actions_KA - [1.0, 2.0]
  assert change_KA.std(axis=0) == pytest.approx(flaws.NOISE * AROUND.action_std_A, rel=0.1)
  for seed in (0, 1):
    np.testing.assert_allclose(flawed("action_bias", seed).actions_KA - [1.0, 2.0], [[0.5, -1.0]] * 40)


def test_a_wrong_prompt_is_one_of_another_episode():
  found = flawed("wrong_prompt")
  assert set(found.prompts) == {"pull"} and np.array_equal(found.actions_KA, make_recording().actions_KA)
  alone = Surroundings(10.0, np.ones(2), ("push",))
  with pytest.raises(Pi0RagError, match="'wrong_prompt' takes a prompt of another episode, and all have 'push'"):
    flaws.wrong_prompt(make_recording(), alone, np.random.default_rng(0))


@pytest.mark.parametrize("frames", [1, 2, 5, 40])
def test_dropped_frames_are_some_of_the_middle(frames):
  found = flawed("dropped_frames", recording=make_recording(frames))
  assert found.frames_K[0] == 0 and found.frames_K[-1] == frames - 1 and (np.diff(found.frames_K) > 0).all()
  assert len(found.frames_K) == len(found.actions_KA) == len(found.prompts)
  if frames == 40:
    assert 0.3 <= 1 - len(found.frames_K) / 40 < 0.6


def test_who_idles_stands_still_at_the_first_or_the_last_frame():
  start, end = flawed("idle_start"), flawed("idle_end")
  idle = len(start.frames_K) - 40
  assert 10 <= idle <= 20 and set(start.frames_K[:idle]) == {0} and np.array_equal(start.frames_K[idle:], np.arange(40))
  assert start.actions_KA[:idle].tolist() == [[0.0, 2.0]] * idle  # motions are none, places are held
  assert set(end.frames_K[40:]) == {39} and np.array_equal(end.frames_K[:40], np.arange(40)) and len(end.prompts) > 49


def test_as_many_are_flawed_as_was_asked_one_way_or_each_in_its_own():
  assert collections.Counter(flaws.assigned(10, ["idle_end"], share=0.6)) == {"idle_end": 6, "": 4}
  own = collections.Counter(flaws.assigned(9, ["idle_end", "action_noise"], share=4 / 9, seed=3))
  assert own == {"": 5, "idle_end": 2, "action_noise": 2}
  for names, share, message in ((["idle"], 0.5, "unknown flaw 'idle'"), (["idle_end"], 1.5, "a share of 1.5"),
                                ([], 0.5, "flaws of no kind")):
    with pytest.raises(Pi0RagError, match=message):
      flaws.assigned(4, names, share=share)
