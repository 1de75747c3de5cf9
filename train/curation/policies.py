"""The first stages of curation: a policy trained on all demonstrations, and the rollouts of its checkpoints."""

import dataclasses
import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pi0rag_jax import crew, files
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.curation import rollouts
from pi0rag_jax.curation.rollouts import RolloutConfig
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory, keys
from pi0rag_jax.policy.directory import RECORD_NAME
from pi0rag_jax.policy.spec import HEAD, ROBOT_FILE, TOKENIZER_NAME, PolicySpec
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds.world import STREAM_SEEDS
from train import export, loop, metrics
from train.checkpoint import CheckpointStore
from train.named import named_config

TRAIN_FOLDER, POLICY_FOLDER = "train", "policy"
ROBOT = "panda"  # of the policies that run in the simulator
# From one checkpoint's first seed to the next one's, however many of them are used: episodes that are added later
# never have a layout that another checkpoint has already seen.
SEEDS_PER_CHECKPOINT = 1000
SEEDS_PER_SLOT = 2  # of one of Ray's jobs


def train(config: Config, workdir: Path) -> None:
  """Trains the policy on all demonstrations and makes a policy of each checkpoint that is kept."""
  if config.policies:
    policies(config, workdir)
    return
  check_kind(config)
  steps, folder = checkpoint_steps(config), workdir / TRAIN_FOLDER
  loop.train_and_evaluate(config.training, folder, keep=steps)
  store = CheckpointStore(folder, asset_id=config.training.asset_id)
  for step in steps:
    if step not in store.steps():
      raise Pi0RagError(f"the training in '{store.root.parent}' kept no checkpoint of step {step}: it was begun with "
                        "other `checkpoints`, or stopped before; use another --workdir")
    export_checkpoint(store.folder(step), folder / POLICY_FOLDER, workdir / "policies" / step_name(step))


def check_kind(config: Config) -> None:
  """Raises Pi0RagError for a training whose policies cannot be run here."""
  training = config.training
  if (training.robot if training.kind == HEAD else named_config(training).data.robot) != ROBOT:
    raise Pi0RagError(
      f"config.training '{training.name}' is not of the robot '{ROBOT}'; the stages train and retrain need it, since "
      "its policies run in the simulator. With config.rollouts.given, and config.policies where embeddings are read, "
      "--stages=embed,classify,score,select,report curate the data of any kind; train.launch reads the selection")


def checkpoint_steps(config: Config) -> list[int]:
  """Returns the steps that are kept: evenly spaced validations, the last of all steps among them."""
  training, count = config.training, config.checkpoints
  total = -(-training.steps // training.validate_every)
  if not 2 <= count <= total:
    raise Pi0RagError(f"checkpoints is {count}; a training of {training.steps} steps with a validation every "
                      f"{training.validate_every} can keep 2 to {total}")
  return [min(round(total * (i + 1) / count) * training.validate_every, training.steps) for i in range(count)]


def step_name(step: int) -> str:
  """Returns the name of a checkpoint; they sort as the training went."""
  return f"{step:07d}"


def export_checkpoint(checkpoint: Path, policy: Path, target: Path) -> None:
  """Makes a policy directory of a checkpoint, with all that it shares with the run's policy."""
  if target.exists():
    return
  spec, robot_file = PolicySpec.load(policy), policy / ROBOT_FILE

  def fill_head(draft: Path) -> None:
    shutil.copytree(policy, draft, dirs_exist_ok=True)
    for item in ("params", "assets"):
      shutil.rmtree(draft / item)
      shutil.copytree(checkpoint / item, draft / item)
    files.write_json(draft / RECORD_NAME, {"step": int(checkpoint.name)})

  def fill(draft: Path) -> None:
    export.write_policy(draft, checkpoint, spec, trained=spec.network, record={"step": int(checkpoint.name)},
                        tokenizer=policy / TOKENIZER_NAME, robot_file=robot_file)
    # No memory is beside these policies: where their keys lie does not matter.
    keys.KeyStats.uncalibrated(spec.network).save(draft)

  export.replace(target, fill_head if spec.family == HEAD else fill)


def policies(config: Config, workdir: Path) -> dict[str, Path]:
  """Returns checkpoint -> policy directory, in the order of the training.

  Raises:
    Pi0RagError: there are none yet, or a given one is none.
  """
  if config.policies:
    found = {Path(str(each)).name: Path(directory.describe(each)[1]) for each in config.policies}
    if len(found) != len(config.policies):
      raise Pi0RagError(f"policies {', '.join(map(str, config.policies))} share a name: their folders need different "
                        "ones")
    return found
  found = {path.name: path for path in sorted((workdir / "policies").glob("*")) if (path / "policy.json").is_file()}
  if not found:
    raise Pi0RagError(f"no policies in '{workdir / 'policies'}': train them with --stages=train, or give some with "
                      "config.policies")
  return found


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """Those of one checkpoint."""

  policy: Path
  folder: Path
  first_seed: int
  seeds: Sequence[int]

  def left(self) -> "Rollouts | None":
    """Returns those that are missing; None for none."""
    seeds = rollouts.missing(self.folder, self.seeds)
    return dataclasses.replace(self, seeds=seeds) if seeds else None


class Runner:
  """Runs rollouts; the last policy stays loaded."""

  def __init__(self, config: RolloutConfig):
    self._config, self._load = config, functools.lru_cache(maxsize=1)(directory.load)

  def __call__(self, job: Rollouts) -> Iterator[tuple[int, str]]:
    """Yields (seed, why it crashed: '' if it did not) of each."""
    return rollouts.written(self._load(job.policy), job.folder, job.seeds, self._config, first_seed=job.first_seed)

  def close(self) -> None:
    """Leaves nothing behind: worlds end with their job."""


def rollout(config: Config, workdir: Path, machines: Machines = HERE) -> None:
  """Records the rollouts of every checkpoint, those that are missing."""
  if config.rollouts.given:
    return
  found = policies(config, workdir)
  seeds_of = {name: rollout_seeds(config, number) for number, name in enumerate(found)}
  where = rollout_config(config)
  group = config.rollouts.episodes if machines.address is None else SEEDS_PER_SLOT * where.slots
  make = functools.partial(Runner, dataclasses.replace(where, processes=machines.processes(where.processes)))
  crashed: dict[str, dict[int, str]] = {name: {} for name in found}
  with crew.crew(make, machines, shared=workdir, note=metrics.log.info) as hands:
    for number, (name, place) in enumerate(found.items()):
      for first in range(0, len(seeds_of[name]), group):
        job = Rollouts(place, workdir / "rollouts" / name, seeds_of[name][0], seeds_of[name][first : first + group])
        hands.give(name, job.left, name=f"checkpoint {name}", rank=(number, first), likes=name)
    for name, _, result in hands.results():
      seeds, folder = seeds_of[name], workdir / "rollouts" / name
      if result is crew.OVER:
        continue
      seed, why = result
      crashed[name] |= {seed: why} if why else {}
      if len(crashed[name]) == len(seeds):
        raise Pi0RagError(f"all {len(seeds)} rollouts into '{folder}' crashed, the last with:\n{why}")
      done = len(seeds) - len(rollouts.missing(folder, seeds))
      if not why and done % 10 == 0:
        metrics.log.info("checkpoint %s: %d of %d rollouts", name, done, len(seeds))
  for name, seeds in crashed.items():
    if seeds:
      metrics.log.warning("checkpoint %s: %d rollouts crashed and are left out: seeds %s", name, len(seeds),
                          sorted(seeds))


def rollout_seeds(config: Config, number: int) -> range:
  """Returns the seeds of a checkpoint's rollouts.

  No two checkpoints share any: a classifier that knew the layouts would be validated on what it was trained on.

  Args:
    config: of the curation.
    number: of the checkpoint, from 0.
  """
  first, episodes = config.rollouts.first_seed + number * SEEDS_PER_CHECKPOINT, config.rollouts.episodes
  if not 1 <= episodes <= SEEDS_PER_CHECKPOINT:
    raise Pi0RagError(f"rollouts.episodes is {episodes}; allowed: 1 to {SEEDS_PER_CHECKPOINT} of each checkpoint")
  seeds = range(first, first + episodes)
  if seeds[0] not in STREAM_SEEDS or seeds[-1] not in STREAM_SEEDS:
    raise Pi0RagError(f"the rollouts of checkpoint {number} would have the seeds {seeds[0]} to {seeds[-1]}; allowed: "
                      f"{STREAM_SEEDS[0]} to {STREAM_SEEDS[-1]}, of which no demonstration or evaluation has any. Set "
                      "rollouts.first_seed")
  return seeds


def rollout_config(config: Config) -> RolloutConfig:
  """Returns where policies run."""
  c = config.rollouts
  return RolloutConfig(c.task, c.condition, stochastic=c.stochastic, slots=c.slots, processes=c.processes)
