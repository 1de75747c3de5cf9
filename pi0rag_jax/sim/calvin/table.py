"""The play table in numbers: what stands where, and how the four tables A to D differ. m, in the Panda's base frame.

x points away from the robot, y to its left: "left" and "right" of prompts are the robot's. Blocks lie on the top; the
cabinet stands behind them, its door a lid that slides to the left or right half; the drawer opens towards the robot.
"""

import dataclasses

TOP_M = 0.12  # height of the table's top
EDGE_X_M, BACK_X_M, SIDE_Y_M = 0.50, 0.80, 0.40
# Drawer: its inner box, and how far it opens.
DRAWER_TRAVEL_M, DRAWER_HALF_Y_M, DRAWER_DEPTH_M, DRAWER_FLOOR_M = 0.14, 0.15, 0.10, 0.022
DRAWER_HANDLE_X_M, DRAWER_GRIP_Z_M = 0.472, 0.145  # of the closed one
# Cabinet: a half is as wide as the door, and as far as it slides.
HALF_Y_M, CABINET_X_M, PLANK_M = 0.09, 0.71, TOP_M + 0.006
LID_M = PLANK_M + 0.045  # height of the door's middle
SLIDER_TRAVEL_M, SLIDER_HANDLE_X_M, SLIDER_GRIP_Z_M = 2 * HALF_Y_M, 0.70, 0.212
SWITCH_TRAVEL_M, SWITCH_GRIP_Z_M, SWITCH_ON_M = 0.07, 0.165, 0.035
BUTTON_TRAVEL_M, BUTTON_DOWN_M, BUTTON_UP_M, BUTTON_TOP_M = 0.02, 0.012, 0.006, TOP_M + 0.035
SPOT_X_M, SPOTS_Y_M = 0.555, (-0.115, 0.115)  # where blocks lie at first

BLOCKS = ("red", "blue", "pink")
# Half sizes and colours: they differ in length.
BLOCK_HALF_M = {"red": (0.033, 0.02, 0.018), "blue": (0.026, 0.02, 0.018), "pink": (0.037, 0.02, 0.018)}
BLOCK_RGB = {"red": (0.85, 0.1, 0.1), "blue": (0.1, 0.2, 0.85), "pink": (0.95, 0.45, 0.7)}
HALF_HEIGHT_M = 0.018


@dataclasses.dataclass(frozen=True)
class Table:
  """What tables differ in: CALVIN's splits A to D."""

  top_rgb: tuple[float, float, float]
  stripe_rgb: tuple[float, float, float]  # of bars across the top
  cabinet_rgb: tuple[float, float, float]
  drawer_rgb: tuple[float, float, float]
  cabinet_y: float  # of its middle
  button: tuple[float, float]  # x, y
  switch: tuple[float, float]  # x, y of its slot's near end


TABLES = {
  "A": Table((0.75, 0.6, 0.42), (0.66, 0.5, 0.33), (0.5, 0.36, 0.24), (0.85, 0.72, 0.55), 0.03, (0.58, -0.33),
             (0.54, 0.33)),
  "B": Table((0.55, 0.58, 0.62), (0.47, 0.5, 0.54), (0.3, 0.34, 0.4), (0.7, 0.72, 0.75), -0.03, (0.6, 0.33),
             (0.55, -0.33)),
  "C": Table((0.45, 0.33, 0.25), (0.38, 0.26, 0.19), (0.7, 0.62, 0.5), (0.3, 0.2, 0.14), 0.03, (0.56, 0.32),
             (0.56, -0.32)),
  "D": Table((0.82, 0.8, 0.72), (0.74, 0.72, 0.64), (0.42, 0.5, 0.42), (0.62, 0.66, 0.56), 0.0, (0.59, -0.32),
             (0.55, 0.32)),
}
