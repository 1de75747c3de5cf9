"""What can be stepped: one task under one condition of one family of environments.

A world has what every evaluation needs. What only some can do is an ability, a protocol of its own: `Rewinds`,
`Expert`, `Films`, `Tells`; a `Witness` fills in the truths. A configuration that needs one that a world lacks is
refused by name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

NOMINAL = "nominal"  # the condition of every family in which nothing is wrong
REWINDS, EXPERT, WITNESS, FILMS, TELLS = ABILITIES = ("Rewinds", "Expert", "Witness", "Films", "Tells")
# Seeds of episodes, apart by what they are for.
DEMONSTRATION_SEEDS = range(100_000)
STREAM_SEEDS = range(100_000, 200_000)
EVALUATION_SEEDS = range(200_000, 1_000_000)
MAX_DELAY_TICKS = 20  # by which a condition's robot may get its actions late; beyond that nobody controls one


@dataclasses.dataclass(frozen=True)
class CameraShift:
  """A displaced camera. The picture moves by about rotation / (field of view / pixels)."""

  translation_m: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in the camera frame: right, up, backwards
  rotation_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)  # about the camera's right, up and backward axes


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """What the worlds of a batch have in common: plain data, which a worker process is told."""

  task: Any  # a name of the family's; the Panda takes a Task too
  condition: Any = NOMINAL  # likewise
  world: str = "panda"  # a family of `registry.FAMILIES`, or the id of a gymnasium environment, such as "gym_aloha/..."
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what this family takes beside
  image_size: int = 64  # px, for families whose cameras are free to choose
  renderer: str = ""  # one of the family's; "" is its default
  horizon: int = 16  # ticks of an expert's plan
  witness: bool = False  # every tick's truth is handed over too, for measurements of what the sensors tell
  timeout_s: float = 300.0  # after which a world that does not answer is given up

  @property
  def task_name(self) -> str:
    """The task, as records call it."""
    return self.task if isinstance(self.task, str) else self.task.name


@dataclasses.dataclass(frozen=True)
class Progress:
  """What came of some actions."""

  ticks: int  # control ticks since the episode began
  success: bool
  done: bool  # success, out of time, or a fault
  sensors: Sequence[Mapping] = ()  # one per tick just executed: what a robot can measure; detectors read it
  truths: Sequence[Any] = ()  # likewise, what it cannot; only where the configuration asks for a witness
  error: str = ""  # what is wrong with the simulation, which cannot be trusted any more
  partial: bool | None = None  # whether the task was partly done in this episode; None where the world does not tell
  stages: int | None = None  # tasks done so far, in an episode that asks for several one after the other


class World(Protocol):
  """One robot in one place. Nothing but `begin` may be called before an episode has begun."""

  def begin(self, seed: int) -> None:
    """Starts the episode of a seed: the same one every time, bit for bit, whatever ran before."""
    ...

  def advance(self, actions_NA: np.ndarray) -> Progress:
    """Executes actions float[N >= 1, A] in the robot's units, one a tick, until the last or the end of the episode.

    In an episode of several tasks it ends earlier too, once one of them is done: the robot is told something else then.

    Renders nothing. Errors: Pi0RagError for another shape, or NaN.
    """
    ...

  def observe(self) -> dict[str, Any]:
    """Returns the robot's raw observation with fresh pictures, upright, as its `Robot.inputs` takes it."""
    ...

  def close(self) -> None:
    """Frees everything; no process is left."""
    ...


class Rewinds(Protocol):
  """A world that continues bit for bit from a snapshot, also from one of another world of the same configuration."""

  def snapshot(self) -> Any:
    """Returns what `restore` needs. It pickles; of nested dicts, lists, arrays, numbers and text where the world runs
    behind a bridge.
    """
    ...

  def restore(self, snapshot: Any, *, fresh_clock: bool = False) -> None:
    """Continues from there; `fresh_clock` gives the whole time limit again."""
    ...


class Expert(Protocol):
  """A world that knows how its task is done."""

  def plan(self, horizon: int) -> np.ndarray:
    """Returns float32[horizon, A]: what the expert would execute from here on. Changes nothing.

    A function of the world's present state alone, so that it may take over at any moment of any episode.
    """
    ...

  def more_time(self) -> None:
    """Has the whole time limit ahead again, while `Progress.ticks` go on: who helps is not hurried."""
    ...


class Films(Protocol):
  """A world that can be looked at by people."""

  def film(self, size: int) -> np.ndarray:
    """Returns a picture uint8[size, size, 3], upright."""
    ...


class Tells(Protocol):
  """A world that knows what a policy has to see: demonstrations keep it for an auxiliary head of the training."""

  def things(self) -> np.ndarray:
    """Returns float32[N]: where the things are, m, that the task is about now; N is the same at every moment."""
    ...


@dataclasses.dataclass(frozen=True)
class Family:
  """The worlds of one kind: what a configuration may name, and how they are made."""

  robot: str  # a name of robots.registry: what observations and actions are
  tasks: tuple[str, ...]
  conditions: Mapping[str, str]  # name -> what differs from what policies were trained on; NOMINAL among them
  make: Callable[[WorldConfig], World]
  # Raises Pi0RagError for what is missing for (task, condition), such as a package, without making a world.
  require: Callable[[str, str], None] = lambda task, condition: None
  time_limit: Callable[[str], float] = lambda task: math.inf  # ticks of a task's episode; infinite where nobody says
  facts: Callable[[str], Mapping[str, Any]] = lambda task: {}  # of a task, for failure detectors: such as put_height_m
  renderers: Callable[[], tuple[str, ...]] = tuple  # that this machine has; () where there is no choice
  abilities: tuple[str, ...] = ()  # of ABILITIES
  options: tuple[str, ...] = ()  # that a configuration may give
  categories: Mapping[str, str] = dataclasses.field(default_factory=dict)  # task -> its kind in a data set's plan
  shares: Mapping[str, float] = dataclasses.field(default_factory=dict)  # category -> its part of the plan's episodes
  # (task, seed) -> the tasks that an episode consists of, in order: its own alone, but for chains.
  asks: Callable[[str, int], tuple[str, ...]] = lambda task, seed: (task,)
  no_expert: Callable[[str, str], str] = lambda task, condition: ""  # why there is none for this one, if it is so
