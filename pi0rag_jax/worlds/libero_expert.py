"""An expert for LIBERO from the simulator's state, through the same actions: it picks things up and puts them down.

It has no way to open, close or turn anything, or with moka pots: tasks that need that have no expert, and say so. Those
are 0, 3 and 7 of libero_goal and 2, 3, 8 and 9 of libero_10.

What it does is a function of the present state (what is held, where the hand is, what is done already), so it may take
over at any moment. LIBERO itself has demonstrations and no expert.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.libero_scene import Scene
from pi0rag_jax.worlds.libero_sight import Sight

_GOALS = ("on", "in")  # of a task
_UNHANDY = ("moka_pot",)  # things that slip away when they are held as others are
_M_PER_TICK, _RAD_PER_TICK = 0.05, 0.5  # of the controller, at an action of 1
_GAIN, _TURN = 2.4, 0.6
_EASE_PER_TICK = 0.7  # of delay: at half of it the hand swings
OPEN, CLOSE = -1.0, 1.0
_HOLLOW = ("bowl", "plate", "mug", "pan")  # held at the rim
_WIDEST_M = 0.074  # that fits between the fingers
_DEEP_M = 0.035  # how far the fingers go down along a tall thing
_TIP_M = 0.012  # from the middle of the fingertips to their ends
_CLEAR_M = 0.05  # between what is carried and what it passes over
_DOWN = np.array([0.0, 0.0, -1.0])


@dataclasses.dataclass(frozen=True)
class Grasp:
  """Where the hand closes from above."""

  place_m: np.ndarray
  axis_2: np.ndarray  # along which the fingers open


@dataclasses.dataclass(frozen=True)
class Target:
  """Where a thing is to be let go."""

  middle_m: np.ndarray  # [2]
  floor_m: float  # height of its underside
  name: str = ""  # the thing that it is put on or into


def unknown(goals: Sequence[tuple[str, ...]]) -> str:
  """Returns which goal the expert has no way to reach, or ''."""
  for goal in goals:
    if goal[0] not in _GOALS or any(thing in goal[1] for thing in _UNHANDY):
      return (f"LIBERO's expert cannot reach '{' '.join(goal)}': it knows {' and '.join(_GOALS)}, not for "
              f"{', '.join(_UNHANDY)}")
  return ""


class LiberoExpert:
  """Works off a task's goals in order.

  Args:
    delay_ticks: by which the arm gets its actions late; the expert moves the more gently.
  """

  def __init__(self, scene: Scene, delay_ticks: int = 0):
    self._scene, self._sight = scene, Sight(scene)
    self._ease = 1.0 / (1.0 + _EASE_PER_TICK * delay_ticks)
    self._domain = scene.domain
    self._goals = [tuple(goal) for goal in self._domain.parsed_problem["goal_state"]]

  def act(self) -> np.ndarray:
    """Returns what to send now, float[7].

    Errors: Pi0RagError for a task that it has no way to do.
    """
    if why := unknown(self._goals):
      raise Pi0RagError(why)
    goal = self._next_goal()
    return self._move(self._sight.hand, grip=OPEN) if goal is None else self._pursue(goal)

  def thing(self) -> np.ndarray:
    """Returns where the thing is that is to be moved next, or was moved last, m."""
    return self._sight.origin((self._next_goal() or self._goals[-1])[1])

  def _next_goal(self) -> tuple[str, ...] | None:
    return next((goal for goal in self._goals if not self._domain._eval_predicate(list(goal))), None)

  def _pursue(self, goal: tuple[str, ...]) -> np.ndarray:
    if self._is_shut(goal[2]):
      raise Pi0RagError(f"LIBERO's expert cannot reach '{' '.join(goal)}': it opens nothing that is shut")
    _, thing, where = goal
    return self._put(thing, self._target(where))

  def _is_shut(self, where: str) -> bool:
    site = self._domain.object_sites_dict.get(where)
    return bool(getattr(site, "joints", None)) and not self._domain.object_states_dict[where].is_open()

  def _put(self, thing: str, target: Target) -> np.ndarray:
    """Returns the next action of picking a thing up and letting it go at a target."""
    sight, points_N3 = self._sight, self._sight.points(thing)
    low_3 = points_N3.min(0)
    off_2, above_m = target.middle_m - sight.origin(thing)[:2], low_3[2] - target.floor_m
    held = sight.held(thing)
    if np.linalg.norm(off_2) < 0.04 and above_m < 0.025 and (sight.closing > -0.9 or sight.speed(thing) > 0.02):
      return self._move(sight.hand + (0.0, 0.0, 0.03 if sight.closing < -0.2 and not held else 0.0), grip=OPEN)
    if held and sight.closing > 0.6:
      return self._carry(thing, target, off_2, above_m, low_3[2])
    return self._pick(thing, points_N3, held, np.array([*off_2, -above_m]))

  def _pick(self, thing: str, points_N3: np.ndarray, held: bool, way_m: np.ndarray) -> np.ndarray:
    sight, hand = self._sight, self._sight.hand
    grasp = self._grasp(thing, points_N3, way_m)
    off_3 = grasp.place_m - hand
    aside_m, turn = float(np.linalg.norm(off_3[:2])), self._turn(_down(grasp.axis_2))
    askew = float(np.linalg.norm(turn))
    if not held and sight.closed_on_nothing:
      return self._move(hand + (0.0, 0.0, 0.06), grip=OPEN)
    # Close where the hand has arrived, or gets no nearer, as at the end of the arm's reach; then do not waver.
    near_m, straight = (0.008, 0.12)
    if sight.closing > -0.9 or sight.hand_speed < 0.01:
      near_m, straight = (0.02, 0.3) if sight.closing > -0.9 else (0.016, 0.25)
    if (held and sight.closing > -0.9) or (np.linalg.norm(off_3) < near_m and askew < straight):
      return self._move(grasp.place_m if not held else hand, turn, grip=CLOSE)
    safe_m = max(sight.height_over(hand, grasp.place_m, thing), points_N3[:, 2].max()) + _CLEAR_M
    if aside_m > 0.04:
      over = hand[2] > safe_m - 0.03
      return self._move(np.array([*(grasp.place_m if over else hand)[:2], safe_m]), turn, grip=OPEN)
    ready = aside_m < 0.012 and askew < 0.15
    hold_m = min(max(hand[2], grasp.place_m[2] + 0.03), grasp.place_m[2] + 0.06)
    return self._move(np.array([*grasp.place_m[:2], grasp.place_m[2] if ready or hand[2] < grasp.place_m[2] + 0.02
                                else hold_m]), turn, grip=OPEN, slow=hand[2] < grasp.place_m[2] + 0.05)

  def _carry(self, thing: str, target: Target, off_2: np.ndarray, above_m: float, low_m: float) -> np.ndarray:
    sight, hand = self._sight, self._sight.hand
    turn = self._turn(_down(self._flat_axis()))
    aside_m = float(np.linalg.norm(off_2))
    if aside_m > (0.015 if above_m > 0.05 else 0.025):
      goal = np.array([*(hand[:2] + off_2), 0.0])
      safe_m = max(sight.height_over(hand, goal, thing), target.floor_m) + _CLEAR_M + hand[2] - low_m
      if hand[2] < safe_m - 0.03:
        goal[:2] = hand[:2]
      return self._move(np.array([*goal[:2], safe_m]), turn, grip=CLOSE)
    stands = above_m < 0.03 and sight.hand_speed < 0.015 and bool(target.name)
    if above_m < 0.005 or (stands and sight.touch(sight.geoms(thing), sight.geoms(target.name))):
      return self._move(hand, turn, grip=OPEN)
    lower_m = 0.0 if aside_m > 0.012 and above_m < 0.04 else above_m - 0.004
    return self._move(np.array([*(hand[:2] + off_2), hand[2] - lower_m]), turn, grip=CLOSE, slow=above_m < 0.08)

  def _grasp(self, thing: str, points_N3: np.ndarray, way_m: np.ndarray) -> Grasp:
    """Returns the best grasp of a thing from above, as it lies now, from where the hand is and for where it goes.

    Args:
      way_m: [3], from where the thing is to where it is let go.
    """
    now_2, hand_2 = self._flat_axis(), self._sight.hand[:2]
    costs = [(cost + 0.01 * np.arccos(min(abs(float(grasp.axis_2 @ now_2)), 1.0))
              + 0.1 * float(np.linalg.norm(grasp.place_m[:2] - hand_2)), grasp)
             for cost, grasp in _grasps(points_N3, hollow=any(word in thing for word in _HOLLOW))]
    costs.sort(key=lambda pair: pair[0])
    best, least = costs[0][1], np.inf
    for cost, grasp in costs:
      if cost >= least:
        break
      cost += 0.01 * sum(self._sight.blocked(place_m, grasp.axis_2, thing)
                         for place_m in (grasp.place_m, grasp.place_m + way_m))
      if cost < least:
        best, least = grasp, cost
    return best

  def _target(self, where: str) -> Target:
    """Returns where a thing has to be let go for a goal."""
    sight = self._sight
    site = self._domain.object_sites_dict.get(where)
    name = where if site is None else getattr(site, "parent_name", "")
    if name and ("basket" in name or site is None):
      points_N3 = sight.points(name)
      middle_2 = sight.origin(name)[:2] if site is None else sight.data.site_xpos[sight.model.site(where).id, :2].copy()
      return Target(middle_2, points_N3[:, 2].max() + 0.02 if "basket" in name else points_N3[:, 2].min() + 0.015, name)
    number = sight.model.site(where).id
    place_m, inside = sight.data.site_xpos[number], "contain" in where or where.endswith("_region")
    return Target(place_m[:2].copy(), float(place_m[2]) - (0.02 if inside and name else 0.0), name)

  def _flat_axis(self) -> np.ndarray:
    """Returns along which horizontal direction the fingers open now."""
    axis_2 = self._sight.hand_axes[:2, 0]
    length = float(np.linalg.norm(axis_2))
    return axis_2 / length if length > 0.1 else np.array([0.0, 1.0])

  def _turn(self, wanted_33: np.ndarray) -> np.ndarray:
    """Returns float[3], the rotation in rad from the hand's axes to wanted ones; the fingers are alike."""
    now_33 = self._sight.hand_axes
    flipped_33 = wanted_33 * (-1.0, -1.0, 1.0)
    return min((_rotation(axes_33 @ now_33.T) for axes_33 in (wanted_33, flipped_33)), key=np.linalg.norm)

  def _move(self, place_m: np.ndarray, turn: np.ndarray | None = None, *, grip: float,
            slow: bool = False) -> np.ndarray:
    """Returns the action towards a place."""
    action_A = np.zeros(7, np.float32)
    most = self._ease * (0.5 if slow else 1.0)
    action_A[:3] = np.clip((place_m - self._sight.hand) / _M_PER_TICK * _GAIN * self._ease, -most, most)
    if turn is not None:
      action_A[3:6] = np.clip(turn / _RAD_PER_TICK * self._ease, -_TURN, _TURN)
    action_A[6] = grip
    return action_A


def _grasps(points_N3: np.ndarray, *, hollow: bool) -> list[tuple[float, Grasp]]:
  """Returns (cost, grasp) of all ways to hold a thing from above: across it, or at its rim if it is hollow or wide."""
  low_3, high_3 = points_N3.min(0), points_N3.max(0)
  middle_2, top_m = ((low_3 + high_3) / 2)[:2], high_3[2]
  angles = np.arange(24) * np.pi / 24
  axes = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
  widths = np.ptp(points_N3[:, :2] @ axes.T, axis=0)
  if hollow or widths.min() > _WIDEST_M:
    upper_N2 = points_N3[points_N3[:, 2] > top_m - 0.35 * (top_m - low_3[2]), :2] - middle_2
    rims = ((axis_2, middle_2 + axis_2 * ((upper_N2 @ axis_2).max() - 0.006)) for axis_2 in (*axes[::2], *-axes[::2]))
    return [(0.0, Grasp(np.array([*rim_2, top_m - 0.018]), axis_2)) for axis_2, rim_2 in rims]
  grasps = []
  for axis_2, width_m in zip(axes, widths):
    along_2 = np.array([-axis_2[1], axis_2[0]])
    length_m = float(np.ptp(points_N3[:, :2] @ along_2))
    for aside in (0.0, -0.15, 0.15, -0.3, 0.3) if width_m < _WIDEST_M else ():
      for height_m, cost in ((max(top_m - _DEEP_M, low_3[2] + _TIP_M), 0.0), (top_m - 0.008, 0.03)):
        place_m = np.array([*(middle_2 + aside * length_m * along_2), height_m])
        grasps.append((float(width_m) + cost + 0.05 * abs(aside), Grasp(place_m, axis_2)))
  return grasps


def _down(axis_2: np.ndarray) -> np.ndarray:
  """Returns the axes of a hand that points down and opens its fingers along a horizontal direction."""
  axis_3 = np.array([*axis_2, 0.0])
  return np.stack([axis_3, np.cross(_DOWN, axis_3), _DOWN], axis=-1)


def _rotation(matrix_33: np.ndarray) -> np.ndarray:
  """Returns a rotation matrix as axis times angle."""
  angle = float(np.arccos(np.clip((np.trace(matrix_33) - 1.0) / 2.0, -1.0, 1.0)))
  axis_3 = np.array([matrix_33[2, 1] - matrix_33[1, 2], matrix_33[0, 2] - matrix_33[2, 0],
                     matrix_33[1, 0] - matrix_33[0, 1]])
  sine = float(np.linalg.norm(axis_3))
  return np.zeros(3) if sine < 1e-9 else axis_3 / sine * angle
