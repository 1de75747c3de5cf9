"""The main job, small: a shipped pi0 policy meets conditions it was not trained on, and learns from its failures."""

from ml_collections import ConfigDict

# Seeds of demonstrations are below 100,000 (pi0rag_jax.sim.collect), so the three uses never meet.
STREAM_SEED = 100_000
EVALUATION_SEED = 200_000


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=50`."""
  config = ConfigDict()
  config.policy = "panda_small"  # a shipped policy, or the directory of one's own
  config.task = "pick_and_place"
  config.conditions = ("camera_shift", "wrist_camera_turn")
  config.renderer = "raycast"  # must be the one that the policy was trained with

  # While the memory learns.
  config.stream = ConfigDict()
  config.stream.first_seed = STREAM_SEED
  config.stream.episodes = 300
  config.stream.corrected_max = 40  # episodes in which the expert may take over
  config.stream.steering = "residual"

  # The memory, frozen, against the policies without it, on the same seeds.
  config.evaluation = ConfigDict()
  config.evaluation.first_seed = EVALUATION_SEED
  config.evaluation.episodes = 100
  config.evaluation.latency_episodes = 2  # of each policy, run one robot at a time to time its decisions
  config.evaluation.clips = 3  # seeds shown with and without memory
  # Name, start of the flow (z = 0 or a Gaussian draw), steering ('' is the policy without memory).
  config.evaluation.policies = (
      ("base", "gaussian", ""),
      ("base_z0", "zero", ""),
      ("textbook", "zero", "textbook"),
      ("memory", "zero", "residual"),
  )

  config.memory = ConfigDict()
  config.memory.capacity = 10_000  # records
  config.memory.feeding = "overlap"
  # A search that takes longer is given up; 0 waits, since an evaluation must not depend on the load.
  config.memory.deadline_ms = 0.0

  # Environments that share one policy call, and the processes that simulate them.
  config.slots = 24
  config.processes = 2
  return config.lock()
