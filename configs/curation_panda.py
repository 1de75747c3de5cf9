"""Curation of flawed demonstrations of pick-and-place: a policy's own rollouts tell which ones to learn from."""

from ml_collections import ConfigDict

from configs import panda_small

# Seeds of demonstrations are below 100,000, so the three uses never meet.
ROLLOUT_SEED = 100_000
EVALUATION_SEED = 200_000


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.rollouts.episodes=50`."""
  config = ConfigDict()
  # The training of the policy, and of the one on what is kept: any that train.launch runs, such as its own file has it.
  config.training = panda_small.get_config().copy_and_resolve_references().unlock()
  config.training.data_dir = "data/panda_flawed"
  config.training.make_data = (
    "python -m pi0rag_jax.sim.collect --task=pick_and_place --flaw=all --episodes=600 --seed=0 --processes=2"
    " --out=data/panda_flawed")
  # Curated are the data sets that the training reads; every second frame, as often as a rollout decides.
  config.demonstrations_every = 2
  config.checkpoints = 4  # kept while training, evenly spaced; the last is the end
  config.policies = ()  # directories of policies instead of those that a training keeps, in its order

  config.rollouts = ConfigDict()
  config.rollouts.given = ()  # recorded rollouts instead of simulated ones: (checkpoint, path of a data set), in order
  config.rollouts.success = ConfigDict({"kind": "flag"})  # see pi0rag_jax.curation.labels
  config.rollouts.every = 1  # takes the frames 0, every, 2 every, ...
  config.rollouts.task = "pick_and_place"
  config.rollouts.condition = "nominal"
  config.rollouts.first_seed = ROLLOUT_SEED
  config.rollouts.episodes = 100  # of each checkpoint
  config.rollouts.stochastic = True  # denoising starts from noise; else at zero
  config.rollouts.slots = 24  # environments that share a policy call
  config.rollouts.processes = 2

  config.embed = ConfigDict()
  config.embed.policies = ("",)  # whose prefixes: names of checkpoints; '' is the last
  config.embed.layer = "hidden"
  config.embed.pool = "mean"  # over valid tokens; 'camera', or 'tokens' to keep them as a sequence
  config.embed.batch_size = 64
  config.embed.dtype = "float32"  # on disk; 'float16' halves it

  # Classifiers that are compared: which of the registry, what they read, whose embeddings, and other sizes.
  config.classifiers = ConfigDict()
  for name, kind, inputs in (
      ("state", "step_mlp", ("state",)),
      ("state_actions", "step_mlp", ("state", "actions")),
      ("prefix", "prefix", ("embeddings",)),
      ("prefix_step_mlp", "step_mlp", ("embeddings",)),
      ("prefix_state", "prefix", ("embeddings", "state")),
      ("prefix_transformer", "transformer", ("embeddings",)),
      ("prefix_pool_mlp", "pool_mlp", ("embeddings",)),
  ):
    config.classifiers[name] = ConfigDict(
      {"kind": kind, "inputs": inputs, "policy": "", "options": ConfigDict()})
  config.classify = ConfigDict()
  config.classify.pairs = ()  # (trained on, validated on), names of checkpoints; (): each but the last, on the last
  config.classify.epochs = 300
  config.classify.batch_size = 1024  # steps
  config.classify.learning_rate = 1e-3
  config.classify.weight_decay = 0.1
  config.classify.success_weight = 4.0  # of a success against a failure
  config.classify.seed = 0
  config.classify.more_rollouts = ()  # (name, path) of rollouts that came in since, on which the training goes on

  config.select = ConfigDict()
  config.select.classifiers = ("prefix",)  # of several the scores are averaged
  config.select.rule = ""  # fixed, demo_score, fraction or roc; '' is the first classifier's own
  config.select.value = -1.0  # the number of 'fixed', the share of 'fraction'; -1: the rule's own

  config.retrain = ConfigDict()
  config.retrain.enabled = False  # whether all stages include it
  config.retrain.seed = 0  # of the random subset
  config.retrain.first_seed = EVALUATION_SEED
  config.retrain.episodes = 300  # the same for every policy
  config.retrain.stochastic = False  # denoising starts at zero; else from noise
  return config.lock()
