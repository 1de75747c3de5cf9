"""From a data set of any format to the steps that scorers see."""

from collections.abc import Sequence

import numpy as np

from pi0rag_jax.curation.inputs import actions_of
from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.errors import Pi0RagError

CHUNKS = "action_chunks"  # of the project's own rollouts: what was decided at each frame


def read(dataset: Dataset, looks: Sequence[np.ndarray] | None = None, *, every: int = 1, horizon: int = 16,
         ticks: int = 1, tool_dims: Sequence[int] = (), success_J: np.ndarray | None = None, steps: int | None = None
         ) -> Steps:
  """Returns a data set's episodes as scorers see them; its pictures are not read.

  Args:
    dataset: of J episodes, all of which can be read.
    looks: float32[T, F] of each; None: the state.
    every: takes the frames 0, every, 2 every, ...
    horizon: H, actions from a step on.
    ticks: actions per frame; of a policy's rollouts, which have a frame per decision, those it executes of a chunk.
    tool_dims: of the state, the tool's position; none: the whole state.
    success_J: 1, 0, or nan where it is not known; None: nowhere.
    steps: of every episode, the first ones alone; None: all.
  """
  if min(every, horizon, ticks) < 1:
    raise Pi0RagError(f"steps of every {every} frames, {horizon} actions and {ticks} ticks; allowed: 1 or more of each")
  if outside := [entry for entry in tool_dims if not 0 <= entry < dataset.state_dim]:
    raise Pi0RagError(f"the tool's position is said to be in entry {outside[0]} of the state; there are 0 to "
                      f"{dataset.state_dim - 1}")
  states, chunks, prompts = [], [], []
  for episode in range(dataset.num_episodes):
    data = dataset.read_episode(episode, images=False)
    states.append(np.asarray(data.state[::every], np.float32))
    prompts.append(data.prompts[::every])
    chunks.append(chunks_of(executed(data, ticks), every=every * ticks, horizon=horizon)[: len(states[-1])])
  seen = states if looks is None else [np.asarray(look, np.float32) for look in looks]
  tool = [state_TP[:, list(tool_dims)] if tool_dims else state_TP for state_TP in states]
  cut = lambda parts: tuple(part[:steps] for part in parts)  # noqa: E731
  unknown_J = np.full(dataset.num_episodes, np.nan)
  return Steps(cut(seen), cut(chunks), cut(tool), every / dataset.fps, unknown_J if success_J is None else success_J,
               cut(prompts))


def executed(data: EpisodeData, ticks: int = 1) -> np.ndarray:
  """Returns float32[F ticks, A], the actions of an episode one after the other."""
  if ticks == 1 or CHUNKS not in data.extras:
    return np.repeat(actions_of(data), ticks, axis=0)
  chunks_FTA = np.asarray(data.extras[CHUNKS], np.float32)
  return chunks_FTA[:, :ticks].reshape(-1, chunks_FTA.shape[-1])


def chunks_of(actions_FA: np.ndarray, *, every: int, horizon: int) -> np.ndarray:
  """Returns float32[T, H, A], what was done from the frames 0, every, ... on; the last action stays."""
  frames_TH = np.arange(0, len(actions_FA), every)[:, None] + np.arange(horizon)
  return np.asarray(actions_FA[np.minimum(frames_TH, len(actions_FA) - 1)], np.float32)
