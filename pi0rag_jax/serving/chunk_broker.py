"""One action at a time from a policy that answers with chunks of them."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pi0rag_jax.errors import Pi0RagError


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
