"""What a sweep's configuration amounts to: a list of steps, each of which can be resumed.

A place is a task under a condition. In each place the policies without memory are evaluated, then (if any policy has
one) streams teach a memory, which is frozen and evaluated after so many episodes. In places of focus there are more
streams, one of them is longer, more ways of steering are compared, and the memory is taken back to where nothing is
wrong any more; that comes after everything else. In a pool what all places taught is one memory, which may be evaluated
where nothing was taught.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

from pi0rag_jax import schema
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.memory.index import MAX_CAPACITY
from pi0rag_jax.policy.spec import NEW, ZERO, PolicySpec, check_start
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import FEEDING
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.rollout import Loop
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, NOMINAL, STREAM_SEEDS, Family

STARTS = (ZERO, NEW)
# Between the first seeds of two streams in the same place.
STREAM_SPACING = 10_000
ACTING = ("memory", "base")  # in a stream: the policy as its memory steers it, or alone
PARTS = ("loop", "stream", "evaluation", "focus", "pool", "memory")  # of a configuration
# The least and the most of its numbers; whole ones, where these are.
RANGES = {
  "slots": (1, 4096), "processes": (0, 1024), "execute_steps": (0, 1000),
  "denoising_steps": (0, 1000),
  "loop.delay_ms": (0.0, 1e5), "memory.capacity": (1, MAX_CAPACITY),
  "memory.deadline_ms": (0.0, 1e6), "stream.first_seed": (0, 2**31), "evaluation.first_seed": (0, 2**31),
  "stream.corrected_max": (0, 10**6), "evaluation.latency_episodes": (0, 10**6), "evaluation.clips": (0, 10**6),
  **dict.fromkeys(("evaluation.episodes", "focus.streams"), (1, 10**6)),
  **dict.fromkeys(("stream.episodes", "focus.episodes", "focus.return_episodes", "focus.evaluation_episodes"),
                  (0, 10**6))}


@dataclasses.dataclass(frozen=True)
class Method:
  """One policy of an evaluation."""

  name: str
  start: str | None = None  # where its flow starts, one of STARTS; None is the policy's own start
  steering: str | None = None  # preset; None is the policy without memory
  policy: str | None = None  # another one than the sweep's, of the same robot: what was retrained on its corrections
  execute_steps: int | None = None  # actions of a chunk before the next decision; None is the sweep's number


@dataclasses.dataclass(frozen=True)
class Place:
  """Where episodes run."""

  task: str
  condition: str

  @property
  def name(self) -> str:
    return f"{self.task}/{self.condition}"


@dataclasses.dataclass(frozen=True)
class Stream:
  """Episodes in which one memory learns."""

  place: Place
  seeds: range
  replicate: int = 0  # of the streams in the same place
  came_from: str = ""  # condition in which the memory learned before; '' begins with an empty one

  @property
  def name(self) -> str:
    """What it is called; tells it from all others."""
    parts = [f"stream {self.replicate + 1}"] * (self.replicate > 0) + [f"after {self.came_from}"] * bool(self.came_from)
    return ", ".join([self.place.name, *parts])

  @property
  def directory(self) -> str:
    """The name of its memory's folder."""
    return self.name.replace("/", "-").replace(", ", "-").replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Pool:
  """The memories of several streams, put together as one."""

  streams: tuple[Stream, ...]
  came_from = ""

  name = "all places"
  directory = "all_places"


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Runs policies on evaluation seeds; those with a memory have that of a stream, after so many episodes."""

  place: Place
  methods: tuple[Method, ...]
  seeds: range
  stream: Stream | Pool | None = None
  after: int = 0
  shown: bool = False  # timed and filmed: the place's last word


@dataclasses.dataclass(frozen=True)
class Learn:
  """Goes on with a stream, from where it pauses before, until so many of its episodes have run."""

  stream: Stream
  until: int
  begin: int = 0


@dataclasses.dataclass(frozen=True)
class Fork:
  """Copies a stream's memory, as it is now, to be the beginning of another's."""

  source: Stream
  target: Stream


@dataclasses.dataclass(frozen=True)
class Merge:
  """Copies the records of several streams' memories, as they are now, into that of a pool."""

  pool: Pool


Step = Evaluate | Learn | Fork | Merge


def steps(config: Config) -> list[Step]:
  """Returns the steps of a sweep in order.

  Errors: Pi0RagError for an unknown task, condition, start or preset, or seeds that meet or leave their range.
  """
  check_values(config)
  found_family = family(config)
  places = [place(entry, config.task, found_family) for entry in config.conditions]
  focus = [place(entry, config.task, found_family) for entry in config.focus.conditions]
  pooled = [place(entry, config.task, found_family) for entry in config.pool.conditions]
  strange = [p.name for p in focus if p not in places]
  if strange:
    raise Pi0RagError(f"focus.conditions {strange} are not among the conditions: {[p.name for p in places]}")
  methods = read_methods(config.evaluation.policies)
  alone = tuple(method for method in methods if not method.steering)
  steered = tuple(method for method in methods if method.steering)
  if steered and not config.stream.episodes:
    raise Pi0RagError(f"stream.episodes is 0, but '{steered[0].name}' is steered by what a stream teaches")
  seeds = evaluation_seeds(config)
  # The least that is known of every place comes first: a sweep takes hours, and may be looked at before its end.
  found: list[Step] = []
  for here in places:
    found += [Evaluate(here, alone, seeds, shown=True)]
    if steered:  # else nobody needs a memory
      found += _taught(config, _stream(config, here, 0, longer=here in focus), steered, seeds, shown=True)
  if pooled and steered:
    found += _in_common(config, places, focus, pooled, alone, steered, seeds)
  for here in focus if steered else ():
    found += _closer_look(config, here, alone, steered)
  _check_seeds(config, found)
  return found


def check_values(config: Config) -> None:
  """Raises Pi0RagError for numbers out of range, an unknown start or feeding, and conditions that are none."""
  flat = {**config, **{f"{part}.{name}": value for part in PARTS for name, value in config[part].items()}}
  for name, (low, high) in RANGES.items():
    schema.check_range(flat[name], low, high, name)
  for name in ("conditions", "stream.checkpoints", "focus.conditions", "pool.conditions", "evaluation.policies",
               "focus.policies"):
    if isinstance(flat[name], str) or not isinstance(flat[name], Sequence):
      raise Pi0RagError(f"{name} is {flat[name]!r}; allowed: a tuple, such as ({flat[name]!r},)")
  if not config.conditions or len(set(config.conditions)) < len(config.conditions):
    raise Pi0RagError(f"conditions are {tuple(config.conditions)}; allowed: one or more, each once")
  for count in config.stream.checkpoints:
    schema.check_range(count, 1, 10**6, "an entry of stream.checkpoints")
  if config.start:
    check_start(config.start)
  if config.stream.acting not in ACTING:
    raise unknown_name("who acts in a stream", config.stream.acting, ACTING)
  if config.memory.feeding not in FEEDING:
    raise unknown_name("feeding", config.memory.feeding, FEEDING)
  if not isinstance(config.memory.key_name, str) or "/" in config.memory.key_name:
    raise Pi0RagError(f"memory.key_name is {config.memory.key_name!r}; allowed: names, '' for the policy's own")


def family(config: Config) -> Family:
  """Returns the family of worlds that a sweep runs in."""
  return registry.family(*registry.read(config.world))


def loop(config: Config, spec: PolicySpec) -> Loop:
  """Returns how the robot's loop waits for the policy. Errors: Pi0RagError where the policy cannot keep up with it."""
  found = Loop(round(config.loop.delay_ms / 1000 * spec.control_hz), config.loop.real_time)
  found.check(spec)
  return found


def place(entry: str, task: str, worlds: Family) -> Place:
  """Returns the place that 'condition' (of `task`, or of the only task that there is) or 'task/condition' names."""
  named_task, _, condition = entry.rpartition("/")
  only = worlds.tasks[0] if len(worlds.tasks) == 1 else ""
  found = Place(named_task or task or only, condition)
  registry.check(worlds, found.task, found.condition)
  return found


def read_methods(policies: Iterable[Mapping]) -> tuple[Method, ...]:
  """Returns the methods that dictionaries with a `name` and, unless the defaults are meant, the other fields say."""
  known, found = [field.name for field in dataclasses.fields(Method)], []
  for values in policies:
    if not isinstance(values, Mapping) or "name" not in values:
      raise Pi0RagError(f"a policy to evaluate is {values!r}; allowed: a dictionary, such as "
                        "{'name': 'base', 'start': 'new'} or {'name': 'memory', 'steering': 'residual'}")
    for name in values:
      if name not in known:
        raise unknown_name("entry of a policy to evaluate", name, known)
    method = Method(**values)
    if method.start not in (None, *STARTS):
      raise unknown_name("start of the flow", method.start, STARTS)
    if method.steering is not None:
      rules.preset(method.steering)
      if method.policy is not None:
        raise Pi0RagError(f"'{method.name}' is another policy, and its memory would be that of the sweep's: leave "
                          "`steering` out")
    if not isinstance(method.name, str) or not method.name.strip() or "/" in method.name:
      raise Pi0RagError(f"a policy to evaluate has the name {method.name!r}; allowed: texts without '/'")
    if any(method.name == other.name for other in found):
      raise Pi0RagError(f"two policies to evaluate are called '{method.name}': their results could not be told apart")
    found.append(method)
  return tuple(found)


def evaluation_seeds(config: Config) -> range:
  """Returns the seeds that every place is evaluated on."""
  return range(config.evaluation.first_seed, config.evaluation.first_seed + config.evaluation.episodes)


def _taught(config: Config, stream: Stream, steered, seeds: range, *, shown: bool = False) -> list[Step]:
  """Returns the steps in which a stream teaches its memory, and the memory is evaluated now and then."""
  episodes = config.stream.episodes
  found: list[Step] = []
  for begin, after in itertools.pairwise([0, *sorted({*config.stream.checkpoints, episodes})]):
    found += [Learn(stream, after, begin),
              Evaluate(stream.place, steered, seeds, stream, after, shown=shown and after == episodes)]
  return found


def _in_common(config: Config, places, focus, pooled, alone, steered, seeds: range) -> list[Step]:
  """Returns the steps in which what all places taught is evaluated as one memory, also where nothing was taught."""
  pool = Pool(tuple(_stream(config, here, 0, longer=here in focus) for here in places))
  found: list[Step] = [Merge(pool)]
  for here in pooled:
    found += [Evaluate(here, alone, seeds), Evaluate(here, steered, seeds, pool, config.stream.episodes)]
  return found


def _closer_look(config: Config, here: Place, alone, steered) -> list[Step]:
  """Returns the further steps of a place of focus; the first stream's memory is left as it is for as long as needed."""
  focus, first = config.focus, _stream(config, here, 0, longer=True)
  seeds = evaluation_seeds(config)[: focus.evaluation_episodes or None]
  found: list[Step] = [Evaluate(here, read_methods(focus.policies), seeds, first, config.stream.episodes)]
  if focus.return_episodes:
    found += _back_to_nominal(config, first, alone, steered, seeds)
  for replicate in range(1, focus.streams):
    found += _taught(config, _stream(config, here, replicate), steered, seeds)
  if focus.episodes > config.stream.episodes:
    found += [Learn(first, focus.episodes, config.stream.episodes),
              Evaluate(here, steered, seeds, first, focus.episodes)]
  return found


def _back_to_nominal(config: Config, stream: Stream, alone, steered, seeds: range) -> list[Step]:
  """Returns the steps that show what a memory does once the cause of its failures has gone, and what it forgets."""
  nominal = Place(stream.place.task, NOMINAL)
  count = config.focus.return_episodes
  start = stream.seeds[0] + STREAM_SPACING // 2
  back = Stream(nominal, range(start, start + count), came_from=stream.place.condition)
  return [Evaluate(nominal, alone, seeds), Fork(stream, back), Evaluate(nominal, steered, seeds, back, 0),
          Learn(back, count), Evaluate(nominal, steered, seeds, back, count)]


def _stream(config: Config, here: Place, replicate: int, *, longer: bool = False) -> Stream:
  episodes = max(config.stream.episodes, config.focus.episodes) if longer else config.stream.episodes
  first = config.stream.first_seed + replicate * STREAM_SPACING
  return Stream(here, range(first, first + episodes), replicate)


def _check_seeds(config: Config, found: list[Step]) -> None:
  """Raises where the seeds of streams and evaluations meet, or either leaves what is set aside for it."""
  evaluated = evaluation_seeds(config)
  for stream in {step.stream for step in found if isinstance(step, Learn)}:
    if stream.seeds[0] < evaluated.stop and evaluated.start < stream.seeds.stop:
      raise Pi0RagError("stream and evaluation seeds overlap: choose first_seed values farther apart")
    if len(stream.seeds) > STREAM_SPACING // 2:
      raise Pi0RagError(f"a stream of {len(stream.seeds)} episodes: at most {STREAM_SPACING // 2} are allowed")
    if stream.seeds[0] not in STREAM_SEEDS or stream.seeds[-1] not in STREAM_SEEDS:
      raise Pi0RagError(f"stream seeds {stream.seeds[0]}..{stream.seeds[-1]} leave those set aside for streams: "
                        f"{STREAM_SEEDS[0]}..{STREAM_SEEDS[-1]}")
  if evaluated and (evaluated[0] not in EVALUATION_SEEDS or evaluated[-1] not in EVALUATION_SEEDS):
    raise Pi0RagError(f"evaluation seeds {evaluated[0]}..{evaluated[-1]} leave those set aside for evaluations: "
                      f"{EVALUATION_SEEDS[0]}..{EVALUATION_SEEDS[-1]}")
