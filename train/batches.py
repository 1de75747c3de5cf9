"""From frames in memory to the batches of a step: prompts tokenized, states, labels and targets normalized once."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pi0rag_jax.data import pipeline, statistics
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import normalize

# The standard deviation that hides a state entry: normalized, it is zero to any network. It travels in norm_stats.json,
# so the policy hides the entry at run time too, and whatever loads the checkpoint needs to know nothing of it.
HIDDEN_STD = 1e6
# A frame is an approach when its label moves the empty gripper sideways, or turns it, by so much on average per tick.
APPROACH_M, APPROACH_RAD = 0.005, 0.015
APPROACH_STEPS = 4


@dataclasses.dataclass(frozen=True)
class BatchSource:
  """Frames ready for the model; `batch(rows)` only gathers."""

  images: Mapping[str, np.ndarray]  # camera -> uint8[F, S, S, 3]
  state_FP: np.ndarray  # normalized, padded to what the model takes
  chunks_FTA: np.ndarray  # normalized, padded
  targets_FG: np.ndarray  # normalized
  tokens_FL: np.ndarray
  token_mask_FL: np.ndarray

  def __len__(self) -> int:
    return self.state_FP.shape[0]

  def batch(self, rows) -> dict:
    """Returns the batch that `step.batch_loss` describes, of the frames at `rows`."""
    observation = {
      "image": {name: images[rows] for name, images in self.images.items()},
      "state": self.state_FP[rows],
      "tokenized_prompt": self.tokens_FL[rows],
      "tokenized_prompt_mask": self.token_mask_FL[rows],
    }
    return {
      "observation": observation,
      "actions_BTA": self.chunks_FTA[rows],
      "targets_BG": self.targets_FG[rows],
    }


def target_values(frames: pipeline.Frames, names: Sequence[str]) -> np.ndarray:
  """Returns float32[F, G]: the privileged arrays `names`, flattened and side by side."""
  missing = [name for name in names if name not in frames.privileged]
  if missing:
    raise Pi0RagError(f"auxiliary_targets {missing} are not recorded; recorded: {sorted(frames.privileged)}")
  if not names:
    raise Pi0RagError("auxiliary_targets is empty: name one; with auxiliary_weight = 0 it counts for nothing")
  parts = [np.asarray(frames.privileged[name], np.float32).reshape(len(frames), -1) for name in names]
  return np.concatenate(parts, axis=1)


def emphasized_rows(frames: pipeline.Frames, rows: np.ndarray, repeats: int) -> np.ndarray:
  """Returns int[R], each of `rows` once and those of approaches `repeats` more times.

  An approach is where the policy has to find the object in the pictures; everywhere else the tool's own pose says
  nearly all. Only one frame in six is one, and a policy trained on plain averages learns to look last.

  Args:
    frames: with the privileged array `grasped`; actions start with the displacement dx, dy, dz, dyaw.
    rows: of a split.
    repeats: 0 takes every frame once.
  """
  if repeats == 0:
    return rows
  if "grasped" not in frames.privileged:
    raise Pi0RagError(f"approach_repeats needs the privileged array 'grasped'; recorded: {sorted(frames.privileged)}")
  steps_FT2 = frames.action_chunks[:, :APPROACH_STEPS, :2]
  sideways = np.linalg.norm(steps_FT2.sum(axis=1), axis=-1) > APPROACH_STEPS * APPROACH_M
  turning = np.abs(frames.action_chunks[:, :APPROACH_STEPS, 3].sum(axis=1)) > APPROACH_STEPS * APPROACH_RAD
  approach = (sideways | turning) & (frames.privileged["grasped"] < 0.5)
  return np.concatenate([rows, np.repeat(rows[approach[rows]], repeats)])


def compute_statistics(frames: pipeline.Frames, rows: np.ndarray, targets: Sequence[str], *,
                       hidden_state_dims: Sequence[int]) -> dict:
  """Returns the statistics of `state`, `actions` and the auxiliary `targets`, NormStats by name.

  Args:
    frames: all.
    rows: of the training split, which alone counts.
    targets: names of privileged arrays.
    hidden_state_dims: entries of the state that the policy must not see.
  """
  stats = statistics.dataset_statistics(frames.state[rows], frames.action_chunks[rows])
  wrong = [dim for dim in hidden_state_dims if not 0 <= dim < frames.state.shape[-1]]
  if wrong:
    raise Pi0RagError(f"hidden_state_dims {wrong}: the state has entries 0..{frames.state.shape[-1] - 1}")
  std = stats["state"].std.copy()
  std[list(hidden_state_dims)] = HIDDEN_STD
  stats["state"] = dataclasses.replace(stats["state"], std=std)
  return stats | {"targets": statistics.vector_statistics(target_values(frames, targets)[rows])}


def make_source(frames: pipeline.Frames, stats: Mapping, tokenizer, *, model, targets) -> BatchSource:
  """Returns the batch source of the frames.

  Args:
    frames: of all splits.
    stats: of the training split, with `state`, `actions` and `targets`.
    tokenizer: with `encode_prompt`.
    model: the Pi0Config whose sizes the arrays are padded to.
    targets: names of privileged arrays.
  """
  if frames.action_chunks.shape[1] < model.action_horizon:
    horizon = frames.action_chunks.shape[1]
    raise Pi0RagError(f"labels have {horizon} steps, the model's horizon is {model.action_horizon}")
  encoded = [tokenizer.encode_prompt(prompt, model.max_token_len) for prompt in frames.prompts]
  tokens_QL, mask_QL = (np.stack(parts) for parts in zip(*encoded))
  scaled = lambda name, values: normalize.normalize(values, stats[name]).astype(np.float32)  # noqa: E731
  chunks = scaled("actions", frames.action_chunks[:, : model.action_horizon])
  return BatchSource(
    images=frames.images,
    state_FP=normalize.pad_last(scaled("state", frames.state), model.state_size),
    chunks_FTA=normalize.pad_last(chunks, model.action_dim),
    targets_FG=scaled("targets", target_values(frames, targets)),
    tokens_FL=tokens_QL[frames.prompt_index],
    token_mask_FL=mask_QL[frames.prompt_index],
  )
