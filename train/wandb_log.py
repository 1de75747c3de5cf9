"""Weights & Biases, where a configuration names a project; WANDB_MODE=offline keeps a run on this machine.

An offline run is under `<workdir>/wandb`; `wandb sync` uploads it.
"""

import importlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Config

ID_FILE = "wandb_id.txt"  # in the workdir: a run that is continued goes on under the same id


def load(config: Config) -> Any:
  """Returns the package if the configuration wants it, None if not.

  Raises:
    Pi0RagError: it is missing.
  """
  if not config.get("wandb_project", ""):
    return None
  try:
    return importlib.import_module("wandb")
  except ImportError as error:
    raise Pi0RagError(f"wandb_project is '{config.wandb_project}', but Weights & Biases cannot be imported ({error}): "
                      "pip install 'pi0rag-jax[wandb]', or --config.wandb_project=") from error


class WandbRun:
  """One run of a project; scalars are plotted over `step`, so steps that a continued run repeats are kept."""

  def __init__(self, workdir: Path, config: Config):
    wandb = load(config)
    file = workdir / ID_FILE
    if not file.exists():
      file.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf8")
    facts = json.loads(config.to_json_best_effort())
    try:
      self._run = wandb.init(project=config.wandb_project, id=file.read_text(encoding="utf8").strip(), resume="allow",
                             name=f"{config.name} {workdir.name}", dir=workdir, config=facts)
    except wandb.errors.Error as error:
      reason = " ".join(str(error).split())
      raise Pi0RagError(f"Weights & Biases: {reason} Without an account: WANDB_MODE=offline") from error
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds the scalars of a step."""
    self._run.log({**scalars, "step": step})

  def close(self) -> None:
    """Waits until everything is written, or uploaded."""
    self._run.finish()
