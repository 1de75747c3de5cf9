"""What needs no model: chance, length, pace and smoothness. All may be fooled, which is why they are here."""

import numpy as np

from pi0rag_jax.curation.baselines import pace
from pi0rag_jax.curation.scorers.demonstrations import Steps

# Of the spectral arc length: where the spectrum ends, the amplitude below which it is cut off, and the padding.
# Source: Balasubramanian et al. 2015 (J. NeuroEng. Rehab. 12:112), whose values RINSE takes over.
CUTOFF_HZ, LEAST_AMPLITUDE, PADDING = 10.0, 0.05, 4


def random(steps: Steps, *, seed: int = 0) -> np.ndarray:
  """Returns float64[J] drawn at random: what any choice of as many episodes is worth."""
  return np.random.default_rng(seed).random(len(steps))


def length(steps: Steps) -> np.ndarray:
  """Returns float64[J]: shorter is better."""
  return -steps.lengths_J.astype(float)


def speed(steps: Steps) -> np.ndarray:
  """Returns float64[J]: the pace of the tool while it moves; faster is better."""
  return np.array([pace(tool_TX, 1 / steps.step_s) for tool_TX in steps.tool])


def smoothness(steps: Steps) -> np.ndarray:
  """Returns float64[J], the spectral arc length of the tool's speed, at most 0: RINSE's measure of smoothness.

  Source: RINSE (arXiv 2604.23000). Its second measure, the distance from an envelope between contacts, needs to know
  the contacts, which data sets do not tell; it is left out.
  """
  return np.array([spectral_arc_length(speed_of(tool_TX, steps.step_s), 1 / steps.step_s) for tool_TX in steps.tool])


def speed_of(tool_TX: np.ndarray, step_s: float) -> np.ndarray:
  """Returns float64[T - 1], the speed from step to step."""
  return np.linalg.norm(np.diff(np.asarray(tool_TX, float), axis=0), axis=-1) / step_s


def spectral_arc_length(speed_T: np.ndarray, rate_hz: float) -> float:
  """Returns the negative length of the normalized spectrum's curve: near -1.4 for one smooth reach, less for jerks.

  0 where nothing moves, as for an episode of one step.
  """
  if len(speed_T) < 2 or not speed_T.any():
    return 0.0
  bins = 2 ** (int(np.ceil(np.log2(len(speed_T)))) + PADDING)
  spectrum_K = np.abs(np.fft.rfft(speed_T, bins))
  spectrum_K /= spectrum_K.max()
  hz_K = np.fft.rfftfreq(bins, 1 / rate_hz)
  inside = hz_K <= CUTOFF_HZ
  spectrum_K, hz_K = spectrum_K[inside], hz_K[inside]
  last = np.flatnonzero(spectrum_K >= LEAST_AMPLITUDE).max()
  spectrum_K, hz_K = spectrum_K[: last + 1], hz_K[: last + 1]
  if last == 0:
    return 0.0
  return -float(np.hypot(np.diff(hz_K) / (hz_K[-1] - hz_K[0]), np.diff(spectrum_K)).sum())
