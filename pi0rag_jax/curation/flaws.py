"""Flaws that are put into recorded demonstrations of any format: what recorders and annotators do wrong.

`sim.flaws` has what demonstrators do wrong, which needs a simulator: these change the recording alone. The name of one
flaw makes demonstrations bad in the same way; several names, each in its own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name

NOISE = 0.5  # deviation of the noise, and length of the bias, in deviations of the data set's actions
DROPPED = 0.3  # of the frames, at least
DROPPED_RUN = (3, 9)  # frames that are lost at once
IDLE_S = (1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Recording:
  """What is kept of an episode: which of its F frames, in order and perhaps several times, and what is said of them."""

  frames_K: np.ndarray  # int64
  actions_KA: np.ndarray  # float
  prompts: Sequence[str]  # K


@dataclasses.dataclass(frozen=True)
class Surroundings:
  """What a flaw may know of the data set."""

  fps: float
  action_std_A: np.ndarray  # float64
  prompts: tuple[str, ...]  # all that occur
  integrates: tuple[int, ...] = ()  # entries of an action that are motions, whose 0 stands still; others hold a place
  bias_A: np.ndarray | None = None  # float64, of the data set's, of length 1 in each entry's deviation


def action_noise(recording: Recording, around: Surroundings, rng: np.random.Generator) -> Recording:
  """Returns actions with Gaussian noise, as of a shaking hand or a noisy sensor."""
  noise_KA = NOISE * around.action_std_A * rng.standard_normal(recording.actions_KA.shape)
  return dataclasses.replace(recording, actions_KA=recording.actions_KA + noise_KA)


def action_bias(recording: Recording, around: Surroundings, rng: np.random.Generator) -> Recording:
  """Returns actions that are all off by the same, as after a wrong calibration: every episode's by as much."""
  del rng
  assert around.bias_A is not None
  return dataclasses.replace(recording, actions_KA=recording.actions_KA + NOISE * around.action_std_A * around.bias_A)


def wrong_prompt(recording: Recording, around: Surroundings, rng: np.random.Generator) -> Recording:
  """Returns the episode with another prompt of the data set."""
  others = [prompt for prompt in around.prompts if prompt not in recording.prompts]
  if not others:
    raise Pi0RagError(f"the flaw 'wrong_prompt' takes a prompt of another episode, and all have '{around.prompts[0]}': "
                      "leave it out")
  prompt = others[int(rng.integers(len(others)))]
  return dataclasses.replace(recording, prompts=[prompt] * len(recording.prompts))


def dropped_frames(recording: Recording, around: Surroundings, rng: np.random.Generator) -> Recording:
  """Returns the episode without some runs of frames, its first and last kept: as a recorder that cannot keep up."""
  del around
  total = len(recording.frames_K)
  kept_K = np.ones(total, bool)
  while total > 2 and (~kept_K).mean() < DROPPED * (total - 2) / total:
    first = int(rng.integers(1, total - 1))
    kept_K[first : min(first + int(rng.integers(*DROPPED_RUN)), total - 1)] = False
  return Recording(recording.frames_K[kept_K], recording.actions_KA[kept_K],
                   [prompt for prompt, kept in zip(recording.prompts, kept_K) if kept])


def idle_start(recording: Recording, around: Surroundings, rng: np.random.Generator) -> Recording:
  """Returns the episode after a while in which nothing moves, as of who starts to record too early."""
  return _joined(_idle(recording, around, rng, 0), recording)


def idle_end(recording: Recording, around: Surroundings, rng: np.random.Generator) -> Recording:
  """Returns the episode with such a while behind it."""
  return _joined(recording, _idle(recording, around, rng, -1))


Flaw = Callable[[Recording, Surroundings, np.random.Generator], Recording]
FLAWS: Mapping[str, Flaw] = {
  each.__name__: each for each in (action_noise, action_bias, wrong_prompt, dropped_frames, idle_start, idle_end)}


def assigned(episodes: int, names: Sequence[str], *, share: float, seed: int = 0) -> list[str]:
  """Returns each episode's flaw, '' for none: a share of them drawn at random, every flaw as often as the others.

  Raises:
    Pi0RagError: an unknown flaw, or a share that is none.
  """
  for name in names:
    if name not in FLAWS:
      raise unknown_name("flaw", name, FLAWS)
  if not 0 <= share <= 1 or (share and not names):
    raise Pi0RagError(f"a share of {share:g} of the episodes with flaws {', '.join(names) or 'of no kind'}; allowed: 0 "
                      "to 1, and one flaw at least")
  found = [""] * episodes
  chosen = np.random.default_rng([seed, 0]).permutation(episodes)[: round(share * episodes)]
  for i, episode in enumerate(chosen.tolist()):
    found[episode] = names[i % len(names)]
  return found


def _idle(recording: Recording, around: Surroundings, rng: np.random.Generator, frame: int) -> Recording:
  """Returns a while at one frame."""
  count = max(round(around.fps * rng.uniform(*IDLE_S)), 1)
  action_A = recording.actions_KA[frame].copy()
  action_A[list(around.integrates)] = 0.0
  return Recording(np.repeat(recording.frames_K[frame], count), np.tile(action_A, (count, 1)),
                   [recording.prompts[frame]] * count)


def _joined(first: Recording, second: Recording) -> Recording:
  return Recording(np.concatenate([first.frames_K, second.frames_K]),
                   np.concatenate([first.actions_KA, second.actions_KA]), [*first.prompts, *second.prompts])
