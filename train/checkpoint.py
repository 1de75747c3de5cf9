"""Checkpoints of training in openpi's layout: `checkpoints/<step>/{params,train_state,assets}`.

`params` holds the whole policy, its averaged weights where an average is kept, as openpi's do, so openpi and `eval`
load it as it is; `train_state` holds what else a run needs to go on, its leaves named by their paths. A checkpoint is
written under another name and renamed when it is whole: under its final name there is never half of one. Its digests
tell when a file was damaged later.
"""

import logging
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, digests, norm_stats, orbax_source
from pi0rag_jax.openpi.digests import DamagedCheckpoint
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.typing import Params
from train import parallel, partition
from train.step import TrainState

# The entry of a tree that becomes the `params`; others, such as an auxiliary head, only serve resuming.
POLICY = "policy"
CHECKPOINTS = "checkpoints"  # the folder of them in a workdir
_TEMPORARY = ".tmp"
_DAMAGED = ".damaged"
_METRICS = "metrics.json"

_log = logging.getLogger(__name__)


class CheckpointStore:
  """The checkpoints of one run: the last one, the best one on validation and those of `keep` are kept.

  With several hosts all of them call `save` and `restore`, on one shared folder, and the first writes.
  """

  def __init__(self, workdir: str | Path, *, asset_id: str, keep: Collection[int] = ()):
    """Opens, or creates, `<workdir>/checkpoints` and removes what a killed save left there; `keep` are steps."""
    self.root = Path(workdir).absolute() / CHECKPOINTS
    self._asset_id, self._keep = asset_id, frozenset(keep)
    if parallel.is_first():
      self.root.mkdir(parents=True, exist_ok=True)
      for leftover in self.root.glob(f"*{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    parallel.wait_for_all("checkpoints opened")

  def steps(self) -> list[int]:
    """Returns the steps of the whole checkpoints, ascending."""
    return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdigit())

  def best_step(self) -> int | None:
    """Returns the first step with the lowest recorded `score`, None before the first checkpoint."""
    return min(self.steps(), key=lambda step: (self._score(step), step), default=None)

  def save(self, state: TrainState, frozen: Params, stats: Mapping[str, NormStats],
           metrics: Mapping[str, float]) -> Path:
    """Returns the folder of the new checkpoint, whole and under its final name.

    Args:
      state: at any step that has no checkpoint yet.
      frozen: the parameters that do not train.
      stats: written as openpi's norm_stats.json.
      metrics: recorded beside it; the one named `score` (lower is better) decides which checkpoint is the best.
    """
    step = int(state.step)
    final = self.root / str(step)
    if final.exists():
      return final
    temporary = self.root / f"{step}{_TEMPORARY}"
    policy = parallel.fetch(_policy(state.averaged, frozen))
    rest = parallel.fetch(_named_leaves(_train_state(state)))
    if parallel.is_first():
      temporary.mkdir()
      checkpoints.save_params(temporary, policy)
      with orbax_source.local_checkpointer() as checkpointer:
        checkpointer.save(temporary / "train_state", rest)
      groups = {name: group.to_dict() for name, group in stats.items()}
      norm_stats.save_norm_stats(temporary, self._asset_id, groups)
      finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
      files.write_json(temporary / _METRICS, finite)
      digests.write(temporary)
      temporary.rename(final)
      files.sync(self.root)
      self._remove_superseded()
    parallel.wait_for_all(f"checkpoint {step} saved")
    return final

  def restore(self, like: TrainState, frozen: Params) -> TrainState | None:
    """Returns the state of the last whole checkpoint, on the host; None if there is none.

    Damaged ones are renamed, with a warning that names what is damaged, so that neither their step nor their score
    counts any more.

    Args:
      like: a state of the same configuration, whose structure and shapes the checkpoint must have.
      frozen: the parameters that do not train, which the checkpoint must have as well.
    Raises:
      Pi0RagError: the checkpoint belongs to another configuration, or there are some and none is whole.
    """
    state, damaged = None, {}
    for step in reversed(self.steps()):
      try:
        digests.check(self.folder(step))
        self.metrics(step)
        state = state or self._read(step, like, frozen)
      except DamagedCheckpoint as error:
        damaged[step] = error
    if damaged and state is None:
      raise Pi0RagError(f"no checkpoint in '{self.root}' is whole: {'; '.join(map(str, damaged.values()))}; copy one "
                        "there from a backup, or train in another --workdir")
    parallel.wait_for_all("checkpoints read")
    if parallel.is_first():
      self._set_aside(damaged)
    parallel.wait_for_all("damaged checkpoints set aside")
    return state

  def _read(self, step: int, like: TrainState, frozen: Params) -> TrainState:
    """Returns the state of one checkpoint; errors as of `restore`."""
    folder = self.folder(step)
    partial = _fill(_train_state(like), _saved(folder / "train_state"), folder)
    policy = checkpoints.load_params(folder, template=_policy(like.averaged, frozen))
    averaged = {POLICY: partition.take(policy, like.averaged[POLICY])}
    if like.ema is None:
      params, ema = {**partial["params"], **averaged}, None
    else:
      params, ema = partial["params"], {**partial["ema"], **averaged}
    return TrainState(step=partial["step"], params=params, ema=ema, opt_state=partial["opt_state"])

  def folder(self, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return self.root / str(step)

  def metrics(self, step: int) -> dict[str, float]:
    """Returns what was recorded with a checkpoint; NaN for what was not finite. Errors: DamagedCheckpoint."""
    try:
      found = schema.read(self.folder(step) / _METRICS, dict[str, float | None])
    except Pi0RagError as error:
      raise DamagedCheckpoint(str(error)) from error
    return {name: math.nan if value is None else value for name, value in found.items()}

  def _score(self, step: int) -> float:
    score = self.metrics(step).get("score", math.inf)
    return math.inf if math.isnan(score) else score

  def _set_aside(self, damaged: Mapping[int, Exception]) -> None:
    """Renames damaged checkpoints."""
    for step, error in damaged.items():
      aside = self.root / f"{step}{_DAMAGED}"
      shutil.rmtree(aside, ignore_errors=True)
      self.folder(step).rename(aside)
      _log.warning("%s; it is now '%s', and training goes on from step %d", error, aside.name, self.steps()[-1])

  def _remove_superseded(self) -> None:
    """Removes all checkpoints but the last, the best and those to keep."""
    keep = {self.steps()[-1], self.best_step(), *self._keep}
    for step in set(self.steps()) - keep:
      # Renamed first, so that a kill while removing leaves a leftover and no half checkpoint.
      shutil.rmtree(self.folder(step).rename(self.root / f"{step}{_TEMPORARY}-old"))


def _policy(averaged: Params, frozen: Params) -> Params:
  """Returns the whole policy's parameters."""
  return partition.join(averaged[POLICY], frozen.get(POLICY, {}))


def _train_state(state: TrainState) -> dict:
  """Returns the part of the state that is not in the `params` item."""
  rest = {"step": state.step, "opt_state": state.opt_state}
  if state.ema is None:
    return rest | {"params": _without_policy(state.params)}
  return rest | {"params": state.params, "ema": _without_policy(state.ema)}


def _without_policy(params: Params) -> Params:
  return {name: tree for name, tree in params.items() if name != POLICY}


def _saved(folder: Path) -> Mapping[str, np.ndarray]:
  """Returns the stored leaves of a train state."""
  try:
    with orbax_source.local_checkpointer() as checkpointer:
      return checkpointer.restore(folder)
  except Exception as error:  # of Orbax: what a broken item raises has no common base
    raise orbax_source.damaged(folder, str(error)) from error


def _named_leaves(tree) -> dict:
  """Returns path -> array of any tree, also of optax's tuples, which would not survive a restore."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _fill(like, saved: Mapping[str, np.ndarray], folder: Path):
  """Returns `like` with the saved leaves."""
  wanted = _named_leaves(like)
  wrong = [
    name
    for name in sorted(set(wanted) | set(saved))
    if name not in wanted or name not in saved or wanted[name].shape != saved[name].shape
  ]
  if wrong:
    raise Pi0RagError(
      f"checkpoint '{folder}' is of another configuration: {len(wrong)} arrays differ, the first is '{wrong[0]}';"
      " use another --workdir or the configuration it was made with"
    )
  leaves = [np.asarray(saved[name], wanted[name].dtype) for name in wanted]
  return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves)
