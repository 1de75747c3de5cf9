"""Runs a robot by a policy and its memory: `python -m pi0rag_jax.robots.run --robot=panda --policy=panda_small`.

One control loop at a fixed rate for every robot: simulated ones as stand-ins, arms on ROS, vendors' drivers. People
take over at any time; where something is wrong the robot stands still.
"""

import signal
import sys

from absl import app, flags
from absl import logging as absl_logging

from pi0rag_jax import cli

COMMAND = "pi0rag_jax.robots.run"


def main(_) -> None:
  """Runs until the episodes are over, or Ctrl-C; a user's mistake ends in one line and status 2."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # the robot is to stand still then too
  try:
    with cli.user_errors(COMMAND):
      from pi0rag_jax.control import running  # late, so that a wrong flag is answered before a model library is loaded

      running.run(flags.FLAGS)
  except KeyboardInterrupt:
    print("\nStopped.")


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  flags.DEFINE_string("robot", "panda", "A world as a stand-in: panda, metaworld, aloha, kitchen, libero, widowx, or "
                      "the id of an environment that gymnasium knows.")
  flags.DEFINE_string("options", "", "Of the robot: JSON, or a file of it.")
  flags.DEFINE_string("limits", "", "JSON, or a file of it: 'low' and 'high' of the places that actions lead to, "
                      "'speed' per second, the entries of the state in which they are 'measured', and 'unit'.")
  flags.DEFINE_string("policy", "", "As pi0rag_jax.serving.server takes it; it runs in this process.")
  flags.DEFINE_string("checkpoint", None, "Of an openpi configuration.")
  flags.DEFINE_string("server", "", "ws://HOST:PORT of a policy server, instead of --policy.")
  flags.DEFINE_string("token", None, "Key of the server.")
  cli.define_memory("Memory that steers --policy.")
  flags.DEFINE_string("episode_log", None, "As of the server: robots on one machine that teach one memory need one "
                      "each.")
  flags.DEFINE_bool("learn", False, "Teach the memory, here or behind the server, what episodes show.")
  flags.DEFINE_string("name", "", "Of this robot among others of its kind, for whoever looks into the memory.")
  flags.DEFINE_string("teacher", "", "Name of who takes over, likewise.")
  flags.DEFINE_string("keep_episodes", None, "As of the server: keeps what the policy saw in episodes that teach it.")
  flags.DEFINE_string("prompt", "", "What the robot is told, where it does not say so itself.")
  flags.DEFINE_string("task", "", "Of a stand-in; by default the first that the policy was trained on.")
  flags.DEFINE_string("condition", "nominal", "Of a stand-in: what differs from the policy's demonstrations.")
  flags.DEFINE_float("hz", None, "Ticks per second; by default the policy's own. Another rate has the robot move as "
                     "much faster or slower.", lower_bound=1.0, upper_bound=200.0)
  flags.DEFINE_string("replan", "own", "When the next chunk is asked for: own (after the policy's number of ticks), "
                      "coarse (the whole chunk), fine (every tick), adaptive (sooner where the policy contradicts "
                      "itself or the memory speaks, later where all is calm).")
  flags.DEFINE_bool("real_time", False, "Chunks go on from the one before (real-time chunking); of a server that was "
                    "started with it too.")
  flags.DEFINE_list("takeover", [], "Who may take over: keyboard, gamepad. A robot that people lead by hand, or with a "
                    "leader arm, can always be.")
  flags.DEFINE_string("gamepad_device", "/dev/input/js0", "The gamepad.")
  flags.DEFINE_bool("auto", False, "The next episode begins by itself also where somebody may take over.")
  flags.DEFINE_float("pause_s", 0.0, "Between two episodes that begin by themselves.", lower_bound=0.0)
  flags.DEFINE_integer("episodes", None, "How many; by default 1, or any number where somebody may take over.",
                       lower_bound=1)
  flags.DEFINE_float("seconds", None, "Time limit of an episode; a stand-in has one of its own.", lower_bound=0.0)
  flags.DEFINE_integer("seed", 200_000, "Of a stand-in's first episode.", lower_bound=0)
  flags.DEFINE_string("record", None, "Folder of a LeRobot data set (v3.0) to which the episodes are added.")
  flags.DEFINE_float("stale_ms", 90.0, "The robot holds when a camera or its state has been silent for so long.",
                     lower_bound=1.0)
  flags.DEFINE_float("answer_ms", None, "The robot holds when the policy has thought for so long, and what it says "
                     "is not executed; by default it goes on to the end of the chunk that it has.", lower_bound=1.0)
  flags.DEFINE_float("give_up_s", 10.0, "An episode ends as a fault when the robot had to hold for so long.",
                     lower_bound=0.0)
  flags.DEFINE_string("report", None, "JSON file for the figures of the run.")
  flags.DEFINE_string("key_name", "", "As of the server.")
  flags.DEFINE_string("start", None, "As of the server: where the flow starts.")
  flags.DEFINE_integer("denoising_steps", None, "As of the server.", lower_bound=1)
  flags.DEFINE_string("weights", None, "As of the server.")
  flags.DEFINE_string("default_prompt", None, "As of the server.")
  app.run(main, argv=sys.argv, flags_parser=cli.flags_parser(COMMAND))
