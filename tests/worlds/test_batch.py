"""Many environments at once: the same answers in this process and in workers, faults kept to their slot."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Film, Plan, Rewind, Start
from pi0rag_jax.worlds.world import WorldConfig

CONFIG = WorldConfig("pick_and_place", "nominal", image_size=32)
DOWN = np.tile(np.array([0, 0, -0.01, 0, 1], np.float32), (4, 1))


def play(processes):
  """Returns what two environments answer to the same commands."""
  with BatchEnv(CONFIG, slots=2, processes=processes) as env:
    first = env.run({0: Start(5), 1: Start(6)})
    then = env.run({0: Advance(DOWN), 1: Advance(DOWN, plan=True)})
    back = env.run({1: Rewind(first[0].snapshot), 0: Plan([first[0].snapshot, then[0].snapshot])})
    return first, then, back


def test_workers_answer_like_this_process():
  for here, there in zip(play(0), play(2)):
    assert here.keys() == there.keys()
    for slot in here:
      if isinstance(here[slot], np.ndarray):
        np.testing.assert_array_equal(here[slot], there[slot])
        continue
      np.testing.assert_array_equal(here[slot].observation["state"], there[slot].observation["state"])
      np.testing.assert_array_equal(here[slot].observation["image"]["base_0_rgb"],
                                    there[slot].observation["image"]["base_0_rgb"])


def test_a_moment_can_be_rewound_to_with_the_whole_time_ahead_even_by_another_slot():
  first, then, back = play(0)
  np.testing.assert_array_equal(back[1].observation["state"], first[0].observation["state"])
  assert back[1].observation["prompt"] == first[0].observation["prompt"]
  assert then[0].ticks == 4 and len(then[0].sensors) == 4 and back[1].ticks == 0
  assert back[0].shape == (2, 16, 5)
  assert then[0].plan_TA is None and then[1].plan_TA.shape == (16, 5)


@pytest.mark.parametrize("processes", [0, 1, 2])  # one reads by a thread, two need none
def test_what_is_submitted_first_is_done_first_whenever_it_is_waited_for(processes):
  with BatchEnv(CONFIG, slots=2, processes=processes) as env:
    start = env.run({0: Start(5), 1: Start(6)})
    moved = env.submit({0: Advance(DOWN)})
    # Many snapshots: their message and the answer are larger than what a pipe holds.
    planned = env.submit({0: Plan([start[0].snapshot] * 200), 1: Advance(DOWN)})
    assert planned()[0].shape == (200, 16, 5) and planned()[1].ticks == 4
    assert env.run({0: Advance(DOWN)})[0].ticks == 8 and moved()[0].ticks == 4
    assert env.submit({})() == {}


def test_a_process_that_ends_costs_its_episodes_alone():
  with BatchEnv(CONFIG, slots=2, processes=2) as env:
    env.run({0: Start(5), 1: Start(6)})
    env._workers[0]._link._process.kill()
    answers = env.run({0: Advance(DOWN), 1: Advance(DOWN)})
    assert "ended by itself" in answers[0].error and answers[0].done and not answers[1].error
    again = env.run({0: Start(5)})[0]
    assert not again.error and again.observation["prompt"]


def test_a_process_that_hangs_is_ended():
  with BatchEnv(dataclasses.replace(CONFIG, timeout_s=20.0), slots=1, processes=1) as env:
    env.run({0: Start(5)})
    link = env._workers[0]._link
    link._timeout_s = 0.3
    os.kill(link._process.pid, signal.SIGSTOP)
    assert "no answer within 0.3 s" in env.run({0: Advance(DOWN)})[0].error
    assert not link._process.is_alive()
    assert not env.run({0: Start(5)})[0].error


def test_a_fault_stays_in_its_slot():
  with BatchEnv(CONFIG, slots=2, processes=0) as env:
    env.run({0: Start(5), 1: Start(6)})
    answers = env.run({0: Advance(np.full((4, 5), np.nan)), 1: Advance(DOWN)})
    assert "NaN" in answers[0].error and answers[0].done
    assert not answers[1].error and answers[1].ticks == 4


def test_a_film_shows_every_second_tick():
  with BatchEnv(CONFIG, slots=1, processes=0) as env:
    frames = env.run({0: Film(5, np.concatenate([DOWN, DOWN]), size=40)})[0]
  assert frames.shape == (5, 40, 40, 3) and frames.dtype == np.uint8
  assert (frames[0] != frames[-1]).any()


def test_wrong_sizes_and_slots_are_refused():
  with pytest.raises(Pi0RagError, match="slots"):
    BatchEnv(CONFIG, slots=0, processes=0)
  with BatchEnv(CONFIG, slots=1, processes=0) as env, pytest.raises(Pi0RagError, match=r"0\.\.0"):
    env.run({3: Start(1)})
