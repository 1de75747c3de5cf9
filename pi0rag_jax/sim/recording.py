"""From the frames of one episode, as they were seen and executed, to what is stored of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pi0rag_jax.data.episodes import Episode
from pi0rag_jax.sim.controller import PERIOD_S
from pi0rag_jax.sim.env import PandaEnv

HORIZON = 16  # ticks of a frame's label

# Observation, executed action float32[A], label float32[T, A], privileged state.
Frame = tuple[dict[str, Any], np.ndarray, np.ndarray, dict[str, Any]]


def as_episode(env: PandaEnv, seed: int, frames: Sequence[Frame], *, success: bool, record_every: int, flaw: str = ""
               ) -> Episode:
  """Returns the frames stacked, as the episode of `seed` in `env`.

  Args:
    env: after the episode.
    seed: of the layout.
    frames: those that were recorded.
    success: of the episode.
    record_every: ticks between them.
    flaw: as in `data.episodes.Episode`.
  """
  observations, actions, chunks, privileged = zip(*frames)
  stack = lambda dicts: {name: np.stack([d[name] for d in dicts]) for name in dicts[0]}  # noqa: E731
  return Episode(
    images=stack([o["image"] for o in observations]),
    state=np.stack([o["state"] for o in observations]),
    actions=np.stack(actions),
    action_chunks=np.stack(chunks),
    privileged={name: values.astype(np.float32) for name, values in stack(privileged).items()},
    prompt=observations[0]["prompt"],
    task=env.task.name,
    condition=env.condition.name,
    renderer=env.renderer_name,
    seed=seed,
    success=success,
    flaw=flaw,
    fps=1 / (record_every * PERIOD_S),
  )
