"""What training makes: a policy directory, which `policy.directory.load` opens and, for the weights, openpi reads."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from pi0rag_jax.models import adapters
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy.directory import RECORD_NAME
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from train import parallel


def replace(target: Path, fill: Callable[[Path], None]) -> Path:
  """Returns `target`, replaced as a whole by a directory that `fill` has filled; the first process does it."""
  draft = target.with_name(f"{target.name}.tmp")
  if parallel.is_first():
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    fill(draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
  parallel.wait_for_all(f"{target.name} exported")
  return target


def write_policy(directory: Path, checkpoint: Path, spec: PolicySpec, *, trained: PaliGemmaConfig, record: Mapping,
                 tokenizer: Path | None = None, robot_file: Path | None = None) -> None:
  """Fills a policy directory with a checkpoint, its adapters merged; key statistics come beside it.

  The checkpoint itself, with its adapters, stays for training to go on from.

  Args:
    checkpoint: its folder, with `params` and `assets`.
    spec: of the merged model.
    trained: sizes of the model in the checkpoint, adapters included.
    record: how the policy came about, written as record.json.
    tokenizer: of its prompts; PaliGemma's, or a file that is not there, is not kept.
    robot_file: see PolicySpec.save.
  """
  params, _ = adapters.merge(checkpoints.load_params(checkpoint), trained)
  checkpoints.save_params(directory, params)
  shutil.copytree(checkpoint / "assets", directory / "assets")
  if tokenizer is not None and tokenizer.is_file():
    shutil.copyfile(tokenizer, directory / TOKENIZER_NAME)
  spec.save(directory, robot_file=robot_file)
  (directory / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf8")
