"""What the control loop asks for chunks: a policy here or behind a server, which learns or does not."""

import uuid
from collections.abc import Mapping

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving.chunk_broker import ChunkPolicy
from pi0rag_jax.serving.session import Teachable
from pi0rag_jax.serving.teaching import Teaching


class Untaught:
  """A policy that learns nothing of what becomes of its chunks."""

  def __init__(self, policy: ChunkPolicy):
    self._policy = policy

  @property
  def connected(self) -> bool:
    """Whether it can be asked: False for a server that is gone."""
    return getattr(self._policy, "connected", True)

  def begin(self, episode: str = "", *, task: str = "", robot: str = "", teacher: str = "") -> str:
    """Returns the id of an episode that begins."""
    del task, robot, teacher
    self._policy.reset()
    return episode or uuid.uuid4().hex

  def infer(self, obs: Mapping) -> dict:
    """Returns its answer."""
    return self._policy.infer(obs)

  def did(self, actions=None, *, ticks: int | None = None, by: str = "policy") -> None:
    """Nobody listens."""

  def end(self, success: bool, *, failure_kind: str = "", note: str = "") -> dict:
    """Returns that nothing was taught."""
    del success, failure_kind, note
    return {"records": []}

  def undo(self, episode: str) -> dict:
    """Raises Pi0RagError."""
    raise Pi0RagError(f"the episode '{episode}' taught nothing: the policy does not learn")


class TaughtHere(Teaching):
  """A policy in this process that learns, as `serving.client.TeachingClient` does behind a server."""

  connected = True

  def __init__(self, taught: Teachable):
    super().__init__()
    self._taught, self._session = taught, taught.session()

  def begin(self, episode: str = "", *, task: str = "", robot: str = "", teacher: str = "",
            session: int | None = None) -> str:
    """See Teaching; what a policy remembers of the episode before is forgotten."""
    self._session = self._taught.session()
    return super().begin(episode, task=task, robot=robot, teacher=teacher, session=session)

  def _ask(self, message: Mapping) -> dict:
    return dict(self._session.infer(message))
