"""What a policy directory says about itself: `policy.json` beside `params/`, `assets/` and `tokenizer.model`.

openpi reads `params/` and `assets/` of the same directory; the rest is what it keeps in code.
"""

import dataclasses
import json
import pathlib

from pi0rag_jax import errors
from pi0rag_jax.models import pi0

FILE_NAME = "policy.json"
TOKENIZER_NAME = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class ActionLayout:
  """Which entries of an action mean what; steering integrates deltas to paths and needs to know."""

  position: tuple[int, ...]  # deltas of the commanded tool position, m per control tick
  rotation: tuple[int, ...]  # deltas of the commanded tool rotation, rad per control tick
  gripper: tuple[int, ...]  # commanded opening, absolute
  low: tuple[float, ...]  # per entry, the least value that the robot takes
  high: tuple[float, ...]

  @property
  def dim(self) -> int:
    return len(self.low)


@dataclasses.dataclass(frozen=True)
class PolicySpec:
  """Everything needed to run a trained policy beside its parameters and statistics."""

  name: str
  model: pi0.Pi0Config
  state_dim: int  # of the robot; the model pads to its own action_dim, as openpi's does
  action_layout: ActionLayout
  asset_id: str  # assets/<asset_id>/norm_stats.json
  task: str  # the simulated task that it was trained on, '' for a real robot
  renderer: str  # images of another renderer are another distribution: evaluation refuses them
  image_size: int  # px, of the camera pictures
  control_hz: float
  execute_steps: int  # of the chunk, before the next decision
  denoising_steps: int

  def save(self, directory) -> None:
    """Writes `policy.json` into a policy directory."""
    text = json.dumps({**dataclasses.asdict(self), "model": self.model.to_dict()}, indent=2)
    pathlib.Path(directory, FILE_NAME).write_text(text + "\n", encoding="utf8")

  @classmethod
  def load(cls, directory) -> "PolicySpec":
    """Returns the spec of a policy directory.

    Errors: Pi0RagError when the file is missing, is no JSON, or has other fields than this class.
    """
    path = pathlib.Path(directory, FILE_NAME)
    if not path.is_file():
      raise errors.Pi0RagError(f"no {FILE_NAME} in {directory}: a policy directory has params/, assets/, "
                               f"{TOKENIZER_NAME} and {FILE_NAME} (train.launch writes one)")
    try:
      values = json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as e:
      raise errors.Pi0RagError(f"{path} is no JSON: {e}") from e
    wanted = {f.name for f in dataclasses.fields(cls)}
    if set(values) != wanted:
      raise errors.Pi0RagError(f"{path}: missing {sorted(wanted - set(values))}, "
                               f"unknown {sorted(set(values) - wanted)}")
    layout = {k: tuple(v) for k, v in values["action_layout"].items()}
    return cls(**{**values, "model": pi0.Pi0Config.from_dict(values["model"]),
                  "action_layout": ActionLayout(**layout)})


# The action of the simulated Panda (pi0rag_jax.sim.env): dx, dy, dz, dyaw per 50 ms tick, gripper opening.
PANDA_ACTIONS = ActionLayout(position=(0, 1, 2), rotation=(3,), gripper=(4,),
                             low=(-0.015, -0.015, -0.015, -0.075, 0.0), high=(0.015, 0.015, 0.015, 0.075, 1.0))
