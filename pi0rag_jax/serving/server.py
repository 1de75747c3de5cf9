"""Serves a policy to robots: `python -m pi0rag_jax.serving.server --config=pi0_aloha_sim --port=8000`.

It speaks openpi's protocol: clients are `pi0rag_jax.serving.client` and openpi's own. `--config` is one of openpi's
policies, `--policy` a shipped one or one of your own with its `--memory`.
"""

import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING

from absl import app, flags
from absl import logging as absl_logging

from pi0rag_jax import cli
from pi0rag_jax.errors import Pi0RagError

if TYPE_CHECKING:
  from pi0rag_jax.serving.policies import Served

COMMAND = "pi0rag_jax.serving.server"


def main(argv) -> None:
  """Serves until interrupted; a user's mistake ends in one line and status 2."""
  cli.refuse_arguments(argv)
  absl_logging.set_verbosity(absl_logging.WARNING)  # faiss tells at length which builds of itself it tries
  logging.getLogger("pi0rag_jax.serving").setLevel(logging.INFO)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's way to say Ctrl-C
  try:
    with cli.user_errors(COMMAND):
      require_one_policy()
      run(flags.FLAGS.host, flags.FLAGS.port)
  except KeyboardInterrupt:
    pass
  print("\nStopped.")


def require_one_policy() -> None:
  """Raises Pi0RagError unless the flags name one policy, and nothing that belongs to another."""
  values = flags.FLAGS
  if bool(values.config) == bool(values.policy):
    raise Pi0RagError("give either --config (one of openpi's policies) or --policy (a shipped one or a directory)")
  if values.checkpoint and not values.config:
    raise Pi0RagError("--checkpoint belongs to --config: a --policy has its parameters in its directory")
  if values.memory and not values.policy:
    raise Pi0RagError("--memory belongs to --policy: openpi's policies are served as they are")


def run(host: str, port: int) -> None:
  """Loads the policy of the flags, compiles it and serves it. A port in use is told before the long part."""
  # Late, so that a wrong flag is answered before a model library is loaded.
  from pi0rag_jax.policy import compiling
  from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer, reserve

  reserved = reserve(host, port)
  compiling.keep_programs()
  with open_policy() as served:
    warm_up(served)
    server = WebsocketPolicyServer(served.policy, metadata=served.metadata, reserved=reserved)
    print(f"Serving at ws://{host}:{server.port} (Ctrl-C ends it)", flush=True)
    server.serve_forever()


@contextlib.contextmanager
def open_policy():
  """Yields the policy that the flags name."""
  from pi0rag_jax.serving import policies

  values = flags.FLAGS
  began = time.perf_counter()
  options = {name: getattr(values, name) for name in ("default_prompt", "denoising_steps", "weights")}
  if values.config:
    opened = contextlib.nullcontext(policies.openpi_policy(values.config, values.checkpoint, **options))
  else:
    opened = policies.own_policy(values.policy, values.memory, **options)
  with opened as served:
    print(f"Loaded {values.config or values.policy} in {time.perf_counter() - began:.1f} s", flush=True)
    yield served


def warm_up(served: "Served") -> None:
  """Compiles the policy, so that no client waits for that."""
  if served.example is None:
    print("Not compiled yet: the first request will wait for that. A configuration file with example_observation() "
          "is compiled before it is served", flush=True)
    return
  from pi0rag_jax.policy import compiling

  began = time.perf_counter()
  with compiling.counted() as programs:
    served.policy.compile(served.example, all_prompts=flags.FLAGS.all_prompts)
    served.policy.infer(served.example)
  compiled = time.perf_counter()
  served.policy.infer(served.example)
  infer_ms = (time.perf_counter() - compiled) * 1000
  print(f"Compiled in {compiled - began:.1f} s: {programs.needed} programs, {programs.found} of them found on disk; an "
        f"inference takes {infer_ms:.0f} ms", flush=True)


if __name__ == "__main__":
  flags.DEFINE_string("config", None, "One of openpi's configuration names, or a Python file with get_config() as "
                      "configs/my_robot.py.")
  flags.DEFINE_string("checkpoint", None, "Checkpoint of --config: a directory or a gs:// address; openpi's release if "
                      "left out.")
  flags.DEFINE_string("policy", None, "Instead of --config: a shipped policy, or a directory that train.launch made.")
  flags.DEFINE_string("memory", None, "Memory that steers --policy: a directory, read as it is at the start.")
  flags.DEFINE_string("default_prompt", None, "Prompt of observations that have none.")
  flags.DEFINE_integer("denoising_steps", None, "Steps of the flow, instead of the policy's own; docs/speed.md says "
                       "what fewer cost.", lower_bound=1)
  flags.DEFINE_string("weights", None, "int8: matrices take half the memory of bfloat16; docs/speed.md says what that "
                      "costs.")
  flags.DEFINE_bool("all_prompts", False, "Compile --config for prompts of every length, not only of about "
                    "--default_prompt's: no request waits for that, the start takes longer.")
  flags.DEFINE_string("host", "0.0.0.0", "Address to listen at; 0.0.0.0 is all of the machine's. There is no password: "
                      "127.0.0.1 lets only this machine in.")
  flags.DEFINE_integer("port", 8000, "TCP port; 0 takes a free one.", lower_bound=0, upper_bound=65535)
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
