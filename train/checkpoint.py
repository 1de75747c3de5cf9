"""Checkpoints of training in openpi's layout: `checkpoints/<step>/{params,train_state,assets}`.

`params` holds the averaged weights of the policy, as openpi's do, so openpi and `eval` load it as it is;
`train_state` holds the rest, whose leaves are named by their paths. A checkpoint is written under another name and
renamed when it is whole: under its final name there is never half of one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, norm_stats
from pi0rag_jax.policy.normalize import NormStats
from train.step import TrainState

_TEMPORARY = ".tmp"
_METRICS = "metrics.json"


class CheckpointStore:
  """The checkpoints of one run: the last one and the best one on validation are kept."""

  def __init__(self, workdir: str | Path, *, asset_id: str):
    """Opens, or creates, `<workdir>/checkpoints` and removes what a killed save left there."""
    self._folder = Path(workdir).absolute() / "checkpoints"
    self._asset_id = asset_id
    self._folder.mkdir(parents=True, exist_ok=True)
    for leftover in self._folder.glob(f"*{_TEMPORARY}*"):
      shutil.rmtree(leftover)

  def steps(self) -> list[int]:
    """Returns the steps of the whole checkpoints, ascending."""
    return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

  def best_step(self) -> int | None:
    """Returns the step with the lowest recorded `score`, None before the first checkpoint."""
    return min(self.steps(), key=lambda step: (self._score(step), -step), default=None)

  def save(self, state: TrainState, stats: Mapping[str, NormStats], metrics: Mapping[str, float]) -> Path:
    """Returns the folder of the new checkpoint, whole and under its final name.

    Args:
      state: at any step that has no checkpoint yet.
      stats: written as openpi's norm_stats.json.
      metrics: recorded beside it; the one named `score` (lower is better) decides which checkpoint is the best.
    """
    step = int(state.step)
    final = self._folder / str(step)
    if final.exists():
      return final
    temporary = self._folder / f"{step}{_TEMPORARY}"
    temporary.mkdir()
    checkpoints.save_params(temporary, jax.device_get(state.ema["policy"]))
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(temporary / "train_state", _named_leaves(_train_state(state)))
    groups = {name: group.to_dict() for name, group in stats.items()}
    norm_stats.save_norm_stats(temporary, self._asset_id, groups)
    (temporary / _METRICS).write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf8")
    temporary.rename(final)
    self._remove_superseded()
    return final

  def restore(self, like: TrainState) -> TrainState | None:
    """Returns the state of the last checkpoint, None if there is none.

    Args:
      like: a state of the same configuration, whose structure and shapes the checkpoint must have.
    Raises:
      Pi0RagError: the checkpoint belongs to another configuration.
    """
    if not self.steps():
      return None
    folder = self._folder / str(self.steps()[-1])
    with ocp.PyTreeCheckpointer() as checkpointer:
      saved = checkpointer.restore(folder / "train_state")
    partial = _fill(_train_state(like), saved, folder)
    policy = checkpoints.load_params(folder, template=like.ema["policy"])
    ema = {**partial["ema"], "policy": policy}
    return TrainState(step=partial["step"], params=partial["params"], ema=ema, opt_state=partial["opt_state"])

  def folder(self, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return self._folder / str(step)

  def metrics(self, step: int) -> dict[str, float]:
    """Returns what was recorded with a checkpoint."""
    return json.loads((self.folder(step) / _METRICS).read_text(encoding="utf8"))

  def _score(self, step: int) -> float:
    return self.metrics(step).get("score", float("inf"))

  def _remove_superseded(self) -> None:
    """Removes all checkpoints but the last and the best."""
    keep = {self.steps()[-1], self.best_step()}
    for step in set(self.steps()) - keep:
      # Renamed first, so that a kill while removing leaves a leftover and no half checkpoint.
      shutil.rmtree(self.folder(step).rename(self._folder / f"{step}{_TEMPORARY}-old"))


def _train_state(state: TrainState) -> dict:
  """Returns the part of the state that is not in the `params` item."""
  ema = {name: tree for name, tree in state.ema.items() if name != "policy"}
  return {"step": state.step, "params": state.params, "ema": ema, "opt_state": state.opt_state}


def _named_leaves(tree) -> dict[str, np.ndarray]:
  """Returns path -> array of any tree, also of optax's tuples, which would not survive a restore."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


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

