"""Decisions for several robots at once: one call of the policy, though their prompts and cameras differ."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.policy import padded_size
from pi0rag_jax.policy.realtime import Overlap
from pi0rag_jax.steering.agent import Agent, Ask, Clock, Decision, Talk

Answer = tuple[dict, Decision] | Exception
_ROWS = ("actions_BTA", "base_BTA", "key_BE", "used_B", "ids_BK", "weight_BK", "distance_BK", "kind_BK")


@dataclasses.dataclass(frozen=True)
class _Asked:
  """An observation among others."""

  place: int
  session: Agent
  sample: dict
  overlap: Overlap | None


def alone(talk: Talk) -> Any:
  """Returns what a session answers that is decided for by itself. Errors: as the talk's and `Agent.answer`'s."""
  try:
    session, observation = next(talk)
    talk.send(session.answer(observation))
  except StopIteration as end:
    return end.value
  raise RuntimeError("a session asks once for each message")


def answers(asks: Sequence[Ask]) -> list[Answer]:
  """Returns what `Agent.answer` gives each of an agent's sessions; those with the same entries are decided together.

  What fails for one alone has its error instead.
  """
  if len(asks) == 1:  # as it would be without others, to the bit
    try:
      return [asks[0][0].answer(asks[0][1])]
    except Exception as error:
      return [error]
  found: dict[int, Answer] = {}
  alike: dict[Any, list[_Asked]] = collections.defaultdict(list)
  for place, (session, observation) in enumerate(asks):
    try:
      asked = _Asked(place, session, *session.prepared(observation))
    except Exception as error:  # whatever it is, the others are answered
      found[place] = error
    else:
      alike[_entries(asked.sample)].append(asked)
  for together in alike.values():
    try:
      found |= _decided(together)
    except Exception as error:
      found |= dict.fromkeys((asked.place for asked in together), error)
  return [found[place] for place in range(len(asks))]


def _decided(together: Sequence[_Asked]) -> dict[int, Answer]:
  agent, batch, clock = together[0].session, len(together), Clock()
  rows = [*together, *[together[-1]] * (padded_size(batch) - batch)]
  inputs = agent.policy.batch([asked.sample for asked in rows])
  carry = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(asked.session.carry for asked in rows))
  carry, decision = agent.decided(carry, inputs, batch, [asked.overlap for asked in together], clock)
  found: dict[int, Answer] = {}
  for asked, row in zip(together, range(batch)):
    own = dataclasses.replace(decision, **{name: getattr(decision, name)[row : row + 1] for name in _ROWS})
    try:
      found[asked.place] = asked.session.answered(_row(carry, row), own)
    except Pi0RagError as error:
      found[asked.place] = error
  return found


def _row(carry: Any, row: int) -> Any:
  return jax.tree.map(lambda array: array[row : row + 1], carry)


def _entries(sample: Mapping) -> tuple:
  """Returns what samples of one batch have in common."""
  return tuple((jax.tree_util.keystr(path), np.shape(leaf))
               for path, leaf in jax.tree_util.tree_leaves_with_path(dict(sample)))
