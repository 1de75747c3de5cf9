"""From memory to weights and back: `python -m eval.consolidation --out=DIR`.

A small policy works in a world that it was not trained in; a supervisor takes over, over the messages of a server that
learns and keeps what was seen. Then adapters learn what the memory says, the memory is moved to the new weights, and
four agents meet the same unseen seeds: the policy, the policy with its memory, the new weights alone, and the new
weights with what is left of the memory. Interrupted, the same command goes on where it was; `DIR/consolidation.json`
has the figures.
"""

import collections
import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app, flags, logging

from eval import provenance
from pi0rag_jax import cli, files, statistics
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.kept import Keeper
from pi0rag_jax.learning.supervisor import SupervisorConfig, Watch
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.tokens import token_of
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.serving.episode_log import LOG_NAME, EpisodeLog
from pi0rag_jax.serving.session import Teachable, TeachingSession
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Job, Step

COMMAND = "eval.consolidation"
RESULT = "consolidation.json"
WORLD = "panda"
FIRST_TAUGHT, FIRST_EVALUATED, FIRST_TUNED = 100_000, 200_000, 300_000


def teach(folder: pathlib.Path, values) -> int:
  """Returns in how many episodes the supervisor took over; those that were taught before are left out."""
  policy = directory.load(values.policy)
  world = registry.make_world(rollout.world_config(policy.spec, values.task, values.condition, world=WORLD))
  helped = 0
  with contextlib.ExitStack() as opened:
    memory = opened.enter_context(Memory.open(folder / "memory", **policy.memory_header()))
    log = opened.enter_context(contextlib.closing(EpisodeLog(folder / "memory" / LOG_NAME)))
    agent = Agent(policy, memory)
    opened.callback(agent.close)
    keeper = opened.enter_context(contextlib.closing(Keeper(folder / "kept", policy, under_way=list(log.open))))
    robot = Teachable(agent, memory, log, keeper).session()
    for seed in range(FIRST_TAUGHT, FIRST_TAUGHT + values.episodes):
      if token_of(str(seed)) not in memory.tokens():
        helped += episode(robot, policy, world, seed, values)
  return helped


def episode(robot: TeachingSession, policy, world, seed: int, values) -> bool:
  """Returns whether the supervisor took over in an episode, as a robot's program would let it."""
  world.begin(seed)
  tick_s = 1 / policy.spec.control_hz
  watch = Watch(SupervisorConfig(), policy.space, tick_s, seed,
                time_limit_s=registry.family(WORLD).time_limit(values.task) * tick_s)
  said: dict[str, Any] = {"id": str(seed), "task": values.task, "robot": "simulation"}
  decisions, ticks, helped = 0, 0, False
  entry, nothing = {**said, "decision": 0}, np.zeros(0)
  while True:
    chunk_TA = robot.infer({**world.observe(), "episode": entry})["actions"].astype(np.float32)
    plan_TA = np.asarray(world.plan(policy.spec.horizon), np.float32)
    by_expert = watch(Step(ticks, None, nothing, chunk_TA, chunk_TA, 0, nothing, nothing), plan_TA)
    executed_NA = (plan_TA if by_expert else chunk_TA)[: policy.spec.execute_steps]
    progress = world.advance(executed_NA)
    decisions, helped = decisions + 1, helped or by_expert
    entry = {**said, "decision": decisions, "done": executed_NA[: progress.ticks - ticks],
             "by": "expert" if by_expert else "policy"}
    ticks = progress.ticks
    if progress.done:
      break
  kind = "" if progress.success else "timeout"
  robot.infer({"episode": {**entry, "end": {"success": bool(progress.success), "failure_kind": kind}}})
  return helped


def evaluate(policy_name: str, memory_dir: pathlib.Path | None, values) -> list[bool]:
  """Returns which of the unseen seeds succeed."""
  policy = directory.load(policy_name)
  first = FIRST_TUNED if values.tuning else FIRST_EVALUATED
  with contextlib.ExitStack() as opened:
    memory = None if memory_dir is None else opened.enter_context(Memory.load(memory_dir))
    agent = Agent(policy, memory)
    opened.callback(agent.close)
    config = rollout.world_config(policy.spec, values.task, values.condition, world=WORLD)
    env = opened.enter_context(BatchEnv(config, slots=values.slots, processes=values.processes))
    jobs = collections.deque(Job(first + index, index) for index in range(values.evaluated))
    ended = {trace.job.index: trace.outcome for trace in rollout.run(env, agent, jobs)}
  if crashed := [index for index, outcome in ended.items() if outcome == "crashed"]:
    raise Pi0RagError(f"{len(crashed)} episodes crashed, the first has seed {first + crashed[0]}")
  return [ended[index] == "success" for index in range(values.evaluated)]


def run(values) -> dict[str, Any]:
  """Returns the figures of the whole way; steps whose results are in the folder are left out."""
  folder = pathlib.Path(values.out).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  steps = _Steps(folder)
  steps("helped", lambda: teach(folder, values))
  memory, kept, policy = folder / "memory", folder / "kept", folder / "run" / "policy"
  if not (folder / "taught").exists():
    _command("pi0rag_jax.memory", "export", memory, "--format=lerobot", f"--kept={kept}", f"--out={folder / 'taught'}",
             "--pictures=images")
  steps("training_s", lambda: _trained(folder, values))
  left = folder / "memory_left"
  steps("migration", lambda: _command("pi0rag_jax.memory", "migrate", memory, f"--policy={policy}", f"--kept={kept}",
                                      f"--out={left}", f"--below={values.below}"))
  steps("records", lambda: [_count(memory), _count(left)])
  agents = {"policy": (values.policy, None), "memory": (values.policy, memory), "weights": (str(policy), None),
            "weights and what is left": (str(policy), left)}
  for name, (which, where) in agents.items():
    steps(name, lambda which=which, where=where: evaluate(which, where, values))
  return steps.values | {"summary": summary({name: steps.values[name] for name in agents})}


def summary(succeeded: Mapping[str, list[bool]]) -> dict[str, Any]:
  """Returns each agent's success rate, and how it compares with the memory's on the same seeds."""
  found = {}
  for name, each in succeeded.items():
    rate = statistics.success_rate(each)
    pair = statistics.paired_comparison(succeeded["memory"], each, np.random.default_rng(0))
    found[name] = {"n": len(each), "successes": sum(each), "rate": rate.value, "interval_95": statistics.bounds(rate),
                   "against_memory": statistics.pair_to_json(pair)}
  return found


class _Steps:
  """Results by name in a file, each worked out once."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / "steps.json"
    self.values: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

  def __call__(self, name: str, work) -> None:
    if name not in self.values:
      self.values[name] = work()
      files.write_json(self._path, self.values)
      print(f"{name}: {str(self.values[name])[:200]}", flush=True)


def _trained(folder: pathlib.Path, values) -> float:
  began = time.perf_counter()
  _command("train.launch", f"--config={values.config}", f"--workdir={folder / 'run'}",
           f"--config.data=({{'path': '{folder / 'taught'}'}},)", *values.train)
  return round(time.perf_counter() - began, 1)


def _count(memory_dir: pathlib.Path) -> dict[str, int]:
  with Memory.load(memory_dir) as memory:
    return memory.counts()


def _command(module: str, *arguments) -> str:
  """Returns what a command of ours prints. Errors: Pi0RagError with what it says where it fails."""
  ended = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True,
                         check=False)
  if ended.returncode:
    raise Pi0RagError(f"{module} {arguments[0]} failed: {ended.stderr.strip()[-400:]}")
  return ended.stdout.strip()


def main(_) -> None:
  """Goes the whole way and prints what came of it."""
  logging.set_verbosity(logging.WARNING)
  compiling.keep_programs()
  with cli.user_errors(COMMAND):
    values = flags.FLAGS
    found = run(values)
    chosen = {name: getattr(values, name) for name in ("policy", "task", "condition", "episodes", "evaluated", "below",
                                                       "train", "tuning")}
    told = {"settings": chosen, "hardware": provenance.hardware(), "versions": provenance.versions()}
    files.write_json(pathlib.Path(values.out).expanduser() / RESULT, found | told)
  print(found["migration"])
  for name, cell in found["summary"].items():
    low, high = cell["interval_95"]
    print(f"{name:25} {cell['successes']:4} of {cell['n']} ({100 * low:.0f} to {100 * high:.0f} %)")


if __name__ == "__main__":
  flags.DEFINE_string("policy", "panda_small", "A shipped policy or a policy's directory.")
  flags.DEFINE_string("task", "pick_and_place", "Name of the task.")
  flags.DEFINE_string("condition", "camera_shift", "Name of the condition.")
  flags.DEFINE_integer("episodes", 100, "Episodes that teach, with seeds from 100,000 on.", lower_bound=1)
  flags.DEFINE_string("config", "configs/panda_consolidate.py", "Of the training.")
  flags.DEFINE_multi_string("train", [], "Another entry of it, as --config.steps=500; may be given several times.")
  flags.DEFINE_float("below", 0.5, "See `migrate`.", lower_bound=0.0)
  flags.DEFINE_integer("evaluated", 100, "Unseen seeds, the same for all, from 200,000 on.", lower_bound=1)
  flags.DEFINE_bool("tuning", False, "Take seeds from 300,000 on instead, for whoever chooses settings.")
  flags.DEFINE_integer("slots", 8, "Environments that share one policy call.")
  flags.DEFINE_integer("processes", 1, "Worker processes.")
  flags.DEFINE_string("out", None, "Folder of everything.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
