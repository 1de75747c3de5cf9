"""Collection: disturbed episodes with clean labels, resumable, within its seeds."""

import numpy as np
import pytest

from pi0rag_jax.data.episodes import episode_path, read_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim import collect
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import NO_MISTAKE
from pi0rag_jax.worlds import world

LOW, HIGH = np.array([-0.015] * 3 + [-0.075, 0.0]), np.array([0.015] * 3 + [0.075, 1.0])


def test_two_episodes_are_written_and_a_second_call_writes_the_rest(tmp_path):
  job = collect.Job("pick_and_place", "seen", "raycast", 16, 8, str(tmp_path))
  first = list(collect.collect(job, range(1), processes=0))
  stamp = episode_path(tmp_path, 0).stat().st_mtime_ns
  second = list(collect.collect(job, range(2), processes=0))
  assert [r[0] for r in first + second] == [0, 1]
  assert episode_path(tmp_path, 0).stat().st_mtime_ns == stamp
  for seed, frames, success in first + second:
    (episode,) = read_episodes(episode_path(tmp_path, seed))
    assert (len(episode), episode.success, episode.seed) == (frames, success, seed)
    assert episode.action_chunks.shape[1:] == (collect.HORIZON, 5)
    assert episode.images["base_0_rgb"].shape == (frames, 16, 16, 3)
    assert {"target_position", "goal_position", "grasped"} <= set(episode.privileged)


def test_labels_are_clean_where_the_executed_action_is_disturbed():
  env = PandaEnv(render_images=False)
  episodes = [collect.record_episode(env, seed, region="seen", record_every=1) for seed in range(3)]
  disturbed = np.concatenate([np.abs(e.actions - e.action_chunks[:, 0]).max(axis=1) > 1e-6 for e in episodes])
  assert 0 < disturbed.mean() < 0.9
  assert all(e.success for e in episodes)
  held_out = env.task.config.held_out_low
  assert all(e.privileged["target_position"][0, 1] < held_out[1] for e in episodes)


def test_the_disturbances_follow_their_settings():
  quiet = collect.Disturbance(burst_probability=0, wander_probability=0, miss_probability=0, drop_probability=0)
  action = np.array([0.01, 0, 0, 0, 1.0])
  still = collect.Disturber(np.random.default_rng(0), LOW, HIGH, quiet)
  for tick in range(100):
    np.testing.assert_allclose(still.apply(action, tick=tick, grasped=tick > 5), action)
  drops = collect.Disturbance(burst_probability=0, wander_probability=0, miss_probability=0, drop_probability=1)
  dropper = collect.Disturber(np.random.default_rng(0), LOW, HIGH, drops)
  opened = [dropper.apply([0, 0, 0, 0, 0.0], tick=tick, grasped=tick >= 10)[-1] for tick in range(60)]
  assert not any(opened[:11])
  assert drops.forced_ticks[0] <= sum(opened) <= drops.forced_ticks[1]
  misses = collect.Disturbance(burst_probability=0, wander_probability=0, miss_probability=1)
  misser = collect.Disturber(np.random.default_rng(0), LOW, HIGH, misses)
  closed = sum(misser.apply(action, tick=tick, grasped=False)[-1] == 0 for tick in range(60))
  assert misses.forced_ticks[0] <= closed <= misses.forced_ticks[1]


def test_longer_tasks_are_disturbed_for_longer():
  settings = collect.Disturbance()
  assert settings.over(180) == settings
  longer = settings.over(360)
  assert (longer.last_tick, longer.max_wanders, longer.mistake_last_tick) == (160, 6, 160)
  quiet = collect.Disturbance(burst_probability=0, wander_probability=0, miss_probability=0, drop_probability=1)
  opened_late = 0
  for seed in range(20):
    dropper = collect.Disturber(np.random.default_rng(seed), LOW, HIGH, quiet.over(360))
    opened = [dropper.apply([0, 0, 0, 0, 0.0], tick=tick, grasped=tick % 100 > 40)[-1] for tick in range(300)]
    assert quiet.forced_ticks[0] <= sum(opened) <= quiet.forced_ticks[1]
    opened_late += any(opened[120:])
  assert 5 < opened_late < 20


def test_mistakes_last_for_a_while_and_stay_small():
  settings = collect.Disturbance(mistake_probability=1, max_mistakes=1)
  disturber = collect.Disturber(np.random.default_rng(0), LOW, HIGH, settings)
  mistakes = [disturber.mistake(tick) for tick in range(200)]
  mistaken = [m for m in mistakes if m != NO_MISTAKE]
  assert settings.mistake_ticks[0] <= len(mistaken) <= settings.mistake_ticks[1]
  assert len(set(mistaken)) == 1
  assert 0 < np.hypot(mistaken[0].x_m, mistaken[0].y_m) <= settings.mistake_m
  assert 0 < abs(mistaken[0].yaw_rad) <= settings.mistake_rad
  never = collect.Disturber(np.random.default_rng(0), LOW, HIGH, collect.Disturbance(mistake_probability=0))
  assert all(never.mistake(tick) == NO_MISTAKE for tick in range(200))


def test_reserved_seeds_are_refused():
  assert collect.checked_seeds(10, 3) == range(10, 13)
  with pytest.raises(Pi0RagError, match=r"seeds 0..99999; --seed=99999 --episodes=2 leaves them"):
    collect.checked_seeds(99_999, 2)
  assert not set(world.DEMONSTRATION_SEEDS) & set(world.STREAM_SEEDS)
  assert world.STREAM_SEEDS.stop == world.EVALUATION_SEEDS.start
