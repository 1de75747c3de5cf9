"""franka-sim's server for a plain FR3, with the robot's own bounds of motion: `PYTHON franka_stand_in.py FOLDER`.

PYTHON is that of franka-sim's environment. Meshes are in no package: of its URDF are left the joints, the inertias and
a ball for each link.
"""

import os
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

import franka_sim
import mujoco

URDF = pathlib.Path(franka_sim.__file__).parent / "models" / "fr3.urdf"


def plain_arm() -> str:
  robot = ElementTree.parse(URDF).getroot()
  for link in robot.iter("link"):
    for part in [part for part in link if part.tag in ("visual", "collision")]:
      link.remove(part)
  compiler = {"fusestatic": "false", "balanceinertia": "true", "strippath": "false"}
  ElementTree.SubElement(ElementTree.SubElement(robot, "mujoco"), "compiler", compiler)
  spec = mujoco.MjSpec.from_string(ElementTree.tostring(robot).decode())
  for body in spec.bodies:
    if body.name[-1:].isdigit() and int(body.name[-1]) <= 7 and "link" in body.name:
      ball = body.add_geom()
      ball.name, ball.type, ball.mass = f"{body.name}_geom", mujoco.mjtGeom.mjGEOM_SPHERE, 0
      ball.size = [0.05, 0, 0]
  for joint in spec.joints:
    joint.damping, joint.armature = 2.0, 0.1
  spec.compile()
  return spec.to_xml()


if __name__ == "__main__":
  model = pathlib.Path(sys.argv[1]) / "fr3.xml"
  model.write_text(plain_arm())
  server = str(pathlib.Path(sys.executable).with_name("run-franka-sim-server"))
  os.execve(server, [server, "--enforce-motion-limits", *sys.argv[2:]], {**os.environ, "FR3_MJCF": str(model)})
