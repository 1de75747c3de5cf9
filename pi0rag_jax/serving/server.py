"""Serves a policy to robots: `python -m pi0rag_jax.serving.server --policy=pi0_aloha_sim --port=8000`.

With `--learn` robots may teach the memory while they work: see `serving.session`. Browsers see the memory at `/memory`,
Prometheus finds its numbers at `/metrics`.

It speaks openpi's protocol: clients are `pi0rag_jax.serving.client` and openpi's own. `--policy` is whatever
`policy.directory.load` takes, `--memory` steers it. Each connection is a robot of its own: a head's window begins anew
with it. (openpi's `reset` is the client's own affair: nothing of it is sent. A new episode is a new connection.)
"""

import contextlib
import gc
import logging
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from pi0rag_jax import cli
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import LOOPBACK

if TYPE_CHECKING:
  from pi0rag_jax.serving.admission import Admission
  from pi0rag_jax.serving.memory_page import MemoryPage
  from pi0rag_jax.serving.session import Teachable
  from pi0rag_jax.steering.agent import Agent

COMMAND = "pi0rag_jax.serving.server"
TOKEN_VARIABLE = "PI0RAG_JAX_TOKEN"
CAPACITY = 10_000  # records of a memory, where nothing else is said
SWITCH_S = 0.0005
# A picture may come in more pixels than the example's: 1280 x 720, or 640 x 480 in single precision.
PICTURE_BYTES, OTHER_BYTES = 1 << 22, 1 << 18

_terminated = threading.Event()


def main(_) -> None:
  """Serves until interrupted; a user's mistake ends in one line and status 2."""
  absl_logging.set_verbosity(absl_logging.WARNING)  # faiss tells at length which builds of itself it tries
  logging.getLogger("pi0rag_jax.serving").setLevel(logging.INFO)
  signal.signal(signal.SIGTERM, _terminate)
  try:
    with cli.user_errors(COMMAND):
      if bool(flags.FLAGS.config) == bool(flags.FLAGS.policy):
        raise Pi0RagError("give one --policy: a shipped one, a directory, one of openpi's configurations, or a file "
                          "like configs/my_robot.py (--config is an older name for the last two)")
      run(flags.FLAGS)
  except KeyboardInterrupt:
    pass
  print("\nStopped.")


def run(values) -> None:
  """Loads the policy of the flags, compiles it and serves it. A port in use is told before the long part."""
  token = read_token(values.token, values.token_file)
  check_learning(values, token)
  # Late, so that a wrong flag is answered before a model library is loaded.
  from pi0rag_jax.policy import compiling
  from pi0rag_jax.serving.metrics import Metrics
  from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer, reserve

  reserved = reserve(values.host, values.port)
  compiling.keep_programs()
  with open_agent(values, learn=values.learn, capacity=values.capacity) as agent, contextlib.ExitStack() as opened:
    example = example_of(agent, values.default_prompt)
    warm_up(agent, example, all_prompts=values.all_prompts, together=bool(values.batch_window_ms))
    if _terminated.is_set():
      raise KeyboardInterrupt
    admitted = admission(values, token, example)
    served = opened.enter_context(teachable(agent, values)) if values.learn else agent
    pages = [opened.enter_context(memory_page(values, admitted, served))] if values.memory else []
    server = WebsocketPolicyServer(served, metadata=agent.metadata, reserved=reserved, admission=admitted, pages=pages,
                                   metrics=Metrics(agent, admitted), window_s=values.batch_window_ms / 1000)
    if token is None and values.host not in LOOPBACK:
      print(f"Whoever reaches {values.host} is served: --token lets in only those who know it", flush=True)
    # Strangers keep the event loop busy at most; an inference takes turns with it more often than Python's 5 ms.
    sys.setswitchinterval(SWITCH_S)
    # A collection that looks at all of jax's objects takes longer than an inference of a small policy.
    gc.freeze()
    shown = f"; the memory's page is at http://{values.host}:{server.port}/memory" if pages else ""
    server.serve_forever(
      lambda: print(f"Serving at ws://{values.host}:{server.port} (Ctrl-C ends it){shown}", flush=True))


def _terminate(number, frame) -> NoReturn:
  """Handles a service manager's way to say Ctrl-C until the server serves."""
  del number, frame
  _terminated.set()  # the exception is lost where it meets a callback of the garbage collector; jax has one
  raise KeyboardInterrupt


def check_learning(values, token: str | None) -> None:
  """Raises Pi0RagError where a server that learns has no memory, or everybody could teach it."""
  if values.learn and not values.memory:
    raise Pi0RagError("--learn needs a --memory to put into what is learned; the folder is made if there is none")
  if values.learn and getattr(values, "memory_version", None) is not None:
    raise Pi0RagError("--memory_version reads what was, which cannot learn: leave out --learn")
  if values.keep_episodes is not None and not values.learn:
    raise Pi0RagError("--keep_episodes keeps the episodes that teach: it needs --learn")
  if values.learn and token is None and values.host not in LOOPBACK:
    raise Pi0RagError(f"with --learn whoever reaches {values.host} could teach the policy: give a --token, or listen "
                      f"at {LOOPBACK[0]}")


@contextlib.contextmanager
def teachable(agent: "Agent", values) -> Iterator["Teachable"]:
  """Yields the agent as its clients may teach it."""
  from pi0rag_jax.learning.kept import Keeper
  from pi0rag_jax.serving.episode_log import LOG_NAME, EpisodeLog
  from pi0rag_jax.serving.session import Teachable

  with contextlib.ExitStack() as opened:
    log = opened.enter_context(contextlib.closing(EpisodeLog(log_folder(values) / LOG_NAME)))
    if log.open:
      print(f"{len(log.open)} episodes are under way, of robots that this server may hear of again", flush=True)
    keeper = None if values.keep_episodes is None else opened.enter_context(contextlib.closing(Keeper(
      values.keep_episodes, agent.policy, under_way=list(log.open))))
    assert agent.memory is not None, "`check_learning` asks for one"
    yield Teachable(agent, agent.memory, log, keeper)


def log_folder(values) -> pathlib.Path:
  """Returns where the log of episodes under way is: in the memory's folder, or on this machine beside one on a server.
  """
  from pi0rag_jax.memory import address

  asked = getattr(values, "episode_log", None)
  return pathlib.Path(asked).expanduser() if asked else address.beside(address.given(values))


@contextlib.contextmanager
def memory_page(values, admitted: "Admission", served: "Agent | Teachable") -> Iterator["MemoryPage"]:
  """Yields the page of the memory, which goes through whoever learns, if anybody does."""
  from pi0rag_jax.memory import address
  from pi0rag_jax.serving.memory_page import MemoryPage
  from pi0rag_jax.serving.session import Teachable

  changes = served if isinstance(served, Teachable) else None
  with contextlib.closing(MemoryPage(address.given(values), admitted, changes=changes, host=values.host, aside=True,
                                     episodes=values.keep_episodes)) as page:
    yield page


def read_token(token: str | None, file: str | None) -> str | None:
  """Returns the key that clients must know: of the flag, of a file, or of the environment; None for none."""
  if token is not None and file is not None:
    raise Pi0RagError("give either --token or --token_file")
  if file is not None:
    try:
      token = pathlib.Path(file).expanduser().read_text(encoding="utf8").strip()
    except (OSError, UnicodeDecodeError) as error:
      raise Pi0RagError(f"cannot read --token_file {file}: {error}") from error
  token = os.environ.get(TOKEN_VARIABLE) if token is None else token
  if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
    raise Pi0RagError("the token is empty, or has other characters than a header may have: use letters and digits")
  return token


@contextlib.contextmanager
def open_agent(values, *, learn: bool = False, capacity: int = CAPACITY) -> Iterator["Agent"]:
  """Yields the policy that the flags name, with its memory, which is read as it is now, or learns."""
  from pi0rag_jax.memory import address
  from pi0rag_jax.memory.memory import Memory
  from pi0rag_jax.policy import directory
  from pi0rag_jax.policy.spec import NEW, ZERO
  from pi0rag_jax.steering.agent import Agent, start_with

  began = time.perf_counter()
  name = values.policy or getattr(values, "config", None)
  spec, _ = directory.describe(name, values.checkpoint)
  place = address.given(values)
  start = start_with(place, spec, values.start)
  if learn and not start and spec.start == NEW:
    start = ZERO  # a policy of new draws has no chunk of its own that a correction could be compared with
  policy = directory.load(
    name, checkpoint=values.checkpoint, start=start,
    denoising_steps=values.denoising_steps, weights=values.weights, default_prompt=values.default_prompt,
    key_name=values.key_name)
  with contextlib.ExitStack() as opened:
    memory = None if place is None else opened.enter_context(Memory.open(
      place, **policy.memory_header(), create=learn, read_only=not learn,
      capacity=capacity))
    agent = Agent(policy, memory, real_time=values.real_time)
    opened.callback(agent.close)
    print(f"Loaded {name} in {time.perf_counter() - began:.1f} s", flush=True)
    yield agent


def example_of(agent: "Agent", default_prompt: str | None) -> dict | None:
  """Returns an observation to compile with: the robot's example, with a prompt of the length to expect."""
  if agent.policy.robot.example is None:
    return None
  prompt = default_prompt or agent.policy.spec.data.default_prompt
  return {**agent.policy.robot.example(), **({"prompt": prompt} if prompt else {})}


def warm_up(agent: "Agent", example: dict | None, *, all_prompts: bool, together: bool = False) -> None:
  """Compiles the policy, so that no client waits for that.

  Args:
    together: for several clients at once too, of prompts about as long as the example's.
  """
  if example is None:
    print("Not compiled yet: the first request will wait for that. A configuration file with example_observation() "
          "is compiled before it is served", flush=True)
    return
  from pi0rag_jax.policy import compiling
  from pi0rag_jax.robots import transforms

  began = time.perf_counter()
  with compiling.counted() as programs:
    agent.compile(example, all_prompts=all_prompts)
    if together:
      from pi0rag_jax.serving.batching import SIZES

      with transforms.made_up():
        for size in SIZES:
          agent.decide(agent.policy.start(size), [example] * size)
  compiled = time.perf_counter()
  with transforms.made_up():
    agent.session().decide(agent.policy.start(1), [example])
  infer_ms = (time.perf_counter() - compiled) * 1000
  print(f"Compiled in {compiled - began:.1f} s: {programs.needed} programs, {programs.found} of them found on disk; an "
        f"inference takes {infer_ms:.0f} ms", flush=True)


def admission(values, token: str | None, example: Mapping | None) -> "Admission":
  """Returns whom the flags let in; a message may be as large as an observation like the example can be."""
  from pi0rag_jax.serving.admission import Admission

  if values.max_message_mb is not None:
    size = values.max_message_mb << 20
  else:
    size = Admission.message_bytes if example is None else _needed_bytes(example) + OTHER_BYTES
  return Admission(token=token, origins=tuple(values.allow_origin), connections=values.max_clients,
                   idle_s=values.idle_s, message_bytes=size)


def _needed_bytes(node) -> int:
  """Returns how large a part of an observation can be."""
  if isinstance(node, Mapping):
    return sum(_needed_bytes(value) for value in node.values())
  size = getattr(node, "nbytes", 0)
  return max(PICTURE_BYTES, 4 * size) if getattr(node, "ndim", 0) >= 3 else 8 * size


if __name__ == "__main__":
  flags.DEFINE_string("policy", None, "A shipped policy, a directory that train.launch made, an openpi checkpoint "
                      "whose folder has a configuration's name, one of openpi's configuration names, or a Python file "
                      "with get_config() as configs/my_robot.py; directories may be at gs://.")
  flags.DEFINE_string("config", None, "Older name of --policy.")
  flags.DEFINE_string("checkpoint", None, "Checkpoint of a configuration: a directory or a gs:// address; openpi's "
                      "release if left out.")
  cli.define_memory("Memory that steers the policy; a folder is read as it is at the start unless --learn is given, "
                    "one on a server is followed.")
  flags.DEFINE_string("episode_log", None, "Folder of the log of episodes under way; by default the memory's, or one "
                      "in ~/.local/state for a memory on a server. Servers on one machine need one each.")
  flags.DEFINE_bool("learn", False, "Let clients teach the memory, which then learns from every episode that they tell "
                    "of; the folder is made if there is none. Asks for a --token unless only this machine is let in.")
  flags.DEFINE_integer("capacity", CAPACITY, "Records that the memory may hold; with --learn old ones of little use "
                       "give way.", lower_bound=1)
  flags.DEFINE_string("keep_episodes", None, "Folder in which the episodes that teach are kept with their pictures, "
                      "for `pi0rag_jax.memory export --format=lerobot` and `migrate`.")
  flags.DEFINE_string("key_name", "", "Key statistics of the policy, as train.calibrate --name wrote them; its own by "
                      "default.")
  flags.DEFINE_string("start", None, "Where the flow starts: zero, draw:SEED or new. By default as the policy says; "
                      "where that is new, as openpi's, as the memory says.")
  flags.DEFINE_string("default_prompt", None, "Prompt of observations that have none.")
  flags.DEFINE_integer("denoising_steps", None, "Steps of the flow, instead of the policy's own; docs/speed.md says "
                       "what fewer cost.", lower_bound=1)
  flags.DEFINE_string("weights", None, "int8, w8a8 or fp8: matrices take half the memory of bfloat16; bfloat16: half "
                      "of float32's. docs/speed.md says what that costs.")
  flags.DEFINE_bool("real_time", False, "Chunks go on from the one before, for robots that execute it until the new "
                    "one is there (real-time chunking). How long that takes clients say (serving.chunk_broker), or "
                    "the server's clock.")
  flags.DEFINE_float("batch_window_ms", 0.0, "How long a client may wait for others, for whom it is decided at once; 0 "
                     "decides for one at a time.", lower_bound=0.0, upper_bound=1000.0)
  flags.DEFINE_bool("all_prompts", False, "Compile for prompts of every length, not only of about --default_prompt's: "
                    "no request waits for that, the start takes longer.")
  flags.DEFINE_string("host", "127.0.0.1", "Address to listen at: by default only this machine is let in. 0.0.0.0 is "
                      "all of the machine's addresses, where openpi's server listens.")
  flags.DEFINE_integer("port", 8000, "TCP port; 0 takes a free one.", lower_bound=0, upper_bound=65535)
  flags.DEFINE_string("token", None, "Key that clients must send, as openpi's do with api_key=TOKEN. Others can see a "
                      f"command line: --token_file and the variable {TOKEN_VARIABLE} hide it.")
  flags.DEFINE_string("token_file", None, "File with the key, instead of --token.")
  flags.DEFINE_list("allow_origin", [], "Web pages whose browsers may connect, as https://example.com; * is any.")
  flags.DEFINE_integer("max_clients", 64, "Connections at a time.", lower_bound=1)
  flags.DEFINE_integer("max_message_mb", None, "Largest request, MB; by default what the policy's observation needs.",
                       lower_bound=1)
  flags.DEFINE_float("idle_s", 1800.0, "Seconds after which a client that asks nothing is let go.", lower_bound=1.0)
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
