"""What a robot says that teaches while it works, as the entry of `serving.session` in its messages."""

import abc
import uuid
from collections.abc import Mapping, Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError


class ServerError(Pi0RagError, RuntimeError):
  """The server failed at an inference. A RuntimeError too, which is what openpi's client raises."""


class Teaching(abc.ABC):
  """Keeps count of an episode's decisions; whoever inherits sends the messages.

      policy.begin(task="pick up the cube")
      while not done:
        chunk_TA = policy.infer(observation)["actions"]
        policy.did(executed_NA, by="human")  # only where somebody else acted, or not all of the chunk was executed
      policy.end(success=True)
  """

  def __init__(self):
    self._episode: dict = {}  # what each message says of the episode under way
    self._did: dict = {}  # since the last answer
    self._decisions = 0

  @abc.abstractmethod
  def _ask(self, message: Mapping) -> dict:
    """Returns the answer to a message."""

  def begin(self, episode: str = "", *, task: str = "", robot: str = "", teacher: str = "",
            session: int | None = None) -> str:
    """Returns the id of an episode that begins now; one that is under way is given up.

    Args:
      episode: an id that no other episode has; '' makes one.
      task, robot, teacher: names, for whoever looks into the memory; who helps is the teacher.
      session: of another connection, of a robot that knows nothing of episodes: its observations belong to this one.
    """
    self._episode = {"id": episode or uuid.uuid4().hex, "task": task, "robot": robot,
                     **({"teacher": teacher} if teacher else {})}
    self._did, self._decisions = {}, 0
    if session is not None:
      self._tell({**self._episode, "session": session})
    return self._episode["id"]

  def infer(self, obs: Mapping) -> dict:
    """Returns the policy's answer, as of any client; in an episode its `episode` says which record was the surest, and
    whether somebody should look (`asks`), once the memory knows enough to tell."""
    if not self._episode:
      return self._ask(obs)
    answer = self._ask({**obs, "episode": {**self._episode, **self._did, "decision": self._decisions}})
    if "episode" not in answer:
      raise ServerError("this server does not learn: start it with --learn")
    self._did, self._decisions = {}, self._decisions + 1
    return answer

  def did(self, actions=None, *, ticks: int | None = None, by: str = "policy") -> None:
    """Says what was executed since the last answer: by default the policy's own number of its actions.

    Args:
      actions: float[n, A] in the robot's units.
      ticks: instead of `actions`, how many of the answer's.
      by: 'policy', 'human' or 'expert'.
    """
    said = {"by": by, "done": None if actions is None else np.asarray(actions, np.float32), "ticks": ticks}
    self._did = {name: value for name, value in said.items() if value is not None}

  def end(self, success: bool, *, failure_kind: str = "", note: str = "") -> dict:
    """Returns the `records` that the episode taught, once they are durable."""
    said = {**self._episode, **self._did, "end": {"success": success, "failure_kind": failure_kind, "note": note}}
    told = self._tell(said | ({"decision": self._decisions} if self._decisions else {}))
    self._episode, self._did = {}, {}
    return told

  def undo(self, episode: str) -> dict:
    """Returns the records of an episode that were `forgotten`."""
    return self._tell({"undo": episode})

  def forget(self, records: Sequence[int]) -> dict:
    """Returns the records that were `forgotten`, by their ids."""
    return self._tell({"forget": [int(record) for record in records]})

  def label(self, episode: str, tick: int, chunk) -> dict:
    """Returns the `records` that came of a label, once they are durable.

    Args:
      episode: one that is over.
      tick: when the policy decided, in control ticks since the episode's beginning.
      chunk: float[T, A] in the robot's units, what should have been done from there on.
    """
    said = {"episode": episode, "tick": int(tick), "chunk": np.asarray(chunk, np.float32)}
    return self._tell({"label": said})

  def sessions(self) -> dict:
    """Returns the `sessions` that are connected, and which of them is `yours`."""
    return self._tell({"sessions": True})

  def _tell(self, entry: Mapping) -> dict:
    answer = self._ask({"episode": entry})
    if "episode" not in answer:
      raise ServerError("this server does not learn: start it with --learn")
    return answer["episode"]
