"""A server that learns: episodes over the wire, and what they teach its memory.

An observation may have one more entry, `"episode"`, which openpi's clients never send (`Entry` has its fields): which
episode it belongs to, what was executed since the last answer and by whom, and how the episode ended. A message may
also have this entry alone. An end is answered once what it taught is durable; what is under way is on disk too, so that
a robot whose server was killed goes on in the same episode.
"""

import dataclasses
import functools
import weakref
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax.data.validation import ACTORS, POLICY
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning import asking, lessons
from pi0rag_jax.learning.kept import Ending, Keeper
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.memory import forgetting
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.tokens import token_of
from pi0rag_jax.policy import realtime
from pi0rag_jax.serving import messages
from pi0rag_jax.serving.episode_log import EpisodeLog, Open, done, origin
from pi0rag_jax.serving.labels import Label, Labels
from pi0rag_jax.steering import together
from pi0rag_jax.steering.agent import Agent, Decision, Talk
from pi0rag_jax.worlds.episode import Job, Step, Trace

ENTRY = "episode"
MAX_DECISIONS, MAX_TICKS = 4096, 1 << 16  # of an episode
MAX_TEXT = 200  # characters of a name


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
  teacher: str = ""  # who helps, if anybody does
  decision: int | None = None  # answers that the robot has had in this episode; where an observation comes along
  done: Any = None  # float[n, A], executed since the last answer, in the robot's units
  ticks: int | None = None  # instead of `done`: how many actions of the answer; None is the policy's own number
  by: str = POLICY  # who acted, one of ACTORS
  end: End | None = None
  undo: str | None = None  # an episode that is to be as if it had not been
  forget: list[int] = []  # records, by their ids
  label: Label | None = None  # what should have been done at a moment of an episode that is over
  session: int | None = None  # of another connection, whose observations belong to this episode from now on
  sessions: bool = False  # asks which there are


class Teachable:
  """An agent whose memory learns from the episodes of its clients, all of whom share it. For one thread, but for what
  is to be done `Later`, and `label`, `undo` and `forget`.
  """

  def __init__(self, agent: Agent, memory: Memory, log: EpisodeLog, keeper: Keeper | None = None):
    self.agent, self._memory, self.log, self.keeper = agent, memory, log, keeper
    self._config = CorrectionConfig()
    policy, folder = agent.policy, None if keeper is None else str(keeper.folder)
    self.labels = Labels(log.path, policy.robot, policy.space, policy.chunk_shape[0], policy=policy, episodes=folder)
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
    trace = Trace(Job(0, 0), episode.prompt, [step for step in steps if len(done(step))],  # the last may have none
                  outcome="success" if end.success else "failure", ticks=episode.ticks)
    said = {**origin(episode.id, episode.robot, episode.teacher), **({"note": end.note} if end.note else {})}
    context = RecordContext(episode.task, episode.prompt, said, end.failure_kind)
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

    return messages.Later(commit, lambda: self._over(episode.id, end.failure_kind))

  def _over(self, name: str, failure_kind: str) -> None:
    self.log.over(name, failure_kind)
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

  def label(self, label: Label) -> dict[str, Any]:
    """Returns which record came of a person's label, once it is durable. Errors: as `Labels.teach`."""
    taught = self.labels.teach(self._memory, label)
    self._asking = self._asker.asking()
    return taught

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
    if seen and (not entry.id or entry.end is not None or entry.undo is not None or entry.forget or entry.sessions
                 or entry.label is not None):
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
    if entry.label is not None:
      return messages.Later(functools.partial(server.label, entry.label))
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
    episode.teacher = entry.teacher or episode.teacher
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
  texts = (entry.id, entry.task, entry.robot, entry.teacher,
           *((entry.end.failure_kind, entry.end.note) if entry.end else ()))
  if wrong := next((text for text in texts if len(text) > MAX_TEXT or not text.isprintable()), None):
    raise Pi0RagError(f"'{ENTRY}': {messages.shown(wrong, 40)} is no name: at most {MAX_TEXT} printable characters")
  if entry.by not in ACTORS:
    raise unknown_name("actor ('by')", messages.shown(entry.by, 40), ACTORS)
  entry.done = values.get("done")
  return entry
