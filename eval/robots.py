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
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from eval import provenance
from pi0rag_jax import cli, files
from pi0rag_jax.control import joint_arm, ros1, ros2, ros_stand_in
from pi0rag_jax.control.loop import ControlLoop, Setting
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.control.policies import Untaught
from pi0rag_jax.control.recording import Recording
from pi0rag_jax.control.replanning import OWN, Replanning
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
STALE_S = 0.09
FAULTS = ("killed server", "silent camera", "stopped robot")


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


class Stage:
  """What a run needs beside the loop; `say` tells the stand-in something."""

  def __init__(self, middleware: str, policy: pathlib.Path, hz: float, camera_hz: float, opened: contextlib.ExitStack):
    self.server = self._start(opened, "pi0rag_jax.serving.server", f"--policy={policy}", f"--port={_free_port()}")
    self.uri = next(line.split()[2] for line in self._lines(self.server) if line.startswith("Serving at"))
    self.robot = self._start(opened, ros_stand_in.__name__, middleware, str(hz), str(camera_hz), "224")
    self.arm: Any = opened.enter_context(contextlib.closing(
      DRIVERS[middleware].driver({**ros_stand_in.OPTIONS, "leader": "", "hz": hz})))
    text = joint_arm.messages().String
    if middleware == "ros1":
      publisher = ros1.import_rospy().Publisher("/stand_in", text, queue_size=10)
    else:
      publisher = self.arm.node.create_publisher(text, "/stand_in", 10)
    self.say = lambda said: publisher.publish(text(data=said))

  def _start(self, opened: contextlib.ExitStack, module: str, *given: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-m", module, *given], stdout=subprocess.PIPE, text=True)
    opened.callback(process.wait)
    opened.callback(process.kill)
    return process

  def _lines(self, process: subprocess.Popen) -> Iterator[str]:
    assert process.stdout is not None, "it is a pipe"
    yield from process.stdout
    raise RuntimeError("the server has ended")


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


def measure(middleware: str, hz: float, camera_hz: float, seconds: float, fault: str) -> dict[str, Any]:
  """Returns one row: a run of some seconds, after which something may break."""
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
    place = pathlib.Path(folder)
    make_policy(place / "policy", hz)
    stage = Stage(middleware, place / "policy", hz, camera_hz, opened)
    client = opened.enter_context(contextlib.closing(TeachingClient(stage.uri)))
    told = client.get_server_metadata()
    recording = Recording(place / "recording", fps=hz, robot="arm", exact=False)
    operator = Operator(expert=False)
    operator.auto = True
    assert stage.arm.robot.actions is not None, "arms declare theirs"
    setting = Setting("pick", stage.arm.robot.actions, 1 / hz, Replanning(OWN, told["execute_steps"],
                                                                        told["action_horizon"]),
                      prompt=PROMPT, apart=True, stale_s=STALE_S, give_up_s=0.5, auto_s=0.0,
                      limit_ticks=math.inf if fault else seconds * hz)
    loop = ControlLoop(stage.arm, Untaught(client), operator, setting, recorder=recording)
    broken_s: list[float] = []

    def break_it() -> None:
      broken_s.append(time.monotonic())
      if fault == "killed server":
        stage.server.kill()
      else:
        stage.say("silent wrist" if fault == "silent camera" else "stop")

    timer = threading.Timer(seconds, break_it)
    if fault:
      timer.start()
    began = os.getloadavg()[0]
    loop.run(0, episodes=1)
    timer.cancel()
    recording.close()
    (episode,) = loop.episodes
    ((_, kept),) = open_dataset(place / "recording").iterate()
  answers_ms = 1000 * np.asarray(loop.answers_s)
  row = {"middleware": middleware, "hz": hz, "camera_hz": camera_hz, "seconds": seconds, "fault": fault,
         "ticks": loop.pacer.ticks, "executed": episode.ticks, "recorded": len(kept), "missed": loop.pacer.overruns,
         "missed_share": round(loop.pacer.overruns / loop.pacer.ticks, 5),
         "late_ms_max": round(1000 * loop.pacer.late_s, 2), "answer_ms_p50": round(float(np.median(answers_ms)), 2),
         "answer_ms_p99": round(float(np.percentile(answers_ms, 99)), 2),
         "inferences_per_s": round(len(answers_ms) / (loop.pacer.ticks / hz), 2), "holds": loop.holds,
         "held": episode.held, "outcome": episode.outcome, "why": "; ".join(episode.faults), "load_before": began}
  return row | ({"hold_ms": round(1000 * (loop.held_s - broken_s[0]), 1)} if fault else {})


def main(_) -> None:
  """Writes a row for each rate and each fault, and prints it."""
  logging.set_verbosity(logging.WARNING)
  with cli.user_errors(COMMAND):
    values = flags.FLAGS
    rows = []
    runs = [(hz, values.seconds, "") for hz in map(float, values.hz)] if values.seconds else []
    runs += [(float(values.hz[-1]), 3.0, fault) for fault in values.faults for _ in range(values.repeats)]
    with graph(values.middleware):
      for hz, seconds, fault in runs:
        rows.append(measure(values.middleware, hz, values.camera_hz, seconds, fault))
        print(rows[-1], flush=True)
        files.write_json(values.out, {"name": "robots", "hardware": provenance.hardware(),
                                      "versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
  flags.DEFINE_enum("middleware", "ros1", sorted(DRIVERS), "What carries the messages.")
  flags.DEFINE_list("hz", ["10", "50"], "Rates of the loop; faults are measured at the last one.")
  flags.DEFINE_float("camera_hz", 20.0, "Pictures per second.", lower_bound=1.0)
  flags.DEFINE_float("seconds", 60.0, "Of each rate; 0 measures faults alone.", lower_bound=0.0)
  flags.DEFINE_list("faults", list(FAULTS), "What breaks.")
  flags.DEFINE_integer("repeats", 3, "Of each fault.", lower_bound=1)
  flags.DEFINE_string("out", None, "JSON file.", required=True)
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
