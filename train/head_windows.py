"""Windows of history and chunks of actions for heads: which rows of a data set they are, and what is padding.

The last entry of a window is the present. Steps before an episode's start are padding in front; chunk entries behind
its end are padding that repeats the last action.
"""

import dataclasses

import numpy as np

from pi0rag_jax.errors import Pi0RagError


@dataclasses.dataclass(frozen=True)
class WindowRows:
  """Rows into arrays of F frames, one window for every frame."""

  history_FW: np.ndarray  # int64; padding names the episode's first row
  history_mask_FW: np.ndarray  # bool
  chunk_FT: np.ndarray  # int64, the rows of the actions from each frame on; padding names the last row
  chunk_mask_FT: np.ndarray  # bool

  def labels(self, rows, actions_FA: np.ndarray):
    """Returns (actions_BWTA, action_mask_BWT) of the windows `rows`: every step's chunk of single actions."""
    frames_BW = self.history_FW[rows]
    return actions_FA[self.chunk_FT[frames_BW]], self.chunk_mask_FT[frames_BW]


def window_rows(episode_F, window: int, chunk: int = 1, *, stride: int = 1) -> WindowRows:
  """Returns the windows of frames that lie one after the other, episode by episode.

  Args:
    episode_F: int[F], the episode of each frame, such as `Frames.seeds`; frames of one episode are neighbours.
    window: W.
    chunk: T.
    stride: frames between two steps of a history; a policy that decides every n frames is trained with n.
  """
  episode_F = np.asarray(episode_F)
  starts = np.flatnonzero(np.concatenate([[True], episode_F[1:] != episode_F[:-1]]))
  if len(starts) != len(np.unique(episode_F)):
    raise Pi0RagError("frames of one episode are not neighbours: windows would mix episodes")
  lengths = np.diff(np.append(starts, len(episode_F)))
  first_F, last_F = np.repeat(starts, lengths), np.repeat(starts + lengths - 1, lengths)
  frame_F1 = np.arange(len(episode_F))[:, None]
  history_FW = frame_F1 - stride * np.arange(window - 1, -1, -1)
  chunk_FT = frame_F1 + np.arange(chunk)
  return WindowRows(
    np.maximum(history_FW, first_F[:, None]), history_FW >= first_F[:, None],
    np.minimum(chunk_FT, last_F[:, None]), chunk_FT <= last_F[:, None])
