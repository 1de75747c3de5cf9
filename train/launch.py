"""Trains what a configuration says: `python -m train.launch --config=configs/panda_small.py --workdir=DIR`.

A run that was stopped continues from its last checkpoint when it is started again. Entries of the configuration are
overridden as `--config.steps=100`.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pi0rag_jax.errors import Pi0RagError
from train import loop, metrics

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, as configs/panda_small.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and the policy go.")
USER_ERROR = 2


def main(argv) -> None:
  """Starts the training; a mistake of the user ends in one line and status 2."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument '{argv[1]}'")
  metrics.log.info("device: %s x %d, process %d of %d", jax.devices()[0].device_kind, jax.local_device_count(),
                   jax.process_index(), jax.process_count())
  try:
    loop.train_and_evaluate(_CONFIG.value, _WORKDIR.value)
  except Pi0RagError as error:
    print(f"train.launch: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


def parse_flags(argv):
  """Returns the arguments absl did not take; a missing configuration file is a usage error in one line."""
  logging.set_verbosity(logging.WARNING)
  metrics.log.setLevel("INFO")
  try:
    return app.parse_flags_with_usage(argv)
  except FileNotFoundError as error:
    print(f"train.launch: no configuration file '{error.filename}'", file=sys.stderr)
    sys.exit(USER_ERROR)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse_flags)
