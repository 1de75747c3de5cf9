"""One action at a time from a policy that answers with chunks of them."""

import collections
import concurrent.futures
import functools
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from pi0rag_jax.errors import Pi0RagError

ENTRY = "real_time"  # of an observation; `policy.realtime`, which a client has no use for, reads it
REMEMBERED = 10  # delays, of which the longest is expected next


class Answering(Protocol):
  """Whatever can be asked for a chunk."""

  def infer(self, obs: Mapping, /) -> dict:
    """Returns `actions` [T, A] and whatever else the policy tells."""
    ...


class ChunkPolicy(Answering, Protocol):
  """A policy in this process or behind a server, as `serving.client.WebsocketClientPolicy`."""

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


class Chunks:
  """Which action is due, of chunks that are asked for while the ones before them are executed. Nothing here waits.

  Time is counted in ticks, of which one passes with every action that is executed. The first action of a new chunk that
  is executed is that of the tick at which it is there.
  """

  def __init__(self, policy: Answering, execute_steps: int, *, real_time: bool = False, apart: bool = True):
    """Takes the parts.

    Args:
      execute_steps: ticks after which the next chunk is due; `steps` may be changed at any time.
      real_time: the policy is told how far the old chunk has come and how long the answer will take, in ticks: the
        longest of the last `REMEMBERED` times, so that the new one goes on from what was executed until then.
      apart: the policy thinks on a thread of its own; else `ask` returns once it has answered.
    """
    if execute_steps < 1:
      raise Pi0RagError(f"execute_steps is {execute_steps}, must be 1 or more")
    self._policy, self.steps, self._real_time = policy, execute_steps, real_time
    self._thread = _Thread() if apart else None
    self.delays: collections.deque[int] = collections.deque(maxlen=REMEMBERED)  # of the last chunks, in ticks
    self.pending: concurrent.futures.Future[dict] | None = None
    self.begin()

  def begin(self) -> None:
    """Forgets everything but the delays: an episode begins. What is under way is waited for and dropped."""
    if self.pending is not None:
      concurrent.futures.wait([self.pending])
    self.tick, self.chunk_TA = 0, np.zeros((0, 0))
    self.start = 0  # the tick of the chunk's first action
    self.pending = None
    self.asked = 0  # tick of the observation that was sent last
    self._too_old = False  # whether its answer is to be executed no more

  @property
  def due(self) -> bool:
    """Whether the next chunk is to be asked for now."""
    ahead = min(self.steps, max(1, len(self.chunk_TA) - max(self.delays, default=0)))
    return self.pending is None and (not len(self.chunk_TA) or self.tick - self.start >= ahead)

  def ask(self, obs: Mapping) -> None:
    """Sends the observation of this tick."""
    if self._real_time and len(self.chunk_TA):
      passed = self.tick - self.start
      delay = min(max(self.delays, default=0), max(len(self.chunk_TA) - passed, 0))
      obs = {**obs, ENTRY: {"passed": min(passed, len(self.chunk_TA)), "delay": delay}}
    self.asked, self.pending = self.tick, self.apart(lambda: self._policy.infer(obs))

  def apart(self, work: Callable[[], Any]) -> concurrent.futures.Future:
    """Returns what comes of something that asks the policy, after what was asked before."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    job = functools.partial(_fulfil, future, work)
    job() if self._thread is None else self._thread.jobs.put(job)
    return future

  def arrived(self) -> dict | None:
    """Returns the answer, once, that is there since the last call; None where there is none. Errors: the policy's."""
    if self.pending is None or not self.pending.done():
      return None
    pending, self.pending, too_old, self._too_old = self.pending, None, self._too_old, False
    answer = pending.result()
    if len(self.chunk_TA):
      self.delays.append(self.tick - self.asked)
    self.chunk_TA, self.start = np.asarray(answer["actions"]), self.asked
    if too_old:
      self.drop()
    return answer

  def action(self) -> np.ndarray | None:
    """Returns the action [A] of this tick; None where no chunk reaches that far."""
    return self.chunk_TA[self.tick - self.start] if self.tick - self.start < len(self.chunk_TA) else None

  def passed(self) -> None:
    """An action was executed, the chunk's or another one."""
    self.tick += 1

  def drop(self) -> None:
    """What was planned is not to be executed any more, nor what is under way: one that is asked for now is due."""
    self.start, self._too_old = self.tick - len(self.chunk_TA), self.pending is not None

  def close(self) -> None:
    """Ends the thread, after what it does now; it does not keep a process alive."""
    if self._thread is not None:
      self._thread.jobs.put(None)


class _Thread:
  """Does one thing after the other, as long as somebody waits for it."""

  def __init__(self):
    self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    threading.Thread(target=self._work, name="chunks", daemon=True).start()

  def _work(self) -> None:
    while (job := self.jobs.get()) is not None:
      job()


def _fulfil(future: concurrent.futures.Future, work: Callable[[], Any]) -> None:
  try:
    future.set_result(work())
  except Exception as error:  # for who asks for the result
    future.set_exception(error)


class RealTimeChunkBroker:
  """Hands out one action a tick and asks for the next chunk meanwhile, so that the robot never stands still."""

  def __init__(self, policy: ChunkPolicy, execute_steps: int, *, real_time: bool = True):
    """Takes the parts.

    Args:
      execute_steps: ticks after which the next chunk is asked for, if the last one is there.
      real_time: the server was started with `--real_time`; another one knows no such entry.
    """
    self.chunks = Chunks(policy, execute_steps, real_time=real_time)
    self._policy = policy
    self.waits = 0  # ticks at which a chunk was used up before the next one was there

  def infer(self, obs: Mapping) -> np.ndarray:
    """Returns the action [A] of this tick; `obs` is sent where the next chunk is due.

    Waits where there is none: at an episode's beginning, and when the policy is too slow. Errors: as the policy's.
    """
    chunks = self.chunks
    if chunks.due:
      chunks.ask(obs)
    if chunks.action() is None and chunks.pending is not None:
      self.waits += chunks.tick > 0
      concurrent.futures.wait([chunks.pending])
    chunks.arrived()
    action_A = chunks.action()
    chunks.passed()
    return chunks.chunk_TA[-1] if action_A is None else action_A

  def reset(self) -> None:
    """Begins another episode: what is under way is waited for and dropped."""
    self.chunks.begin()
    self._policy.reset()

  def close(self) -> None:
    """Ends the thread, after what it does now."""
    self.chunks.close()
