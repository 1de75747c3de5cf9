"""Trains what a configuration says: `python -m train.launch --config=configs/panda_small.py --workdir=DIR`.

A run that was stopped continues from its last checkpoint when it is started again. Entries of the configuration are
overridden as `--config.steps=100`.
"""

import jax
from absl import app, flags, logging

from pi0rag_jax import cli
from train import loop, metrics

COMMAND = "train.launch"


def main(argv) -> None:
  """Starts the training; a mistake of the user ends in one line and status 2."""
  cli.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  metrics.log.setLevel("INFO")
  with cli.user_errors(COMMAND):
    config = cli.read_config()
    metrics.log.info("device: %s x %d, process %d of %d", jax.devices()[0].device_kind,
                     jax.local_device_count(), jax.process_index(), jax.process_count())
    loop.train_and_evaluate(config, flags.FLAGS.workdir)


if __name__ == "__main__":
  cli.define_config(example="configs/panda_small.py")
  flags.DEFINE_string("workdir", None, "Where checkpoints, logs and the policy go.")
  flags.mark_flag_as_required("workdir")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
