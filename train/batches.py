"""From frames in memory to the batches of a step: prompts tokenized, states, labels and targets normalized once."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pi0rag_jax.data import pipeline, statistics
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import normalize


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
  parts = [np.asarray(frames.privileged[name], np.float32).reshape(len(frames), -1) for name in names]
  return np.concatenate(parts, axis=1)


def compute_statistics(frames: pipeline.Frames, targets: Sequence[str]) -> dict[str, normalize.NormStats]:
  """Returns the statistics of `state`, `actions` and the auxiliary `targets`."""
  stats = statistics.dataset_statistics(frames.state, frames.action_chunks)
  return stats | {"targets": statistics.vector_statistics(target_values(frames, targets))}


def make_source(frames: pipeline.Frames, stats: Mapping, tokenizer, *, model, targets) -> BatchSource:
  """Returns the batch source of some frames.

  Args:
    frames: of one split.
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
