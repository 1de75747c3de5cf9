"""Answers of a policy server, for one client or for all who ask within a window.

What a session does between a message and its answer is on the policy's thread: it reads the message, asks for a
decision, and makes the answer of that. Only decisions are made together.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages
from pi0rag_jax.steering import together

MOST = 16  # decided at a time; who asked first comes first
SIZES = (2, 4, 8, 16)  # to which batches are padded


@dataclasses.dataclass
class Turn:
  """A client's message until it is answered."""

  session: Any
  more_timing: Mapping[str, float]
  wanted: Callable[[], bool] = lambda: True  # False once the client is gone
  told: Callable[[Mapping, float], object] = lambda values, seconds: None  # hears of an answer, and how long it took
  began_s: float = 0.0
  talk: Generator[Any, Any, Any] | None = None
  ask: Any = None  # what the session asks an agent, until there is an answer
  answer: bytes | messages.Later = b""

  def begin(self, request) -> "Turn":
    """Reads a packed observation; the session either asks for a decision now, or has its answer."""
    observation = messages.unpack(request)
    if not isinstance(observation, dict):
      raise Pi0RagError(f"a request is a map, the observation; got a {type(observation).__name__}")
    self.began_s = time.perf_counter()
    if not hasattr(self.session, "talk"):
      self._end(self.session.infer(observation))
      return self
    self.talk = talk = self.session.talk(observation)
    try:
      self.ask = next(talk)
    except StopIteration as end:
      self._end(end.value)
    return self

  def go_on(self, answer: together.Answer) -> None:
    """Gives the session the decision that it asked for. Errors: its own, and the decision's."""
    assert self.talk is not None
    try:
      if isinstance(answer, Exception):
        self.talk.throw(answer)
      else:
        self.talk.send(answer)
    except StopIteration as end:
      self._end(end.value)

  def alone(self, request) -> "Turn":
    """Reads a message and answers it."""
    self.begin(request)
    if self.ask is not None:
      self.go_on(*together.answers([self.ask]))
    return self

  def _end(self, values: Mapping | messages.Later) -> None:
    self.answer = values if isinstance(values, messages.Later) else self.packed(values)

  def packed(self, values: Mapping) -> bytes:
    """Returns the bytes of an answer."""
    seconds = time.perf_counter() - self.began_s
    self.told(values, seconds)
    infer_ms = seconds * 1000
    return messages.pack({**values, "server_timing": {"infer_ms": infer_ms, **self.more_timing}})


def decide(turns: Sequence[Turn]) -> list[Exception | None]:
  """Answers turns that wait for a decision; returns what went wrong with each."""
  wrong: list[Exception | None] = []
  for turn, answer in zip(turns, together.answers([turn.ask for turn in turns])):
    try:
      turn.go_on(answer)
      wrong.append(None)
    except Exception as error:  # whatever it is, the other clients are answered
      wrong.append(error)
  return wrong


class Batches:
  """Lets clients wait for each other, at most a window long, and decides for all of them at once."""

  def __init__(self, worker: concurrent.futures.Executor, window_s: float):
    self._worker, self._window_s = worker, window_s
    self._waiting: collections.deque[tuple[Turn, asyncio.Future]] = collections.deque()
    self._woken = asyncio.Event()

  async def answer(self, turn: Turn, request) -> bool:
    """Returns once a turn has its answer; False if its client went before it was its turn. Errors: as `Turn.alone`."""
    await asyncio.get_running_loop().run_in_executor(self._worker, turn.begin, request)
    if turn.ask is None:
      return True
    decided = asyncio.get_running_loop().create_future()
    self._waiting.append((turn, decided))
    self._woken.set()
    return await decided

  async def run(self) -> None:
    """Decides for whoever waits, until it is cancelled."""
    while True:
      await self._woken.wait()
      await asyncio.sleep(self._window_s)
      taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
      if not self._waiting:
        self._woken.clear()
      here = [(turn, decided) for turn, decided in taken if turn.wanted()]
      for turn, decided in taken:
        if not turn.wanted() and not decided.done():
          decided.set_result(False)
      if not here:
        continue
      try:
        wrong = await asyncio.get_running_loop().run_in_executor(self._worker, decide, [turn for turn, _ in here])
      except Exception as error:  # a batch that cannot even be told apart
        wrong = [error] * len(here)
      for (_, decided), error in zip(here, wrong):
        with contextlib.suppress(asyncio.InvalidStateError):  # who waited was cancelled
          decided.set_result(True) if error is None else decided.set_exception(error)
