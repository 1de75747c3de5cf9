"""The main job, small: a shipped pi0 policy meets conditions it was not trained on, and learns from its failures."""

from typing import Any

from ml_collections import ConfigDict

# Seeds of demonstrations are below 100,000 (pi0rag_jax.sim.collect), so the three uses never meet.
STREAM_SEED = 100_000
EVALUATION_SEED = 200_000


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=50`."""
  config: Any = ConfigDict()
  config.policy = "panda_tasks"  # a shipped policy, the directory of one's own, or an openpi configuration's name
  config.checkpoint = ""  # of an openpi configuration; '' is its release
  config.start = ""  # where the flow starts; '' is the policy's own. A memory needs 'zero', or 'draw:SEED'
  config.execute_steps = 0  # actions of a chunk before the next decision; 0: the policy's own
  # How long a robot waits for a chunk, and executes the one before; with `real_time` the new one goes on from that.
  config.loop = ConfigDict({"delay_ms": 0.0, "real_time": False})
  config.denoising_steps = 0  # of the flow; 0: the policy's own
  config.weights = ""  # how matrices are stored: 'int8', 'w8a8', 'fp8' or 'bfloat16'; '' as they are
  config.world = ConfigDict({"id": "panda"})  # or {"id": "gym_aloha/AlohaTransferCube-v0", "robot": "aloha"}
  config.task = "pick_and_place"
  # Of the task; 'task/condition' names another task's.
  config.conditions = ("camera_shift_double", "insertion/actuator_delay")

  # While the memory learns.
  config.stream = ConfigDict()
  config.stream.first_seed, config.stream.episodes = STREAM_SEED, 150
  config.stream.checkpoints = ()  # episodes after which the memory is evaluated, besides all of them
  config.stream.corrected_max = 40  # episodes in which the expert may take over
  config.stream.acting = "memory"  # or 'base', the policy alone: then the stream is the same whatever steers later
  config.stream.steering = "residual"  # while the memory acts
  # More of how it learns (pi0rag_jax.learning.online.OnlineConfig).
  config.stream.learning = ConfigDict()
  # A supervisor takes over while the episode runs, as a person would. Or 'rewind': a failure is taken back in time,
  # which only a simulator can do.
  config.stream.learning.taught_by = "takeover"
  config.stream.learning.supervisor = ConfigDict({
      "cost": 1.5, "delay_s": 1.0, "hold_s": 0.0, "look_s": 0.0, "patience": 0.7, "misses": 0.0, "false_alarms": 0.0})
  # When the supervisor watches: 'always', 'asked' (when the policy asks for it) or 'random', which is the placebo.
  config.stream.learning.asking = ConfigDict({"when": "always", "false_asks": 0.2, "random_share": 0.02})
  config.stream.learning.retries = 0  # times that the policy tries again by itself, before the expert is asked
  # With 'rewind', where a failure is taken back to: 'privileged' compares with the expert, 'detected' needs sensors
  # alone.
  config.stream.learning.rewind = ConfigDict({"rule": "privileged"})
  # Decisions before a take-over that learn the way to its path; what failed is kept for other ways of steering.
  config.stream.learning.corrections = ConfigDict({"path_before": 3, "labelled": 0, "failed_chunks": 0})
  # The promise that at most so much is broken of what works without the memory (docs/guarantee.md), in each stream or
  # in all together; 1 promises nothing.
  config.stream.learning.trust = ConfigDict({
      "broken_max": 1.0, "forgiven": 0, "share": 0.2, "shared": False, "silenced_at": 20.0})

  # The memory, frozen, against the policies without it, on the same seeds.
  config.evaluation = ConfigDict()
  config.evaluation.first_seed = EVALUATION_SEED
  config.evaluation.episodes = 100
  config.evaluation.latency_episodes = 2  # of each policy, run one robot at a time to time its decisions
  config.evaluation.clips = 3  # seeds shown with and without memory
  # Where the flow starts ('zero', 'new' for a draw at each decision; without it the policy's own start), how many
  # actions of a chunk are executed, and the steering preset; without one it is the policy alone. Where a memory helps,
  # another pace may help too: the best policy without one is what it has to be better than.
  config.evaluation.policies = (
      {"name": "base", "start": "new"},
      {"name": "base_z0", "start": "zero"},
      {"name": "base_z0_4", "start": "zero", "execute_steps": 4},
      {"name": "base_z0_16", "start": "zero", "execute_steps": 16},
      {"name": "textbook", "steering": "textbook"},
      {"name": "memory", "steering": "residual"},
  )

  # Conditions that are looked at more closely; see configs/learning.py.
  config.focus = ConfigDict()
  config.focus.conditions = ()
  config.focus.streams = 1  # memories that learn there, each from other episodes
  config.focus.episodes = 0  # of the first of these streams, if more than stream.episodes
  config.focus.policies = ()  # evaluated besides with the memory after stream.episodes
  config.focus.evaluation_episodes = 0  # of the evaluation's seeds, on which all this is evaluated; 0: all of them
  config.focus.return_episodes = 0  # with which the memory goes on in the nominal condition, to forget

  # What all conditions taught, as one memory.
  config.pool = ConfigDict()
  config.pool.conditions = ()  # in which it is evaluated; they may be others than those of the streams

  config.memory = ConfigDict()
  config.memory.capacity = 10_000  # records
  config.memory.key_name = ""  # which of the policy's key statistics (train.calibrate --name); '' its own
  config.memory.feeding = "overlap"
  # A search that takes longer is given up; 0 waits, since an evaluation must not depend on the load.
  config.memory.deadline_ms = 0.0

  # Environments that share one policy call, and the processes that simulate them.
  config.slots, config.processes = 24, 2
  return config.lock()
