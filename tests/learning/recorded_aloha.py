"""Episodes as ALOHA's recorder writes them, with a person's take-over in each."""

import h5py
import numpy as np


def write_aloha(folder, episodes=2, frames=30):
  """Writes episodes as ALOHA's recorder does, a person's take-over marked; returns the last one's observations."""
  folder.mkdir(parents=True)
  for episode in range(episodes):
    rng = np.random.default_rng(episode)
    with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
      qpos = file["observations/qpos"] = rng.uniform(-1, 1, (frames, 14)).astype(np.float32)
      file["action"] = rng.uniform(-1, 1, (frames, 14)).astype(np.float32)
      file["intervention"] = np.arange(frames) >= 20
      cameras = {name: rng.integers(0, 256, (frames, 24, 32, 3), np.uint8) for name in ("cam_high", "cam_left_wrist")}
      for name, pictures in cameras.items():
        file[f"observations/images/{name}"] = pictures
  return [{"state": qpos[frame], "prompt": folder.name.replace("_", " "),
           "images": {name: np.moveaxis(pictures[frame], -1, 0) for name, pictures in cameras.items()}}
          for frame in range(frames)]
