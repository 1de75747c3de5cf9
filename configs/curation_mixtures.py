"""Curation where more and more demonstrators are bad, alike or each in their own way: what every scorer is worth.

`--config=configs/curation_mixtures.py:alike_60` has 60 % that go for the wrong cube first, `own_50` 50 % that have
one of four flaws each; see MIXTURES. Make the data first:

    python -m pi0rag_jax.sim.collect --task=pick_and_place --flaw=wrong_approach --episodes=240 --record_every=1 \\
      --out=data/alike  # and --flaw=all --episodes=160 --out=data/own
    python -m pi0rag_jax.curation mix data/alike --share=0.6 --episodes=150 --out=data/alike_60.json

A head on the frozen backbone of the shipped policy is trained, which takes half a minute of one core, so that every
selection can be trained with several seeds. `configs/curation_panda.py` explains every entry.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import curation_panda, mobile_vla_lstm, panda_tasks
from pi0rag_jax.errors import unknown_name

# Mixture -> (data set that it is drawn from, share of the bad ones).
MIXTURES = {"alike_20": ("alike", 0.2), "alike_50": ("alike", 0.5), "alike_60": ("alike", 0.6), "own_50": ("own", 0.5)}
ASSETS = "pi0rag_jax/assets/panda_tasks"


def get_config(variant: str = "alike_60") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.retrain.episodes=50`.

  Args:
    variant: what follows the file's name and a colon, one of MIXTURES.
  """
  if variant not in MIXTURES:
    raise unknown_name("mixture", variant, MIXTURES)
  pool, share = MIXTURES[variant]
  config: Any = curation_panda.get_config().copy_and_resolve_references().unlock()
  config.training = _training(pool, variant)
  config.demonstrations_every = 4  # as often as a rollout decides
  config.checkpoints = 2
  config.rollouts.episodes = 60
  config.classifiers = ConfigDict({
    name: ConfigDict({"kind": kind, "inputs": ("embeddings",), "policy": "", "options": ConfigDict()})
    for name, kind in (("demo_score", "step_mlp"), ("demo_score_transformer", "transformer"))})
  config.scorers = _scorers()
  config.select.scorers, config.select.value = ("agreement",), 1 - share
  config.retrain.enabled = True
  config.retrain.compared = ("all", "oracle", "random", "agreement", "least agreement", "deminf", "demo_score",
                             "outcomes", "agreement_by_success", "smoothness", "combination")
  config.retrain.training_seeds = (0, 1, 2)
  return config.lock()


def _scorers() -> ConfigDict:
  scorer = curation_panda.scorer
  found = {kind: scorer(kind) for kind in ("random", "length", "pace", "smoothness", "deminf", "progress", "novelty",
                                           "agreement", "outcomes", "agreement_by_success")}
  found["combination"] = scorer("combination", of=("agreement", "deminf", "outcomes"))
  return ConfigDict(found)


def _training(pool: str, variant: str) -> ConfigDict:
  """Returns the training of the head."""
  training: Any = mobile_vla_lstm.get_config().copy_and_resolve_references().unlock()
  training.name, training.robot, training.asset_id = "panda_head", "panda", "panda_head"
  training.head = ConfigDict({"name": "mlp", "hidden_dims": (256, 256), "chunk": 8, "window": 1, "gripper_dims": (-1,),
                              "gripper_weight": 0.3})
  # Shown the gripper's command, a policy repeats what it did last instead of looking.
  training.read_state = False
  training.stride = 4  # ticks from decision to decision, as the shipped policy has
  model: Any = panda_tasks.get_config().model
  training.backbone = ConfigDict({
    "name": "paligemma", "openpi": "pi0_aloha_sim", "model": model,
    "checkpoint": f"{ASSETS}/params", "layer": "hidden", "pool": "camera"})
  training.text_tokenizer = f"{ASSETS}/tokenizer.model"
  training.feature_cache, training.feature_batch_size = "data/features", 64
  cameras = model.image_keys
  training.fields.cameras = ConfigDict({name: name for name in cameras})
  training.data = ({"path": f"data/{pool}", "selection": f"data/{variant}.json"},)
  training.steps, training.batch_size, training.learning_rate, training.warmup_steps = 2_000, 128, 1e-3, 50
  training.validate_every, training.validation_batches, training.log_every = 1_000, 8, 500
  training.patience = 0
  return training
