"""The arena: every way to learn from the same corrections, on MetaWorld's tasks, with one frozen policy.

    python -m eval.sweep --config=configs/arena.py --out=DIR

In each task the policy alone (from z = 0) works through the same 50 episodes while a supervisor takes over, so that all
methods learn from one identical stream. Then each is frozen and meets the same unseen seeds; what all tasks taught
together is evaluated in tasks that no stream ever met. Methods that change weights learn from the same records, and
are then added to the same results:

    python -m eval.taught --sweep=DIR --out=data/arena
    python -m train.launch --config=configs/arena_retrained.py:lora --workdir=runs/lora
    python -m eval.sweep --config=configs/arena.py:lora_dagger=runs/lora/policy --out=DIR

A memory that steers while it learns is taught where it goes itself; that stream is its own, and no other method's:

    python -m eval.sweep --config=configs/arena.py:acting --out=DIR2

Sources, and what was chosen where they are silent:
- `base` draws noise for each chunk, `base_z0` starts at zero: every gain is stated against the better of the two.
- `memory`: ours. `noise_memory`: the same retrieval and weights; what is retrieved is FlowDAgger's noise.
- `flowdagger` (2607.08877, and its published recipe): corrections inverted through the sampler's own steps, 5
  fixed-point iterations each; a network of two layers of 256 from the key (with proprioception) to noise within 3;
  Adam, 1e-4, batches of 256, 100 steps per episode; successes in the same buffer. Chosen: trained once on the whole
  stream, on the memory's keys. It never abstains; `flowdagger_in_range` does where no record is near, as ours.
- `residual_dagger`: after the same paper's comparison; key and own path to the residual path, the same network.
- `retrieve_then_steer` (2605.10094): nearest successes, injected halfway by how sure they are.
- `traceflow` (2609.20646): successes attract, failures repel, bounded, the first half of the flow alone; bounds chosen.
- `best_of_n`: 16 draws, the best by nearness to what worked and distance from what failed.
- `textbook`: three nearest corrections, blended in. `placebo`: our memory with its situations shuffled.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import metaworld, metaworld_small
from pi0rag_jax.errors import Pi0RagError

METHODS = {
  "memory": "residual", "noise_memory": "noise_memory", "flowdagger": "flowdagger",
  "flowdagger_in_range": "flowdagger_in_range", "residual_dagger": "residual_dagger",
  "retrieve_then_steer": "injection", "traceflow": "traceflow", "best_of_n": "best_of_n", "textbook": "textbook",
  "placebo": "placebo",
}
ACTING = "acting"
OWN_STREAM = ("base", "base_z0", "memory", "placebo")  # policies that a stream in which the memory steers is for


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=25`.

  Args:
    variant: 'acting', or further policies to evaluate, from z = 0, as NAME=DIR,NAME=DIR.
  """
  retrained = [] if variant == ACTING else [entry.partition("=") for entry in variant.split(",") if entry]
  if not all(name and folder for name, _, folder in retrained):
    raise Pi0RagError(f"variant of the configuration is {variant!r}; allowed: '{ACTING}', or NAME=DIR,NAME=DIR")
  config: Any = metaworld.get_config().unlock()
  config.policy = "metaworld_arena"
  config.stream.acting = "base"
  config.stream.episodes, config.stream.checkpoints = 50, ()
  config.stream.corrected_max = 50
  config.stream.learning.corrections.failed_chunks = 4  # for 'traceflow' and 'best_of_n'
  config.evaluation.episodes = 50
  config.evaluation.clips = 0
  config.evaluation.policies = (
      {"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"},
      *({"name": name, "steering": steering} for name, steering in METHODS.items()),
      *({"name": name, "start": "zero", "policy": folder} for name, _, folder in retrained))
  if variant == ACTING:
    config.stream.acting = "memory"
    config.evaluation.policies = tuple(each for each in config.evaluation.policies if each["name"] in OWN_STREAM)
  config.pool.conditions = tuple(f"{task}/nominal" for task in metaworld_small.HELD_OUT)
  return config.lock()
