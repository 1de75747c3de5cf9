"""Measures the control loop on a real ROS: `python -m eval.robots --middleware=ros1 --out=FILE.json`.

A stand-in robot, a policy server and the loop, each a process of its own, with two cameras: how often the loop misses a
deadline at each rate, and how soon the robot stands still once the server is killed, a camera is silent or the robot
stops. The policy has the sizes of the smallest shipped one, with random parameters: what it wants does not matter.
"""

import contextlib
import importlib
import math
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from eval import provenance
from pi0rag_jax import cli, files
from pi0rag_jax.control import ros1, ros2, ros_arm, ros_stand_in
from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.policies import Untaught
from pi0rag_jax.control.recording import Recording
from pi0rag_jax.control.replanning import OWN, Replanning
from pi0rag_jax.control.setting import Setting
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.models.family import named
from pi0rag_jax.openpi import checkpoints, norm_stats
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.policy import directory, keys
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.serving.client import TeachingClient

COMMAND = "eval.robots"
DRIVERS = {"ros1": ros1, "ros2": ros2}
LIKE = "panda_small"
PROMPT = "pick up the red cube and place it on the white pad"
STALE_S, STATE_HZ = 0.09, 50.0  # robots tell where they are more often than a slow loop asks
FAULTS = SERVER, CAMERA, ROBOT = ("killed server", "silent camera", "stopped robot")


def make_policy(folder: pathlib.Path, hz: float) -> None:
  """Writes a policy of random parameters for an arm of seven joints."""
  like, source = directory.describe(LIKE)
  dim = len(ros_stand_in.JOINTS)
  assert like.sizes is not None, "the shipped policies have networks"
  network = named(like.family)
  sizes = network.read_sizes({**like.sizes.to_dict(), "action_dim": dim, "state_dim": dim,
                              "image_keys": list(ros_stand_in.CAMERAS)})
  folder.mkdir()
  checkpoints.save_params(folder, network.init(sizes, jax.random.key(0)))
  stats = {name: {"mean": [0.0] * dim, "std": [0.1] * dim, "q01": None, "q99": None} for name in ("state", "actions")}
  norm_stats.save_norm_stats(folder, "arm", stats)
  shutil.copy(pathlib.Path(source) / TOKENIZER_NAME, folder / TOKENIZER_NAME)
  model = ModelConfig(family=like.family, action_dim=dim, action_horizon=sizes.action_horizon, dtype=like.model.dtype,
                      max_token_len=sizes.max_token_len, image_keys=sizes.image_keys)
  PolicySpec(name="arm", model=model, sizes=sizes, data=DataConfig(robot="plain", asset_id="arm"), control_hz=hz,
             execute_steps=like.execute_steps, denoising_steps=like.denoising_steps, decoding_steps=like.decoding_steps,
             tasks=("pick",)).save(folder)
  keys.KeyStats.identity(keys.KeyRecipe(), sizes.paligemma.width).save(folder)


class Server:
  """A policy server in a process of its own, started anew where it was killed."""

  def __init__(self, policy: pathlib.Path):
    self._policy, self.process, self.uri = policy, None, ""

  def start(self) -> str:
    """Returns where it serves."""
    if self.process is None or self.process.poll() is not None:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "pi0rag_jax.serving.server", f"--policy={self._policy}", "--port=0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
      assert self.process.stdout is not None, "it is a pipe"
      self.uri = next(line.split()[2] for line in self.process.stdout if line.startswith("Serving at"))
    return self.uri

  def kill(self) -> None:
    """Kills it."""
    if self.process is not None:
      self.process.kill()
      self.process.wait()


@contextlib.contextmanager
def stand_in(middleware: str, hz: float, camera_hz: float) -> Iterator[tuple[Any, Callable[[str], object]]]:
  """Yields the driver of a robot in a process of its own, and how that is told something."""
  state_hz = max(hz, STATE_HZ)
  process = subprocess.Popen([sys.executable, "-m", ros_stand_in.__name__, middleware, str(state_hz), str(camera_hz),
                              "224"], start_new_session=True)
  try:
    with contextlib.closing(DRIVERS[middleware].driver({**ros_stand_in.OPTIONS, "leader": "", "hz": hz})) as arm:
      text = ros_arm.messages().String
      if middleware == "ros1":
        publisher = ros1.import_rospy().Publisher("/stand_in", text, queue_size=10)
      else:
        publisher = arm.node.create_publisher(text, "/stand_in", 10)
      yield arm, lambda said: publisher.publish(text(data=said))
  finally:
    process.kill()
    process.wait()


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def graph(middleware: str) -> Iterator[None]:
  """Keeps what is said on this machine, with a master for ROS 1."""
  port = _free_port()
  os.environ.update({"ROS_MASTER_URI": f"http://127.0.0.1:{port}", "ROS_IP": "127.0.0.1"} if middleware == "ros1" else
                    {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(100 + os.getpid() % 100)})
  if middleware == "ros2":
    yield
    return
  ros1.import_rospy()
  rosgraph = importlib.import_module("rosgraph")
  master = subprocess.Popen(["rosmaster", "--core", "-p", str(port)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
  try:
    while not rosgraph.is_master_online():
      time.sleep(0.05)
    yield
  finally:
    master.kill()
    master.wait()


def measure(middleware: str, server: Server, hz: float, camera_hz: float, seconds: float, fault: str) -> dict[str, Any]:
  """Returns one row: a run of some seconds, after which something may break."""
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder, stand_in(middleware, hz, camera_hz) as (arm, say), \
      contextlib.closing(TeachingClient(server.start())) as client:
    told, recording = client.get_server_metadata(), Recording(folder, fps=hz, robot="arm")
    operator = Operator(expert=False)
    operator.auto = True
    setting = Setting("pick", arm.robot.actions, 1 / hz, Replanning(OWN, told["execute_steps"], told["action_horizon"]),
                      prompt=PROMPT, apart=True, stale_s=STALE_S, give_up_s=0.5, auto_s=0.0,
                      limit_ticks=math.inf if fault else seconds * hz)
    loop = ControlLoop(arm, Untaught(client), operator, setting, recorder=recording)
    broken_s: list[float] = []

    def break_it() -> None:
      broken_s.append(time.monotonic())
      server.kill() if fault == SERVER else say("silent wrist" if fault == CAMERA else "stop")

    timer = threading.Timer(seconds, break_it)
    if fault:
      timer.start()
    loop.run(0, episodes=1)
    timer.cancel()
    recording.close()
    (episode,) = loop.episodes
    ((_, kept),) = open_dataset(folder).iterate()
  answers_ms = 1000 * np.asarray(loop.answers_s)
  row = {"middleware": middleware, "hz": hz, "camera_hz": camera_hz, "seconds": seconds, "fault": fault,
         "ticks": loop.pacer.ticks, "executed": episode.ticks, "recorded": len(kept), "missed": loop.pacer.overruns,
         "missed_share": round(loop.pacer.overruns / loop.pacer.ticks, 5),
         "late_ms_max": round(1000 * loop.pacer.late_s, 2), "answer_ms_p50": round(float(np.median(answers_ms)), 2),
         "answer_ms_p99": round(float(np.percentile(answers_ms, 99)), 2),
         "inferences_per_s": round(len(answers_ms) / (loop.pacer.ticks / hz), 2), "holds": loop.holds,
         "held": episode.held, "outcome": episode.outcome, "why": "; ".join(episode.faults),
         "load_average": [round(load, 1), round(os.getloadavg()[0], 1)]}
  return row | ({"hold_ms": round(1000 * (loop.held_s - broken_s[0]), 1)} if fault else {})


def main(_) -> None:
  """Writes a row for each rate and each fault, and prints it."""
  logging.set_verbosity(logging.WARNING)
  with cli.user_errors(COMMAND):
    values = flags.FLAGS
    rows = []
    runs = [(hz, values.seconds, "") for hz in map(float, values.hz)] if values.seconds else []
    runs += [(float(values.hz[-1]), 3.0, fault) for fault in values.faults for _ in range(values.repeats)]
    with tempfile.TemporaryDirectory() as folder, graph(values.middleware):
      make_policy(pathlib.Path(folder) / "policy", float(values.hz[-1]))
      server = Server(pathlib.Path(folder) / "policy")
      for hz, seconds, fault in runs:
        rows.append(measure(values.middleware, server, hz, values.camera_hz, seconds, fault))
        print(rows[-1], flush=True)
        files.write_json(values.out, {"name": "robots", "hardware": provenance.hardware(),
                                      "versions": provenance.versions(), "rows": rows})
      server.kill()


if __name__ == "__main__":
  flags.DEFINE_enum("middleware", "ros1", sorted(DRIVERS), "What carries the messages.")
  flags.DEFINE_list("hz", ["10", "50"], "Rates of the loop; faults are measured at the last one.")
  flags.DEFINE_float("camera_hz", 20.0, "Pictures per second.", lower_bound=1.0)
  flags.DEFINE_float("seconds", 60.0, "Of each rate; 0 measures faults alone.", lower_bound=0.0)
  flags.DEFINE_list("faults", [CAMERA, ROBOT, SERVER], f"What breaks: {', '.join(FAULTS)}.")
  flags.DEFINE_integer("repeats", 3, "Of each fault.", lower_bound=1)
  flags.DEFINE_string("out", None, "JSON file.", required=True)
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
