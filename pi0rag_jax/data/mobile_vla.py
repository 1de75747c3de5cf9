"""The Mobile-VLA data set: a mobile manipulator that drives, handles things, or does both.

The state is the base's pose in the map (x, y in m, yaw in rad), the arm's joints (rad) and the gripper's opening (0
closed, 1 open); the action is the base's velocity (forward in m/s, turning in rad/s), the arm's commanded joints and
the gripper's command.
"""

from collections.abc import Mapping

from pi0rag_jax.data.validation import Schema

SHARES = {"navigation": 0.4, "manipulation": 0.3, "combined": 0.3}
EPISODES = 1000
CAMERAS = {"front": (224, 224), "wrist": (224, 224)}
BASE_POSE_DIM, BASE_VELOCITY_DIM, GRIPPER_DIM = 3, 2, 1


def mobile_vla_schema(
  *, arm_joints: int = 7, fps: float = 10.0, cameras: Mapping[str, tuple[int, int]] = CAMERAS, episodes: int = EPISODES
) -> Schema:
  """Returns the schema, with its plan of 400 navigation, 300 manipulation and 300 combined episodes.

  Args:
    arm_joints: of the arm.
    fps: frames per second.
    cameras: name -> (height, width), px.
    episodes: in all.
  """
  return Schema(
    name="mobile_vla", cameras=dict(cameras), fps=fps, categories=SHARES, planned_episodes=episodes,
    state_dim=BASE_POSE_DIM + arm_joints + GRIPPER_DIM, action_dim=BASE_VELOCITY_DIM + arm_joints + GRIPPER_DIM,
  )
