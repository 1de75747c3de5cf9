"""Curates demonstrations by rollouts or by one another: `python -m train.curate --config=FILE --workdir=DIR`.

Stages, each of which goes on where it was stopped and can be run alone, as `--stages=classify,score,select`:

  train     a policy on all demonstrations, with several checkpoints kept
  rollout   each checkpoint runs episodes in the simulator, which are recorded
  embed     the policy's prefix embeddings of rollouts and demonstrations, kept on disk
  classify  a classifier of success per configured kind, trained on one checkpoint's rollouts, validated on another's
  score     every demonstration by every classifier and every other scorer, such as how far the others agree with it
  select    DIR/selection.txt (Demo-SCORE's) and DIR/selection.json: what is kept, which `train.launch` reads
  retrain   policies on what is kept, on as many random demonstrations, on all, or on what other scorers would keep
  report    DIR/report.html and DIR/summary.json

`configs/curation_panda.py` explains the configuration. Rollouts of a real robot are given with
`--config.rollouts.given="(('step_1000', 'data/rollouts_1000'), ...)"`; then the stage rollout does nothing. With
`--ray=auto` the stages rollout and embed run on a Ray cluster whose nodes all see DIR (docs/sweeps.md).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from pi0rag_jax import cli, cluster
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.policy import compiling
from pi0rag_jax.typing import Config
from train import metrics
from train.curation import classify, embed, policies, report, retrain, scores

COMMAND = "train.curate"
STAGES: dict[str, Callable[[Config, Path], None]] = {
  "train": policies.train, "rollout": policies.rollout, "embed": embed.embed,
  "classify": classify.classify, "score": scores.score, "select": scores.select,
  "retrain": retrain.retrain, "report": report.write}
# Parts of the configuration whose entries are always the same ones.
FIXED = ("rollouts", "embed", "classify", "select", "retrain")
SPREAD = {"rollout": policies.rollout, "embed": embed.embed}  # over several machines


def main(_) -> None:
  """Runs the stages; a mistake of the user ends in one line and status 2."""
  logging.set_verbosity(logging.WARNING)
  metrics.log.setLevel("INFO")
  compiling.keep_programs()
  with cli.user_errors(COMMAND):
    curate(cli.read_config(), flags.FLAGS.workdir, flags.FLAGS.stages, machines=cluster.machines())


def curate(config: Config, workdir: str | Path, stages: Sequence[str] = (), *, machines: Machines = HERE
           ) -> None:
  """Runs stages in their order.

  Args:
    config: as configs/curation_panda.py explains it.
    workdir: where everything is kept.
    stages: some of STAGES; none: all that the configuration asks for.
    machines: where rollouts and embeddings run.
  Raises:
    Pi0RagError: an unknown stage or entry, or something that a stage needs is missing.
  """
  check(config)
  for stage in stages:
    if stage not in STAGES:
      raise unknown_name("stage", stage, STAGES)
  wanted = stages or [stage for stage in STAGES if stage != "retrain" or config.retrain.enabled]
  folder = Path(workdir).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  for stage, run in STAGES.items():
    if stage in wanted:
      metrics.log.info("stage %s", stage)
      if stage in SPREAD:
        SPREAD[stage](config, folder, machines)
      else:
        run(config, folder)


def check(config: Config) -> None:
  """Raises Pi0RagError for a configuration of another kind, or without one of the entries."""
  from configs import curation_panda

  known = curation_panda.get_config()
  check_entries(known, config, inside="")
  for part in FIXED:
    check_entries(known[part], config[part], inside=part)


def check_entries(known: Config, config: Config, *, inside: str) -> None:
  """Raises Pi0RagError unless a part of the configuration has the entries that it has in configs/curation_panda.py."""
  where = f"{inside}." if inside else ""
  if missing := [f"{where}{name}" for name in sorted(set(known) - set(config))]:
    raise Pi0RagError(f"the configuration lacks {', '.join(missing)}; configs/curation_panda.py explains what they are")
  if unknown := sorted(set(config) - set(known)):
    raise cli.unknown_entry(unknown[0], known, inside=inside)


if __name__ == "__main__":
  cli.define_config(example="configs/curation_panda.py")
  flags.DEFINE_string("workdir", None, "Where policies, rollouts, scores and the selection go.")
  flags.DEFINE_list("stages", [], f"Some of {', '.join(STAGES)}; none: all that the configuration asks for.")
  cluster.define_flags()
  flags.mark_flag_as_required("workdir")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
