"""Trains what a configuration says: `python -m train.launch --config=configs/panda_small.py --workdir=DIR`.

A run that was stopped continues from its last checkpoint when it is started again. Entries of the configuration are
overridden as `--config.steps=100`. Lists of values make it a search (see train/grid.py), as
`--grid=learning_rate=1e-3,3e-4 --grid=seed=0,1`: every combination trains in a folder below DIR, a table ranks them,
and the status is 1 if one failed; with `--ray=auto` they train on a Ray cluster whose nodes all see DIR. Several hosts
train together with the flags of train/distributed.py; `--cpu_devices=2` makes two devices of a CPU, to try what several
do.
"""

import sys

import jax
from absl import app, flags, logging

from pi0rag_jax import cli, cluster
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import compiling
from train import distributed, grid, loop, metrics

COMMAND = "train.launch"


def main(_) -> None:
  """Starts the training; a mistake of the user ends in one line and status 2."""
  logging.set_verbosity(logging.WARNING)
  metrics.log.setLevel("INFO")
  compiling.keep_programs()
  with cli.user_errors(COMMAND):
    if flags.FLAGS.cpu_devices is not None:
      distributed.split_cpu(flags.FLAGS.cpu_devices)
    machines = cluster.machines()
    if machines.address is not None:
      distributed.refuse(flags.FLAGS, "--ray, whose actors train one point each")
      jax.config.update("jax_platforms", "cpu")  # devices are the actors'
    distributed.initialize(flags.FLAGS)
    metrics.log.info("device: %s x %d, process %d of %d", jax.devices()[0].device_kind,
                     jax.local_device_count(), jax.process_index(), jax.process_count())
    if jax.process_index() != 0:
      metrics.log.setLevel("WARNING")
    failed = launch(grid.with_lists(cli.read_config(), flags.FLAGS.grid), flags.FLAGS.workdir, machines)
  sys.exit(1 if failed else 0)


def launch(config, workdir: str, machines: Machines = HERE) -> bool:
  """Returns whether a point of a grid failed; a single run that fails raises."""
  if grid.lists(config):
    return any(entry["status"] == grid.FAILED for entry in grid.run(config, workdir, machines=machines))
  if machines.address is not None:
    raise Pi0RagError("--ray trains the points of a grid: give its lists, such as --grid=learning_rate=1e-3,3e-4; one "
                      "training on several hosts takes --coordinator_address")
  if grid.exists(workdir):
    raise Pi0RagError(f"workdir '{workdir}' is of a grid: give its lists again, or another --workdir")
  loop.train_and_evaluate(config, workdir)
  return False


if __name__ == "__main__":
  cli.define_config(example="configs/panda_small.py")
  flags.DEFINE_string("workdir", None, "Where checkpoints, logs and the policy go.")
  flags.DEFINE_multi_string("grid", [], "Values of a field to search over, as learning_rate=1e-3,3e-4; repeatable.")
  flags.mark_flag_as_required("workdir")
  flags.DEFINE_integer("cpu_devices", None, "Devices that the CPU counts as.", lower_bound=1)
  distributed.define_flags()
  cluster.define_flags()
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
