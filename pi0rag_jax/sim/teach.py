"""Teach a policy by hand, in a browser: `python -m pi0rag_jax.sim.teach --condition=camera_shift --memory=taught`.

A simulated robot is run by a policy that learns, behind a server as any robot's is. Take over with the keyboard or a
gamepad where it goes wrong, hand back, and watch the next episodes do better. Nothing is retrained.
"""

import contextlib
import secrets
import sys
import tempfile
import types
from collections.abc import Iterator

from absl import app, flags
from absl import logging as absl_logging

from pi0rag_jax import cli

COMMAND = "pi0rag_jax.sim.teach"


def main(_) -> None:
  """Serves the console until Ctrl-C; a user's mistake ends in one line and status 2."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  try:
    with cli.user_errors(COMMAND):
      run(flags.FLAGS)
  except KeyboardInterrupt:
    pass
  print("\nStopped.")


def run(values) -> None:
  """See `main`; `values` are the flags. What cannot be is told before anything long is begun."""
  from pi0rag_jax.console import teaching
  from pi0rag_jax.serving import LOOPBACK
  from pi0rag_jax.serving.websocket_server import reserve

  plan = teaching.plan(values.policy, values.checkpoint, values.world, values.task, values.condition)
  reserved = reserve(LOOPBACK[0], values.port)
  with memory_folder(values.memory) as memory:
    asked = types.SimpleNamespace(
      policy=values.policy, config=None, checkpoint=values.checkpoint, memory=memory,
      memory_credentials=values.memory_credentials, host=LOOPBACK[0], keep_episodes=None,
      key_name="", start=None, default_prompt=None, denoising_steps=None, weights=None,
      real_time=False)
    teaching.run(plan, asked, reserved, token=secrets.token_urlsafe(16), seed=values.seed,
                 ready=lambda address: print(f"Teach at {address} (Ctrl-C ends it)", flush=True))


@contextlib.contextmanager
def memory_folder(folder: str | None) -> Iterator[str]:
  """Yields where the memory is; without a folder, one that is gone afterwards."""
  if folder is not None:
    yield folder
    return
  print("What is taught is forgotten at the end: --memory=DIR keeps it", flush=True)
  with tempfile.TemporaryDirectory(prefix="pi0rag_taught_") as made:
    yield f"{made}/memory"


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  flags.DEFINE_string("policy", "panda_small", "As pi0rag_jax.serving.server takes it, for the world's robot.")
  flags.DEFINE_string("checkpoint", None, "Of an openpi configuration.")
  flags.DEFINE_string("world", "panda", "panda, metaworld or libero: worlds whose robot is driven at the tool.")
  flags.DEFINE_string("task", "", "A task of the world; by default the first that the policy was trained on.")
  flags.DEFINE_string("condition", "camera_shift_double",
                      "What differs from the policy's demonstrations; nominal: nothing.")
  cli.define_memory("Memory that is taught, made if there is none; by default one that is forgotten at the end.",
                    versions=False)
  # From here panda_small fails by itself with the camera shifted.
  flags.DEFINE_integer("seed", 100_002, "Of the first episode's start.", lower_bound=0)
  flags.DEFINE_integer("port", 8090, "TCP port of the page, on this machine; 0 takes a free one.", lower_bound=0,
                       upper_bound=65535)
  app.run(main, argv=sys.argv, flags_parser=cli.flags_parser(COMMAND))
