"""A server that learns: episodes over the wire, and what they teach its memory.

An observation may have one more entry, `"episode"`, which openpi's clients never send (`Entry` has its fields): which
episode it belongs to, what was executed since the last answer and by whom, and how the episode ended. A message may
also have this entry alone. An end is answered once what it taught is durable; what is under way is on disk too, so that
a robot whose server was killed goes on in the same episode.
"""

import collections
import dataclasses
import functools
import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data.validation import ACTORS, POLICY
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning import asking, lessons
from pi0rag_jax.learning.kept import Ending, Keeper
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.memory import forgetting
from pi0rag_jax.memory.forgetting import token_of
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import DamagedError
from pi0rag_jax.policy import realtime
from pi0rag_jax.serving import messages
from pi0rag_jax.steering import together
from pi0rag_jax.steering.agent import Agent, Decision, Talk
from pi0rag_jax.worlds import journal
from pi0rag_jax.worlds.episode import Job, Step, Trace

ENTRY = "episode"
LOG_NAME = "episodes.jsonl"  # in the memory's folder
# Of episodes under way, each some kilobytes a decision; the one that was heard of least lately gives way.
MAX_OPEN, MAX_DECISIONS, MAX_TICKS = 64, 4096, 1 << 16
MAX_TEXT = 200  # characters of a name
_LARGEST_LOG = 64 * 2**20  # bytes; a larger file is written anew without what is over


class End(msgspec.Struct, forbid_unknown_fields=True):
  """How an episode ended."""

  success: bool
  failure_kind: str = ""
  note: str = ""


class Entry(msgspec.Struct, forbid_unknown_fields=True):
  """What a message may say of an episode."""

  id: str = ""  # of the robot's own making, another one for each episode
  task: str = ""
  robot: str = ""
  decision: int | None = None  # answers that the robot has had in this episode; where an observation comes along
  done: Any = None  # float[n, A], executed since the last answer, in the robot's units
  ticks: int | None = None  # instead of `done`: how many actions of the answer; None is the policy's own number
  by: str = POLICY  # who acted, one of ACTORS
  end: End | None = None
  undo: str | None = None  # an episode that is to be as if it had not been
  forget: list[int] = []  # records, by their ids
  session: int | None = None  # of another connection, whose observations belong to this episode from now on
  sessions: bool = False  # asks which there are


class _Line(msgspec.Struct, omit_defaults=True):
  """A line of the log: a decision, what came of it, or that an episode is over."""

  id: str
  at: int = 0
  tick: int = 0
  arrays: dict[str, journal.Array] = {}
  used: int = 0
  prompt: str = ""
  by: str = ""
  done: journal.Array | None = None
  over: bool = False


@dataclasses.dataclass
class Open:
  """An episode under way."""

  id: str
  task: str = ""
  robot: str = ""
  prompt: str = ""
  steps: list[Step] = dataclasses.field(default_factory=list)

  def read(self, line: _Line) -> None:
    """Takes in a line of the log."""
    if line.arrays:
      arrays = {name: journal.unpacked(array) for name, array in line.arrays.items()}
      del self.steps[line.at :]
      self.prompt = line.prompt
      self.steps.append(Step(line.tick, None, arrays["key"], arrays["base"], arrays["actions"], line.used,
                             arrays["ids"], arrays["weight"]))
    elif line.done is not None and line.at < len(self.steps):
      self.steps[line.at] = dataclasses.replace(self.steps[line.at], by=line.by, done_NA=journal.unpacked(line.done))

  @property
  def ticks(self) -> int:
    """Executed so far; the last decision counts once it is told what came of it."""
    return 0 if not self.steps else self.steps[-1].tick + len(_done(self.steps[-1]))


def logged(path: str | os.PathLike, name: str) -> list[Step]:
  """Returns the decisions of an episode that a log tells of: one under way, or one that is over whose lines are still
  there. Empty where it has none. Errors: DamagedError.
  """
  episode = Open(name)
  for line in _lines(path):
    if line.id == name and not line.over:
      episode.read(line)
  return episode.steps


def _lines(path: str | os.PathLike) -> Iterator[_Line]:
  for number, line in enumerate(files.whole_lines(path), start=1):
    try:
      yield schema.parse(line, _Line, f"{path}, line {number}")
    except Pi0RagError as error:
      raise DamagedError(f"{error}: delete the file, and what was under way is lost") from error


class EpisodeLog:
  """The episodes under way, on disk. Raises Pi0RagError when another process writes the file, or it is damaged."""

  def __init__(self, path: str | os.PathLike):
    self._log = files.LineLog(path)
    self.open: collections.OrderedDict[str, Open] = collections.OrderedDict()
    try:
      for line in _lines(path):
        if line.over:
          self.open.pop(line.id, None)
        else:
          self.open.setdefault(line.id, Open(line.id)).read(line)
    except DamagedError:
      self._log.close()
      raise

  def episode(self, name: str) -> Open:
    """Returns an episode, which begins with this where it is new."""
    if name not in self.open and len(self.open) >= MAX_OPEN:
      self.over(next(iter(self.open)))
    episode = self.open.setdefault(name, Open(name))
    self.open.move_to_end(name)
    return episode

  def decided(self, episode: Open, step: Step) -> None:
    """Adds a decision; those from its place on were never answered."""
    self._write(_Line(episode.id, len(episode.steps), step.tick, journal.arrays_of(step), step.used, episode.prompt))
    episode.steps.append(step)

  def came_of_it(self, episode: Open, by: str, done_NA: np.ndarray) -> None:
    """Says what was executed after the last decision, and by whom."""
    at = len(episode.steps) - 1
    self._write(_Line(episode.id, at, by=by, done=journal.packed(done_NA)))
    episode.steps[at] = dataclasses.replace(episode.steps[at], by=by, done_NA=done_NA)

  def over(self, name: str) -> None:
    """Gives an episode up."""
    if self.open.pop(name, None) is None:
      return
    self._write(_Line(name, over=True))
    if len(self._log) > _LARGEST_LOG:
      self._write_anew()

  def _write_anew(self) -> None:
    path, kept = self._log.path, list(self.open.values())
    self._log.close()
    files.write_text(path, "")
    self._log, self.open = files.LineLog(path), collections.OrderedDict()
    for old in kept:
      episode = self.episode(old.id)
      episode.task, episode.robot, episode.prompt = old.task, old.robot, old.prompt
      for step in old.steps:
        self.decided(episode, dataclasses.replace(step, by=POLICY, done_NA=None))
        if step.done_NA is not None:
          self.came_of_it(episode, step.by, step.done_NA)

  def _write(self, line: _Line) -> None:
    self._log.append(msgspec.json.encode(line), durable=False)

  def close(self) -> None:
    """Releases the file to other processes."""
    self._log.close()


class Teachable:
  """An agent whose memory learns from the episodes of its clients, all of whom share it. For one thread, but for what
  is to be done `Later`, and `undo` and `forget`.
  """

  def __init__(self, agent: Agent, memory: Memory, log: EpisodeLog, keeper: Keeper | None = None):
    self.agent, self._memory, self.log, self.keeper = agent, memory, log, keeper
    self._config = CorrectionConfig()
    self._asker = asking.Asker(memory, agent.policy.space, asking.AskingConfig(when=asking.ASKED))
    self._asking = self._asker.asking()  # fitted anew by whoever changes the memory, not while a robot waits
    # Of the clients that are connected: a session lives as long as its connection.
    self._sessions: weakref.WeakValueDictionary[int, TeachingSession] = weakref.WeakValueDictionary()
    self._count = 0

  def session(self) -> "TeachingSession":
    """Returns the policy for another client."""
    self._count += 1
    self._sessions[self._count] = session = TeachingSession(self, self._count)
    return session

  def attach(self, number: int, name: str) -> None:
    """Lets the observations of a client that says nothing of episodes belong to one."""
    if number not in self._sessions:
      raise Pi0RagError(f"there is no session {number}; there are {', '.join(map(str, self.numbers()))}")
    self._sessions[number].belongs_to = name

  def numbers(self) -> list[int]:
    """Returns the clients that are connected."""
    return sorted(self._sessions)

  def learn(self, episode: Open, end: End) -> messages.Later:
    """Returns what an episode taught, once it is durable; a second time it teaches nothing more."""
    steps = list(episode.steps)
    trace = Trace(Job(0, 0), episode.prompt, [step for step in steps if len(_done(step))],  # the last may have none
                  outcome="success" if end.success else "failure", ticks=episode.ticks)
    origin = {"episode": episode.id, "robot": episode.robot, **({"note": end.note} if end.note else {})}
    context = RecordContext(episode.task, episode.prompt, origin, end.failure_kind)
    ending = None
    if self.keeper is not None:
      prompt = episode.prompt or self.agent.policy.spec.data.default_prompt or ""
      ending = Ending(episode.task, episode.robot, prompt, end.success, end.failure_kind, end.note)

    def commit() -> dict[str, Any]:
      records = lessons.of_episode(trace, self.agent.policy.space, context, self._config) if trace.steps else []
      counted = lessons.outcomes(trace)
      ids = self._memory.add(records, token=token_of(episode.id), outcomes=counted) if records or counted else []
      if self.keeper is not None and ending is not None:
        self.keeper.ended(episode.id, ending, steps)
      self._asking = self._asker.asking()
      return {"id": episode.id, "records": ids}

    return messages.Later(commit, lambda: self._over(episode.id))

  def _over(self, name: str) -> None:
    self.log.over(name)
    for session in self._sessions.values():
      if session.belongs_to == name:
        session.belongs_to = ""

  def asks(self, steps: list[Step]) -> bool | None:
    """Returns whether somebody should look, after the last of some decisions; None while too little is known."""
    fitted, step = self._asking, steps[-1]
    before = steps[-2] if len(steps) > 1 else None
    return fitted and fitted(step.key_E, asking.contradiction(before, step, self.agent.policy.space),
                            step.tick)

  def taught(self, name: str) -> bool:
    """Returns whether an episode was learned from and not taken back."""
    return token_of(name) in self._memory.tokens()

  def undo(self, name: str) -> dict[str, Any]:
    """Returns which records of an episode were taken back. The last one is taken back whole, with what it counted and
    evicted; of an earlier one the records go. Errors: Pi0RagError for an episode that taught nothing.
    """
    forgotten = forgetting.undo_episode(self._memory, name)
    if self.keeper is not None:
      self.keeper.forget(name)
    self._asking = self._asker.asking()
    return {"id": name, "forgotten": forgotten}

  def forget(self, ids: list[int]) -> dict[str, Any]:
    """Returns which records were removed. Errors: Pi0RagError for ids that are not there; nothing is removed then."""
    forgotten = forgetting.forget(self._memory, ids)
    self._asking = self._asker.asking()
    return {"forgotten": forgotten}


class TeachingSession:
  """The policy of one client, which may teach it."""

  def __init__(self, server: Teachable, number: int):
    self._server, self._number = server, number
    self._agent = server.agent.session()
    self.belongs_to = ""  # the episode of observations that say nothing of one

  def infer(self, observation: Mapping) -> Mapping:
    """Returns what the agent answers, with an entry `episode` where the observation had one.

    Errors: Pi0RagError for what is wrong with the entry, and as `Agent.infer`.
    """
    answer = together.alone(self.talk(observation))
    return answer.result() if isinstance(answer, messages.Later) else answer

  def talk(self, observation: Mapping) -> Talk:
    """Asks for the decision that an answer needs; returns as `infer`, or, where that waits for a disk, how an entry is
    answered later.
    """
    if ENTRY not in observation:
      answer, decision = yield self._agent, observation
      if self.belongs_to:
        self._decided(self._server.log.episode(self.belongs_to), observation, decision)
      return answer
    seen = {name: value for name, value in observation.items() if name != ENTRY}
    entry = read(observation[ENTRY])
    if seen and (not entry.id or entry.end is not None or entry.undo is not None or entry.forget or entry.sessions):
      raise Pi0RagError("an observation belongs to an episode that goes on: give its id, and ask nothing else")
    said = self._hear(entry)
    if isinstance(said, messages.Later):
      return dataclasses.replace(said, slow=lambda: {ENTRY: said.slow()})
    if not seen:
      return {ENTRY: said}
    answer, decision = yield self._agent, seen
    return self._told(entry, seen, said, answer, decision)

  def _hear(self, entry: Entry) -> dict[str, Any] | messages.Later:
    """Returns the answer to what an entry says."""
    server = self._server
    if entry.undo is not None:
      return messages.Later(functools.partial(server.undo, entry.undo))
    if entry.forget:
      return messages.Later(functools.partial(server.forget, entry.forget))
    if entry.sessions:
      return {"sessions": server.numbers(), "yours": self._number}
    if not entry.id:
      raise Pi0RagError("an episode needs an id: any text that no other episode has")
    if entry.end is not None and entry.id not in server.log.open:
      if server.taught(entry.id):
        return {"id": entry.id, "records": [], "again": True}
      raise Pi0RagError(f"nothing is known of the episode '{messages.shown(entry.id)}'")
    episode = server.log.episode(entry.id)
    episode.task, episode.robot = entry.task or episode.task, entry.robot or episode.robot
    if entry.session is not None:
      server.attach(entry.session, entry.id)
    self._came_of_it(episode, entry)
    return server.learn(episode, entry.end) if entry.end is not None else {"id": entry.id}

  def _came_of_it(self, episode: Open, entry: Entry) -> None:
    """Books what was executed since the last answer that the robot has had."""
    if entry.decision is not None:
      if not 0 <= entry.decision <= len(episode.steps):
        raise Pi0RagError(f"the robot says that it has had {entry.decision} answers in the episode "
                          f"'{messages.shown(episode.id)}', of which {len(episode.steps)} are known here: begin a new "
                          "one")
      del episode.steps[entry.decision :]  # decided, but the answer never came
    if not episode.steps or episode.steps[-1].done_NA is not None:
      return
    space, last = self._agent.policy.space, episode.steps[-1]
    if entry.done is None:
      ticks = self._agent.policy.spec.execute_steps if entry.ticks is None else entry.ticks
      if not 0 <= ticks <= len(last.actions_TA):
        raise Pi0RagError(f"ticks is {ticks}, an answer has {len(last.actions_TA)} actions")
      done_NA = last.actions_TA[:ticks]
    else:
      done_NA = np.asarray(entry.done, np.float32)
      if done_NA.ndim != 2 or not 0 < len(done_NA) <= MAX_TICKS:
        raise Pi0RagError(f"done has shape {list(done_NA.shape)}, allowed: [n, {space.dim}], 1 to {MAX_TICKS} actions")
      lessons.check_limits(done_NA, space, f"done, in the episode '{messages.shown(episode.id)}'")
    self._server.log.came_of_it(episode, entry.by, done_NA)

  def _told(self, entry: Entry, observation: Mapping, said: dict[str, Any], answer: Mapping, decision: Decision
            ) -> dict[str, Any]:
    episode = self._server.log.episode(entry.id)
    self._decided(episode, observation, decision)
    told = {"surest": self._agent.surest(decision) or None, "asks": self._server.asks(episode.steps)}
    told = {name: value for name, value in told.items() if value is not None}
    return {**answer, ENTRY: {**said, "decision": len(episode.steps), **told}}

  def _decided(self, episode: Open, observation: Mapping, decision: Decision) -> None:
    if len(episode.steps) >= MAX_DECISIONS:
      raise Pi0RagError(f"the episode '{messages.shown(episode.id)}' has {MAX_DECISIONS} decisions, no more are kept: "
                        "end it")
    if episode.steps and episode.steps[-1].done_NA is None:  # a client that says nothing of what it did
      self._server.log.came_of_it(episode, POLICY,
                                  episode.steps[-1].actions_TA[: self._agent.policy.spec.execute_steps])
    observation, _ = realtime.split(observation)
    prompt = observation.get("prompt")
    episode.prompt = prompt if isinstance(prompt, str) else episode.prompt
    step = Step(episode.ticks, None, decision.key_BE[0], decision.base_BTA[0], decision.actions_BTA[0],
                int(decision.used_B[0]), decision.ids_BK[0], decision.weight_BK[0], decision.missed_deadline)
    if self._server.keeper is not None:
      self._server.keeper.saw(episode.id, len(episode.steps), observation)
    self._server.log.decided(episode, step)


def read(values: Any) -> Entry:
  """Returns the entry of a message. Errors: Pi0RagError that says what is wrong with it."""
  if not isinstance(values, Mapping):
    raise Pi0RagError(f"'{ENTRY}' is a map, got a {type(values).__name__}")
  given = {name: value for name, value in values.items() if name != "done"}
  try:
    entry = msgspec.convert(given, Entry)
  except (msgspec.MsgspecError, RecursionError) as error:
    raise Pi0RagError(f"'{ENTRY}': {messages.shown(error)}") from error
  texts = (entry.id, entry.task, entry.robot, *((entry.end.failure_kind, entry.end.note) if entry.end else ()))
  if wrong := next((text for text in texts if len(text) > MAX_TEXT or not text.isprintable()), None):
    raise Pi0RagError(f"'{ENTRY}': {messages.shown(wrong, 40)} is no name: at most {MAX_TEXT} printable characters")
  if entry.by not in ACTORS:
    raise unknown_name("actor ('by')", messages.shown(entry.by, 40), ACTORS)
  entry.done = values.get("done")
  return entry


def _done(step: Step) -> np.ndarray:
  return step.actions_TA[:0] if step.done_NA is None else step.done_NA
