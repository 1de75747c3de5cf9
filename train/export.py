"""The end product of training: a policy directory that `policy.spec`, `eval` and, for the weights, openpi load."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pi0rag_jax.data.pipeline import Frames
from pi0rag_jax.models.pi0 import Pi0Config
from pi0rag_jax.policy.spec import PANDA_ACTIONS, TOKENIZER_NAME, PolicySpec
from pi0rag_jax.typing import Config

RECORD_NAME = "record.json"


def export_policy(checkpoint: Path, tokenizer: Path, target: Path, *, spec: PolicySpec, record: Mapping) -> Path:
  """Returns `target`, a policy directory, replaced as a whole.

  Args:
    checkpoint: a training checkpoint's folder; its `params` and `assets` are copied.
    tokenizer: the sentencepiece model.
    target: the directory to make.
    spec: written as policy.json.
    record: how the policy came about, written as record.json.
  """
  temporary = target.with_name(f"{target.name}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for item in ("params", "assets"):
    shutil.copytree(checkpoint / item, temporary / item)
  shutil.copyfile(tokenizer, temporary / TOKENIZER_NAME)
  spec.save(temporary)
  (temporary / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf8")
  shutil.rmtree(target, ignore_errors=True)
  temporary.rename(target)
  return target


def make_spec(config: Config, model: Pi0Config, frames: Frames) -> PolicySpec:
  """Returns what the policy says about itself; the renderer and the tasks are those of its frames."""
  return PolicySpec(
    name=config.name,
    model=model,
    state_dim=frames.state.shape[-1],
    action_layout=PANDA_ACTIONS,
    asset_id=config.asset_id,
    task="+".join(frames.tasks),
    renderer=frames.renderer,
    image_size=next(iter(frames.images.values())).shape[1],
    control_hz=config.control_hz,
    execute_steps=config.execute_steps,
    denoising_steps=config.denoising_steps,
  )
