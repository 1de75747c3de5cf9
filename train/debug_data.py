"""A small synthetic robot data set that can be learned, for configurations that show training in seconds.

The path "debug" in a configuration stands for it: it is made, once, below the run's workdir. A tool follows a bright
square that moves in the front picture; the square in the wrist picture grows as the tool comes down, and the gripper
closes while it is large. How high the tool is held depends on the prompt. "debug_seven_joints" has DROID's numbers of
actions; "debug_two_arms" has ALOHA's: both arms, of six joints and a gripper, do the same.
"""

import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from pi0rag_jax.data.recorder import EpisodeWriter
from pi0rag_jax.data.validation import Schema

# As a data set's path: how many numbers the state has, and the action.
NAMES = {"debug": (8, 7), "debug_seven_joints": (8, 8), "debug_two_arms": (14, 14)}
EPISODES, FRAMES, PIXELS, FPS = 12, 40, 32, 20.0
CAMERAS = ("front", "wrist")
# What the prompts ask for: the height at which the tool is held.
HEIGHTS = {"hold the tool low": -0.6, "hold the tool in the middle": 0.0, "hold the tool high": 0.6}
SQUARE_PX = 8  # of the front picture
SMALLEST_PX, LARGEST_PX = 4, 28  # of the wrist picture
DARK, BRIGHT = 40, 220
PICTURE_NOISE = 8  # grey levels to either side
ACTION_NOISE = 0.02
GAIN = 0.15  # of the action, per frame
_CLOSED, _OPEN = 0.0, 1.0


def resolve(path: str | Path, workdir: str | Path) -> Path:
  """Returns the path of a data set; one of NAMES is made below the workdir where it is missing."""
  name = str(path)
  return make(Path(workdir) / f"{name}_data", name) if name in NAMES else Path(path)


def make(folder: str | Path, name: str = "debug") -> Path:
  """Returns the folder after writing the data set there, all or nothing; one that is there is left as it is."""
  folder = Path(folder)
  if folder.exists():
    return folder
  draft = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
  schema = Schema(dict.fromkeys(CAMERAS, (PIXELS, PIXELS)), *NAMES[name], FPS, name=name)
  try:
    writer = EpisodeWriter(draft, schema)
    for number in range(EPISODES):
      write_episode(writer, number)
    os.rename(draft, folder)
  except OSError:
    if not folder.exists():  # else another process was faster, with the same content
      raise
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return folder


def write_episode(writer: EpisodeWriter, number: int) -> Path:
  """Returns the file of an episode, which its number decides."""
  rng = np.random.default_rng(number)
  prompt, height = list(HEIGHTS.items())[number % len(HEIGHTS)]
  phase_2, turns_2 = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.5, 1.5, 2)
  joints_4 = rng.uniform(-0.5, 0.5, 4)
  tool_3, opening = rng.uniform(-0.8, 0.8, 3), _OPEN
  for frame in range(FRAMES):
    share = frame / (FRAMES - 1)
    square_2 = 0.8 * np.sin(phase_2 + 2 * np.pi * turns_2 * share)
    nearness = 0.5 - 0.5 * np.cos(2 * np.pi * (share + phase_2[0]))  # 0 is far, 1 is near
    images = {"front": front_picture(square_2, rng), "wrist": wrist_picture(nearness, rng)}
    state_P = np.concatenate([tool_3, joints_4, [opening]])
    motion_6 = np.concatenate([square_2 - tool_3[:2], [height - tool_3[2]], -joints_4[:3]])
    motion_6 += rng.normal(0, ACTION_NOISE, 6)
    gripper = _CLOSED if nearness > 0.5 else _OPEN
    action_A = np.array([*motion_6, gripper])
    if writer.schema.action_dim == 8:
      action_A = np.insert(action_A, 6, -joints_4[3])
    if writer.schema.action_dim == 14:
      state_P, action_A = np.tile(np.delete(state_P, 6), 2), np.tile(action_A, 2)
    writer.add_frame(images=images, state=state_P, action=action_A, time_s=frame / FPS)
    tool_3 = tool_3 + GAIN * motion_6[:3]
    joints_4[:3] += GAIN * motion_6[3:]
    opening += 0.5 * (gripper - opening)
  return writer.save(prompt=prompt, success=True)


def front_picture(square_2, rng: np.random.Generator) -> np.ndarray:
  """Returns uint8[H, W, 3] with the square at (x, y), each in [-1, 1] of the range where all of it is seen."""
  first_2 = np.round((np.asarray(square_2) + 1) / 2 * (PIXELS - SQUARE_PX)).astype(int)
  return _picture(first_2, SQUARE_PX, rng)


def wrist_picture(nearness: float, rng: np.random.Generator) -> np.ndarray:
  """Returns uint8[H, W, 3] with a square in the middle that is the larger the nearer (0 to 1) it is."""
  side = round(SMALLEST_PX + nearness * (LARGEST_PX - SMALLEST_PX))
  return _picture(np.full(2, (PIXELS - side) // 2), side, rng)


def _picture(first_2, side: int, rng: np.random.Generator) -> np.ndarray:
  picture = DARK + rng.integers(-PICTURE_NOISE, PICTURE_NOISE + 1, (PIXELS, PIXELS, 3))
  x, y = (int(i) for i in first_2)
  picture[y : y + side, x : x + side] += BRIGHT - DARK
  return picture.astype(np.uint8)
