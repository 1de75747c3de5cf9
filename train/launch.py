"""Trains what a configuration says: `python -m train.launch --config=configs/panda_small.py --workdir=DIR`.

A run that was stopped continues from its last checkpoint when it is started again. Entries of the configuration are
overridden as `--config.steps=100`.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from pi0rag_jax.errors import Pi0RagError
from train import loop, metrics

USER_ERROR = 2


def main(argv) -> None:
  """Starts the training; a mistake of the user ends in one line and status 2."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument '{argv[1]}'")
  logging.set_verbosity(logging.WARNING)
  metrics.log.setLevel("INFO")
  try:
    config = read_config()
    metrics.log.info("device: %s x %d, process %d of %d", jax.devices()[0].device_kind,
                     jax.local_device_count(), jax.process_index(), jax.process_count())
    loop.train_and_evaluate(config, flags.FLAGS.workdir)
  except Pi0RagError as error:
    print(f"train.launch: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


def read_config() -> ConfigDict:
  """Returns the configuration of the flag; config_flags reports an unreadable file only when it is used."""
  try:
    return flags.FLAGS.config.lock()
  except OSError as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise Pi0RagError(f"cannot read the configuration file: {reason}") from error


def parse_flags(argv):
  """Returns what absl leaves of the arguments; an override that the configuration lacks is one line and status 2."""
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    print("train.launch: unknown entry of the configuration: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(USER_ERROR)


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  config_flags.DEFINE_config_file("config", None, "Configuration file, as configs/panda_small.py.")
  flags.DEFINE_string("workdir", None, "Where checkpoints, logs and the policy go.")
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse_flags)
