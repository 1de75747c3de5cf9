"""What a kind of training brings to the loop, which knows of nothing else."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.typing import Params
from train import step
from train.checkpoint import POLICY, CheckpointStore

__all__ = ["POLICY", "Task"]


@dataclasses.dataclass(frozen=True)
class Task:
  """One training: what changes, what does not, what is lowered, on which data, and what comes of it.

  Batches are this process's part of the global one, every array [B, ...], with `index` int32[B] among them: an
  example's place in the global batch, from which its random draws follow.
  """

  trainable: Params  # nested dicts with the entry `policy`, and others that are not exported
  frozen: Params  # the rest of `policy`; never differentiated
  loss: step.LossFn
  validate: Callable[[Params, Params, Mapping, Any], Mapping[str, Any]]  # as a loss, without the loss
  train_batch: Callable[[int], Mapping]  # of a step, a pure function of its number
  validation_batches: Callable[[], Iterable[Mapping]]  # the same ones each time
  stats: Mapping[str, NormStats]  # written as norm_stats.json
  record: Callable[[], dict]  # what the run's record says of the data
  export: Callable[[CheckpointStore, int, dict], Path]  # (store, step of the best, record) -> what the run made
  close: Callable[[], None] = lambda: None  # ends threads and files
