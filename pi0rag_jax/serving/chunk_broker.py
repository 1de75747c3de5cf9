"""One action at a time from a policy that answers with chunks of them."""

import collections
import concurrent.futures
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pi0rag_jax.errors import Pi0RagError

ENTRY = "real_time"  # of an observation; `policy.realtime`, which a client has no use for, reads it
REMEMBERED = 10  # delays, of which the longest is expected next


class ChunkPolicy(Protocol):
  """A policy in this process or behind a server, as `serving.client.WebsocketClientPolicy`."""

  def infer(self, obs: Mapping, /) -> dict:
    """Returns `actions` [T, A] and whatever else the policy tells."""
    ...

  def reset(self) -> None:
    """Forgets the episode."""
    ...


class ActionChunkBroker:
  """Asks a policy once, then hands its answer out step by step, `action_horizon` times, as openpi's does.

  Every numpy array of the answer is cut along its first axis, whatever it means: `actions` [T, A] becomes [A], and a
  `state` [P], where a policy returns one, becomes its entry number t at step t. All else is repeated at every step.
  """

  def __init__(self, policy: ChunkPolicy, action_horizon: int):
    """Takes the policy, and how many steps of each chunk to execute before it is asked again."""
    if action_horizon < 1:
      raise Pi0RagError(f"action_horizon is {action_horizon}, must be 1 or more")
    self._policy = policy
    self._action_horizon = action_horizon
    self._answer: dict | None = None
    self._step = 0

  def infer(self, obs: Mapping) -> dict:
    """Returns the policy's answer at the current step; `obs` is looked at only when a chunk is used up.

    Errors: Pi0RagError for an array with fewer entries than `action_horizon`.
    """
    if self._answer is None:
      answer = self._policy.infer(obs)
      self._require_long_enough(answer)
      self._answer, self._step = answer, 0
    result = self._at_step(self._answer)
    self._step += 1
    if self._step == self._action_horizon:
      self._answer = None
    return result

  def reset(self) -> None:
    """Drops the rest of the chunk: the next episode starts with a new one."""
    self._policy.reset()
    self._answer = None

  def _at_step(self, node: Any) -> Any:
    """Returns a part of the answer with its arrays cut at the current step."""
    if isinstance(node, Mapping):
      return {key: self._at_step(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
      return type(node)([self._at_step(value) for value in node])
    return node[self._step, ...] if isinstance(node, np.ndarray) else node

  def _require_long_enough(self, node: Any, name: str = "the answer") -> None:
    if isinstance(node, Mapping):
      for key, value in node.items():
        self._require_long_enough(value, f"'{key}'")
    elif isinstance(node, list | tuple):
      for value in node:
        self._require_long_enough(value, name)
    elif isinstance(node, np.ndarray) and (node.ndim == 0 or len(node) < self._action_horizon):
      raise Pi0RagError(f"{name} has shape {node.shape} and is cut along its first axis, one entry per step: too short "
                        f"for action_horizon {self._action_horizon}")


class RealTimeChunkBroker:
  """Hands out one action a tick and asks for the next chunk meanwhile, so that the robot never stands still.

  A chunk's action of the tick at which it arrives is the first of it that is executed. With `real_time` the server is
  told how far the old one has come and how long the answer will take, in ticks: the longest of the last `REMEMBERED`
  times, so that the new chunk goes on from what was executed until then.
  """

  def __init__(self, policy: ChunkPolicy, execute_steps: int, *, real_time: bool = True):
    """Takes the parts.

    Args:
      execute_steps: ticks after which the next chunk is asked for, if the last one is there.
      real_time: the server was started with `--real_time`; another one knows no such entry.
    """
    if execute_steps < 1:
      raise Pi0RagError(f"execute_steps is {execute_steps}, must be 1 or more")
    self._policy, self._execute_steps, self._real_time = policy, execute_steps, real_time
    self._asking = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="chunks")
    self.waits = 0  # ticks at which a chunk was used up before the next one was there
    self.delays: collections.deque[int] = collections.deque(maxlen=REMEMBERED)  # of the last chunks, in ticks
    self._begin()

  def _begin(self) -> None:
    self._tick, self._chunk_TA, self._from = 0, np.zeros((0, 0)), 0
    self._pending: concurrent.futures.Future[dict] | None = None
    self._asked = 0  # tick of the observation that is being answered

  def infer(self, obs: Mapping) -> np.ndarray:
    """Returns the action [A] of this tick; `obs` is sent where the next chunk is due.

    Waits where there is none: at an episode's beginning, and when the policy is too slow. Errors: as the policy's.
    """
    if self._pending is None and (not len(self._chunk_TA) or self._tick - self._from >= self._execute_steps):
      self._ask(obs)
    used_up = self._tick - self._from >= len(self._chunk_TA)
    self.waits += used_up and self._tick > 0
    if self._pending is not None and (used_up or self._pending.done()):
      self._take()
    action_A = self._chunk_TA[min(self._tick - self._from, len(self._chunk_TA) - 1)]
    self._tick += 1
    return action_A

  def _ask(self, obs: Mapping) -> None:
    if self._real_time and len(self._chunk_TA):
      passed = self._tick - self._from
      delay = min(max(self.delays, default=0), max(len(self._chunk_TA) - passed, 0))
      obs = {**obs, ENTRY: {"passed": min(passed, len(self._chunk_TA)), "delay": delay}}
    self._asked, self._pending = self._tick, self._asking.submit(self._policy.infer, obs)

  def _take(self) -> None:
    assert self._pending is not None
    pending, self._pending = self._pending, None
    chunk_TA = np.asarray(pending.result()["actions"])
    if len(self._chunk_TA):
      self.delays.append(self._tick - self._asked)
    self._chunk_TA, self._from = chunk_TA, self._asked

  def reset(self) -> None:
    """Begins another episode: what is under way is waited for and dropped."""
    if self._pending is not None:
      concurrent.futures.wait([self._pending])
    self._policy.reset()
    self._begin()

  def close(self) -> None:
    """Ends the thread, after what it does now."""
    self._asking.shutdown()
