"""LIBERO by openpi's protocol: four suites of ten tasks, 50 trials each, a new plan every five actions.

    python -m eval.sweep --config=configs/libero.py --config.policy=pi05_libero --out=DIR
    python -m eval.sweep --config=configs/libero.py:memory --config.policy=pi05_libero --out=DIR
    python -m eval.sweep --config=configs/libero.py:small --out=DIR

The first gives openpi's table, with intervals. `:memory` adds z = 0, and a memory that 50 episodes of each task taught,
from starts that are not evaluated. `:small` is the shipped `libero_small`, which a laptop runs, under a turned wrist
camera, with a memory of 50 and of 250 episodes. `--config.conditions="('libero_spatial/0/nominal',)"` takes some of
the tasks, and LIBERO-PRO's perturbations are conditions as well: 'libero_goal/3/swap'.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from pi0rag_jax.errors import unknown_name

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
TASKS, TRIALS = 10, 50
VARIANTS = ("memory", "small")


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=10`."""
  if variant not in ("", *VARIANTS):
    raise unknown_name("variant of the configuration", variant, VARIANTS)
  config: Any = quickstart.get_config().unlock()
  config.policy = "pi05_libero"
  config.world = ConfigDict({"id": "libero"})
  config.task = ""
  config.conditions = tuple(f"{suite}/{task}/nominal" for suite in SUITES for task in range(TASKS))
  config.execute_steps = 5
  config.evaluation.episodes = TRIALS
  config.evaluation.policies = ({"name": "base", "start": "new"},)
  config.evaluation.clips = 0
  config.slots, config.processes = 8, 2
  if variant:
    config.start = "zero"
    config.stream.episodes = 50
    config.stream.corrected_max = 50
    config.evaluation.policies += ({"name": "base_z0", "start": "zero"}, {"name": "memory", "steering": "residual"})
  if variant == "small":
    config.policy = "libero_small"
    config.world.starts = "sampled"  # of the listed ones there are 50
    config.conditions = ("libero_object/3/wrist_camera_turn",)
    config.stream.episodes = config.stream.corrected_max = 250
    config.stream.checkpoints = (50,)
    config.evaluation.episodes = 100
  return config.lock()
