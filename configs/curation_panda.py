"""Curation of flawed demonstrations of pick-and-place: a policy's own rollouts tell which ones to learn from.

`configs/curation_stacking.py` is the same of another task.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import panda_tasks

# Seeds of demonstrations are below 100,000, so the three uses never meet.
ROLLOUT_SEED = 100_000
EVALUATION_SEED = 200_000
BASE = "pi0rag_jax/assets/panda_tasks"


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.rollouts.episodes=50`."""
  return of_task("pick_and_place", data_dir="data/panda_flawed")


def of_task(task: str, *, data_dir: str) -> ConfigDict:
  """Returns the configuration for a task that `sim.flaws` has demonstrators of, and a folder for its demonstrations."""
  config: Any = ConfigDict()
  config.training = _training(task, data_dir)
  # Curated are the data sets that the training reads; every second frame, as often as a rollout decides.
  config.demonstrations_every = 2
  config.tool_dims = (0, 1, 2)  # of the state, the tool's position: its pace is a baseline; (): of the whole state
  config.checkpoints = 4  # kept while training, evenly spaced; the last is the end
  config.policies = ()  # directories of policies instead of those that a training keeps, in its order

  config.rollouts = _rollouts(task)

  config.embed = ConfigDict()
  config.embed.policies = ("",)  # whose prefixes: names of checkpoints; '' is the last
  config.embed.layer = "hidden"
  config.embed.pool = "mean"  # over valid tokens; 'camera', or 'tokens' to keep them as a sequence
  config.embed.batch_size = 64
  config.embed.dtype = "float32"  # on disk; 'float16' halves it

  config.classifiers = _classifiers()
  config.classify = ConfigDict()
  # (trained on, validated on), names of checkpoints; (): each but the last, on the last, of those that sometimes fail
  config.classify.pairs = ()
  config.classify.epochs = 300
  config.classify.batch_size = 1024  # steps
  config.classify.learning_rate = 1e-3
  config.classify.weight_decay = 0.1
  config.classify.seed = 0
  config.classify.more_rollouts = ()  # (name, path) of rollouts that came in since, on which the training goes on

  config.scorers = _scorers()

  config.select = ConfigDict()
  # Names of classifiers and other scorers; of several the scores are averaged. Why not Demo-SCORE's: see WORKSPACE.md.
  config.select.scorers = ("prefix_agreement",)
  # fixed, demo_score, fraction or roc (the second and the last of classifiers alone); '' is the first classifier's own.
  # Demonstrations all succeed, so a threshold that comes from rollouts may keep nearly all of them; of these it is
  # known that half are flawed.
  config.select.rule = "fraction"
  config.select.value = 0.5  # the number of 'fixed', the share of 'fraction'; -1: the rule's own

  config.retrain = ConfigDict()
  config.retrain.enabled = False  # whether all stages include it
  # Selections that are trained on: all, random, kept, oracle (those that are known to be clean), a scorer's name for as
  # many as are kept, those that it likes best, and 'least NAME' for those that it likes least.
  config.retrain.compared = ("random", "kept", "all")
  config.retrain.training_seeds = (0,)
  config.retrain.seed = 0  # of the random subset
  config.retrain.first_seed = EVALUATION_SEED
  config.retrain.episodes = 300  # the same for every policy
  config.retrain.stochastic = False  # denoising starts at zero; else from noise
  return config.lock()


def _training(task: str, data_dir: str) -> ConfigDict:
  """Returns the training of the policy, and of the one on what is kept: fine-tuning of the shipped policy.

  The stages train and retrain need the robot 'panda'; data of others are curated by recorded
  rollouts, see rollouts.given. From random values 600 undisturbed demonstrations teach no task.
  """
  training = panda_tasks.get_config().copy_and_resolve_references().unlock()
  training.name = f"panda_{task}"
  training.data = ({"path": data_dir},)
  training.make_data = (
    f"python -m pi0rag_jax.sim.collect --task={task} --flaw=all --episodes=600 --seed=0 --processes=2"
    f" --out={data_dir}")
  training.init_checkpoint = f"{BASE}/params"
  training.text_tokenizer = f"{BASE}/tokenizer.model"
  training.steps = 4000
  training.batch_size = 32
  training.learning_rate = 3e-4
  training.validate_every = 500
  return training


def _rollouts(task: str) -> ConfigDict:
  rollouts = ConfigDict()
  rollouts.given = ()  # recorded rollouts instead of simulated ones: (checkpoint, path of a data set), in order
  rollouts.success = ConfigDict({"kind": "flag"})  # see pi0rag_jax.curation.labels.Rule
  rollouts.every = 1  # takes the frames 0, every, 2 every, ...
  # Frames that classifiers read of a rollout: failures go on to the time limit, which tells the outcome by itself.
  rollouts.cut = -1  # 0: all; -1: as many as the median success of the checkpoint has
  rollouts.task = task
  rollouts.condition = "nominal"
  rollouts.first_seed = ROLLOUT_SEED  # of the first checkpoint; the next one's are 1000 further on
  rollouts.episodes = 100  # of each checkpoint
  rollouts.stochastic = False  # denoising starts at zero, as where the policy is evaluated; else from noise
  rollouts.slots = 24  # environments that share a policy call
  rollouts.processes = 2
  return rollouts


def scorer(kind: str, inputs: tuple[str, ...] = ("embeddings",), **options) -> ConfigDict:
  """Returns an entry of `scorers`.

  Args:
    kind: of pi0rag_jax.curation.scorers.SCORERS, or 'combination': the mean rank of those that the option `of` names.
    inputs: what a step looked like: state, actions, embeddings.
    options: of the kind.
  """
  return ConfigDict({"kind": kind, "inputs": inputs, "policy": "", "horizon": 16, "options": options})  # of actions


def _scorers() -> ConfigDict:
  # Scores that no classifier gives: how far other demonstrations agree, where `inputs` are alike.
  return ConfigDict({"state_agreement": scorer("agreement", ("state",)), "prefix_agreement": scorer("agreement")})


def _classifiers() -> ConfigDict:
  # Classifiers that are compared: which of the registry, what they read, whose embeddings, and other options.
  found = ConfigDict()
  for name, kind, inputs in (
      ("state", "step_mlp", ("state",)),
      ("state_actions", "step_mlp", ("state", "actions")),
      ("prefix", "prefix", ("embeddings",)),
      ("prefix_step_mlp", "step_mlp", ("embeddings",)),
      ("prefix_state", "prefix", ("embeddings", "state")),
      ("prefix_transformer", "transformer", ("embeddings",)),
      ("prefix_pool_mlp", "pool_mlp", ("embeddings",)),
  ):
    found[name] = ConfigDict(
      {"kind": kind, "inputs": inputs, "policy": "", "options": ConfigDict()})
  return found
