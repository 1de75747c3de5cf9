"""A Franka Panda with its hand as MJCF, from primitive geometry: no meshes, no licences, fast to render.

Frames: modified DH, x forward and z up at the base. Hand frame: y is the closing axis, z points to the fingertips.
Sources: Franka Emika's published DH parameters, joint limits and inertias (franka_description).
"""

import math

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("finger_left", "finger_right")
TOOL_SITE = "tool"  # where the controller believes that the tool centre is
FINGERTIP_SITE = "fingertips"  # where it really is
WRIST_CAMERA = "left_wrist_0_rgb"
HOME_Q = (0.0, -0.3, 0.0, -2.2, 0.0, 1.95, 0.785)
MAX_WIDTH_M = 0.08
TOOL_Z_M = 0.1034  # tool centre below the hand's flange
# Height from the tool centre down to the lowest point of the fingers.
FINGERTIP_REACH_M = 0.0095

# a (m), d (m), alpha (rad) of each joint.
_DH = (
  (0.0, 0.333, 0.0),
  (0.0, 0.0, -math.pi / 2),
  (0.0, 0.316, math.pi / 2),
  (0.0825, 0.0, math.pi / 2),
  (-0.0825, 0.384, -math.pi / 2),
  (0.0, 0.0, math.pi / 2),
  (0.088, 0.0, math.pi / 2),
)
_LIMITS_RAD = (
  (-2.8973, 2.8973),
  (-1.7628, 1.7628),
  (-2.8973, 2.8973),
  (-3.0718, -0.0698),
  (-2.8973, 2.8973),
  (-0.0175, 3.7525),
  (-2.8973, 2.8973),
)
# mass (kg), centre of mass (m), full inertia xx yy zz xy xz yz (kg m^2).
_INERTIAS = (
  (4.970684, "0.003875 0.002081 -0.04762", "0.70337 0.70661 0.009117 -0.000139 0.006772 0.019169"),
  (0.646926, "-0.003141 -0.02872 0.003495", "0.007962 0.02811 0.025995 -0.003925 0.010254 0.000704"),
  (3.228604, "0.027518 0.039252 -0.066502", "0.037242 0.036155 0.01083 -0.004761 -0.011396 -0.012805"),
  (3.587895, "-0.05317 0.104419 0.027454", "0.025853 0.019552 0.028323 0.007796 -0.001332 0.008641"),
  (1.225946, "-0.011953 0.041065 -0.038437", "0.035549 0.029474 0.008627 -0.002117 -0.004037 0.000229"),
  (1.666555, "0.060149 -0.014117 -0.010517", "0.001964 0.004354 0.005433 0.000109 -0.001158 0.000341"),
  (0.735522, "0.010517 -0.004252 0.061597", "0.012516 0.010027 0.004815 -0.000428 -0.001196 -0.000741"),
)
# type, fromto (m), radius (m), colour of the geoms of each link.
_WHITE, _GRAY = "0.9 0.9 0.92 1", "0.45 0.47 0.5 1"
_SHAPES = (
  (("capsule", "0 0 -0.19 0 0 0", 0.06, _WHITE),),
  (("capsule", "0 0 0 0 -0.19 0", 0.06, _WHITE),),
  (("capsule", "0 0 -0.1 0 0 0", 0.055, _WHITE), ("capsule", "0.0825 0 -0.04 0.0825 0 0.04", 0.05, _GRAY)),
  (("capsule", "-0.0825 0.07 0 -0.0825 0.15 0", 0.05, _WHITE),),
  (("capsule", "0 0 -0.23 0 0 -0.02", 0.05, _WHITE),),
  (("capsule", "0 0 0 0.088 0 0", 0.048, _GRAY),),
  (("cylinder", "0 0 -0.03 0 0 0.105", 0.042, _WHITE),),
)
# kp and force range of each joint's position actuator.
_SERVOS = ((4500, 87), (4500, 87), (3500, 87), (3500, 87), (2000, 12), (2000, 12), (2000, 12))

DEFAULTS = """
  <default>
    <geom solref=".004 1" solimp=".95 .99 .001" friction="1 .005 .0001" condim="4"/>
    <default class="arm">
      <joint armature=".1" damping="1"/>
      <geom contype="2" conaffinity="1" mass="0"/>
    </default>
    <default class="finger"><joint armature=".1" damping="1" range="0 .04"/></default>
    <default class="pad"><geom condim="6" priority="1"/></default>
  </default>
"""


def arm_body(hand: str) -> str:
  """Returns the arm's nested <body> elements, with `hand` (elements) placed on the last link."""
  inner = hand
  for i in reversed(range(len(_DH))):
    a, d, alpha = _DH[i]
    mass, com, inertia = _INERTIAS[i]
    geoms = "".join(
      f'<geom name="link{i + 1}_{k}" class="arm" type="{kind}" fromto="{ends}" size="{radius}" rgba="{rgba}"/>'
      for k, (kind, ends, radius, rgba) in enumerate(_SHAPES[i])
    )
    position = f"{a} {-math.sin(alpha) * d} {math.cos(alpha) * d}"
    quaternion = f"{math.cos(alpha / 2)} {math.sin(alpha / 2)} 0 0"
    inner = (
      f'<body name="link{i + 1}" pos="{position}" quat="{quaternion}" gravcomp="1">'
      f'<inertial mass="{mass}" pos="{com}" fullinertia="{inertia}"/>'
      f'<joint name="{JOINTS[i]}" class="arm" axis="0 0 1" range="{_LIMITS_RAD[i][0]} {_LIMITS_RAD[i][1]}"/>'
      f"{geoms}{inner}</body>"
    )
  base = f'<geom name="link0_0" class="arm" type="cylinder" fromto="0 0 0 0 0 0.14" size="0.075" rgba="{_GRAY}"/>'
  return f'<body name="link0">{base}{inner}</body>'


def tool_frame() -> str:
  """Returns the hand as a bare frame with the tool site: all that inverse kinematics needs."""
  return f'<body name="hand" {_HAND_POSE}>{_TOOL_SITE}</body>'


def hand_body(tool_offset_m, pad_friction_scale: float, wrist_camera: str) -> str:
  """Returns the hand with fingers displaced by `tool_offset_m` [3] from the believed tool site.

  Args:
    tool_offset_m: real minus believed tool centre, hand frame, m.
    pad_friction_scale: factor on the pads' sliding friction.
    wrist_camera: a <camera> element in the hand frame.
  """
  offset = " ".join(str(value) for value in tool_offset_m)
  fingers = "".join(_finger(side, sign, pad_friction_scale) for side, sign in (("left", 1), ("right", -1)))
  return f"""
    <body name="hand" {_HAND_POSE} gravcomp="1">
      <inertial mass="0.73" pos="-0.01 0 0.03" diaginertia="0.001 0.0025 0.0017"/>
      <geom name="hand_0" class="arm" type="box" size="0.025 0.1 0.031" pos="0 0 0.033" rgba="0.75 0.77 0.8 1"/>
      {_TOOL_SITE}{wrist_camera}
      <body name="fingers" pos="{offset}" gravcomp="1">
        <site name="{FINGERTIP_SITE}" pos="0 0 {TOOL_Z_M}" group="5"/>{fingers}
      </body>
    </body>"""


_HAND_POSE = f'pos="0 0 0.107" quat="{math.cos(math.pi / 8)} 0 0 {-math.sin(math.pi / 8)}"'
_TOOL_SITE = f'<site name="{TOOL_SITE}" pos="0 0 {TOOL_Z_M}" group="5"/>'


def _finger(side: str, sign: int, friction_scale: float) -> str:
  """Returns one finger: a back that counts as the hand, and a pad that grips."""
  return f"""
    <body name="finger_{side}" pos="0 0 0.0584" gravcomp="1">
      <inertial mass="0.015" pos="0 0 0" diaginertia="2.375e-6 2.375e-6 7.5e-7"/>
      <joint name="finger_{side}" class="finger" type="slide" axis="0 {sign} 0"/>
      <geom name="finger_{side}_0" class="arm" type="box" size="0.008 0.005 0.026" pos="0 {sign * 0.013} 0.027"
        rgba="0.2 0.2 0.22 1"/>
      <geom name="pad_{side}" class="pad" type="box" size="0.01 0.004 0.0095" pos="0 {sign * 0.004} 0.045"
        contype="2" conaffinity="1" mass="0" friction="{1.5 * friction_scale} .01 .0005" rgba="0.95 0.55 0.1 1"/>
    </body>"""


def actuators() -> str:
  """Returns the position servos of the arm, the gripper's tendon and servo, and the equal-fingers constraint."""
  servos = "".join(
    f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kp / 10}" forcerange="-{force} {force}"/>'
    for joint, (kp, force) in zip(JOINTS, _SERVOS)
  )
  left, right = FINGER_JOINTS
  return f"""
  <tendon><fixed name="grip"><joint joint="{left}" coef=".5"/><joint joint="{right}" coef=".5"/></fixed></tendon>
  <equality><joint joint1="{left}" joint2="{right}"/></equality>
  <actuator>{servos}
    <position name="gripper" tendon="grip" kp="1500" kv="60" forcerange="-40 40" ctrlrange="0 0.04"/>
  </actuator>"""


def kinematic_xml() -> str:
  """Returns a model of the arm alone, as the controller believes it: joints and the tool site."""
  return f"<mujoco><compiler angle='radian'/>{DEFAULTS}<worldbody>{arm_body(tool_frame())}</worldbody></mujoco>"
