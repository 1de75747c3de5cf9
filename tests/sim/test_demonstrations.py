"""Demonstrators: each flaw shows and still succeeds; lengths and counts say nothing about which are flawed."""

import collections
import functools
import math

import numpy as np
import pytest

from pi0rag_jax.data.episodes import episode_path, read_episodes
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim import collect, demonstrations, flaws
from pi0rag_jax.sim.env import PandaEnv

SEED = 4


@pytest.fixture(scope="module")
def env() -> PandaEnv:
  return PandaEnv("pick_and_place", render_images=False)


@pytest.fixture(scope="module")
def shown(env):
  """What each flawed demonstrator does with the same layout, and the tool beside the wrong cube while it does."""
  found = {}
  for name in flaws.FLAWS:
    gaps = []
    demonstrator = demonstrations._flawed(env, SEED, name, 0)
    act = demonstrator.act

    def watched(env, act=act, gaps=gaps):
      wrong, tool = env.physics.object_pose("cube_1")[0], env.physics.fingertip_pose()[0]
      gaps.append((math.hypot(*(tool - wrong)[:2]), tool[2]))
      return act(env)

    demonstrator.act = watched
    found[name] = demonstrations._perform(env, SEED, "seen", demonstrator), np.array(gaps)
  return found


def _reversals(steps_K3: np.ndarray) -> int:
  """Returns how often motion at speed turns by more than a right angle from one tick to the next."""
  fast_K = np.linalg.norm(steps_K3, axis=1) > 0.006
  return int(((steps_K3[1:] * steps_K3[:-1]).sum(axis=1) < 0)[fast_K[1:] & fast_K[:-1]].sum())


def test_every_flawed_demonstration_succeeds_within_the_bounds(shown, env):
  for name, (performance, _) in shown.items():
    assert performance.success, name
    assert env.action_space.contains(performance.actions_KA[0])
    assert (np.abs(performance.actions_KA) <= env.action_space.high + 1e-6).all(), name


def test_every_flaw_shows_and_only_its_own(shown):
  still = {name: int((np.abs(p.actions_KA[:, :4]).max(axis=1) == 0).sum()) for name, (p, _) in shown.items()}
  grasps = {name: int((np.diff(p.actions_KA[:, 4]) < 0).sum()) for name, (p, _) in shown.items()}
  turns = {name: _reversals(p.actions_KA[:, :3]) for name, (p, _) in shown.items()}
  over_wrong = {name: bool(((gaps[:, 0] < 0.02) & (gaps[:, 1] < 0.085)).any()) for name, (_, gaps) in shown.items()}
  assert still["hesitation"] >= 2 * flaws.Hesitation.stop_ticks[0]
  assert grasps["near_miss"] >= 2 and grasps["hesitation"] == grasps["wrong_approach"] == 1
  assert turns["detour"] >= 4 and all(n <= 1 for name, n in turns.items() if name != "detour")
  assert [name for name, over in over_wrong.items() if over] == ["wrong_approach"]


def test_half_are_clean_and_each_flaw_is_as_frequent():
  counts = collections.Counter(demonstrations.roles(seed, tuple(flaws.FLAWS)) for seed in range(80))
  assert counts == dict.fromkeys([(role, flaw) for flaw in flaws.FLAWS for role in ("clean", flaw)], 10)
  odd = collections.Counter(demonstrations.roles(seed, tuple(flaws.FLAWS))[0] == "clean" for seed in range(1, 400, 2))
  assert 70 < odd[True] < 130  # the phase of the recorded frames follows the seed's parity


def test_a_clean_demonstration_takes_as_long_as_the_flawed_one_would_have(env):
  names = ("wrong_approach",)
  seed = next(seed for seed in range(10) if demonstrations.roles(seed, names)[0] == "clean")
  episode = demonstrations.record_demonstration(env, seed, flaws=names, region="seen", record_every=4)
  play = functools.partial(demonstrations._perform, env, seed, "seen")
  flawed = play(demonstrations._flawed(env, seed // 2, "wrong_approach", 0))
  assert episode.flaw == "clean" and episode.success and flawed.success
  assert abs(len(episode) - len(flawed.actions_KA) / 4) <= 1
  # Labels are what was executed from the frame on, and then rest.
  np.testing.assert_array_equal(episode.action_chunks[:-1, 4], episode.actions[1:])
  assert (episode.action_chunks[-1, -1, :4] == 0).all()
  assert episode.action_chunks.shape[1:] == (16, 5)


def _performance(ticks: int, *, success: bool = True) -> demonstrations.Performance:
  return demonstrations.Performance([], np.zeros((ticks, 5), np.float32), success)


def test_a_clean_demonstration_of_another_length_is_not_taken():
  shortest = lambda ticks: lambda pace: _performance(max(round(75 / pace), ticks))  # noqa: E731
  as_long = lambda ticks, shown: demonstrations._as_long(shown, lambda pace: pace, ticks)  # noqa: E731
  assert as_long(100, shortest(115)) is not None and as_long(100, shortest(116)) is None
  assert as_long(100, lambda pace: _performance(100, success=False)) is None


def test_where_no_clean_one_is_as_long_the_next_attempt_counts(env, monkeypatch):
  seed = next(seed for seed in range(10) if demonstrations.roles(seed, ("detour",))[0] == "clean")
  asked = []

  def as_long(play, make, ticks):
    asked.append(ticks)
    return None if len(asked) < 3 else make

  monkeypatch.setattr(demonstrations, "_as_long", as_long)
  monkeypatch.setattr(demonstrations, "_flawed", lambda env, block, flaw, attempt: attempt)
  play = lambda attempt: _performance(100 + attempt, success=attempt != 1)  # noqa: E731
  demonstrations._successful(play, env, seed, ("detour",))
  assert asked == [100, 102, 103]
  monkeypatch.setattr(demonstrations, "_as_long", lambda *_: None)
  with pytest.raises(Pi0RagError, match=f"no demonstration 'clean' of seed {seed}, with the length of 'detour'"):
    demonstrations._successful(play, env, seed, ("detour",))


@pytest.mark.parametrize("flaw", flaws.FLAWS)
def test_every_flaw_is_demonstrated_in_stacking(flaw):
  env = PandaEnv("stacking", render_images=False)
  assert demonstrations._perform(env, SEED, "seen", demonstrations._flawed(env, SEED, flaw, 0)).success


def test_a_job_with_flaws_collects_demonstrations(tmp_path):
  job = collect.Job("stacking", "seen", "raycast", 16, 16, str(tmp_path), ("detour",))
  seed = next(seed for seed in range(10) if demonstrations.roles(seed, job.flaws)[0] == "detour")
  ((_, frames, success),) = collect.collect(job, [seed], processes=0)
  (episode,) = read_episodes(episode_path(tmp_path, seed))
  assert (episode.task, episode.flaw, len(episode), success) == ("stacking", "detour", frames, True)
  assert episode.fps == open_dataset(tmp_path).fps == 20 / 16


def test_mistakes_are_named(env):
  assert flaws.checked_flaws(["all"]) == tuple(flaws.FLAWS) and flaws.checked_flaws([]) == ()
  with pytest.raises(Pi0RagError, match=r"unknown flaw 'near_mis'. Did you mean 'near_miss'"):
    flaws.checked_flaws(["near_mis"])
  with pytest.raises(Pi0RagError, match="no demonstrators for the task 'insertion'; there are some for pick_and_place"):
    flaws.Demonstrator(PandaEnv("insertion", render_images=False), np.random.default_rng(0), pace=1.0)
