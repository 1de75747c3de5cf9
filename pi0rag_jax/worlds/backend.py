"""Chooses MuJoCo's OpenGL backend. It runs before `import mujoco`, which crashes on a backend that is missing."""

import ctypes
import os
import subprocess
import sys
import warnings

LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
DISABLED = "disabled"
INSTALL_HINT = "apt-get install -y libegl1 libgl1 libgl1-mesa-dri (or libosmesa6)"
_SMOKE_RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
  renderer.update_scene(data)
  renderer.render()
"""


def select_backend() -> str:
  """Returns the value `MUJOCO_GL` has from now on: the user's if it can load, else egl, osmesa or 'disabled'.

  Child processes inherit the choice, so the smoke render runs once. Without OpenGL the ray-caster still works.
  """
  wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
  if "mujoco" in sys.modules or (wanted and (wanted not in LIBRARIES or _loads(wanted))):
    return wanted
  found = next((name for name in LIBRARIES if name != wanted and _loads(name) and _renders(name)), DISABLED)
  if wanted:
    warnings.warn(
      f"MUJOCO_GL={wanted} has no library here, using '{found}' instead; to install: {INSTALL_HINT}", stacklevel=2
    )
  os.environ["MUJOCO_GL"] = found
  return found


def _loads(name: str) -> bool:
  """Returns whether a library of the backend can be loaded."""
  for library in LIBRARIES[name]:
    try:
      ctypes.CDLL(library)
    except OSError:
      continue
    return True
  return False


def _renders(name: str) -> bool:
  """Returns whether a picture can be rendered with the backend, tried in a process that may crash."""
  command = [sys.executable, "-c", _SMOKE_RENDER]
  try:
    done = subprocess.run(
      command, env={**os.environ, "MUJOCO_GL": name}, capture_output=True, timeout=60, check=False
    )
  except subprocess.TimeoutExpired:
    return False
  return done.returncode == 0
