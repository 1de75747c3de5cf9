"""Taking back what an episode taught, by its name."""

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import DamagedError


def token_of(episode: str) -> str:
  """Returns the token of what an episode over the wire taught."""
  return f"episode {episode}"


def undo_episode(memory: Memory, episode: str) -> list[int]:
  """Returns which records of an episode were taken back.

  The last one is taken back whole, with what it counted and evicted; of an earlier one the records go.
  Errors: Pi0RagError for an episode that taught nothing.
  """
  ids = memory.of_episode(episode)
  if not ids and token_of(episode) not in memory.tokens():
    raise Pi0RagError(f"no record comes of the episode '{episode}'")
  try:
    memory.undo(token_of(episode))
  except DamagedError:
    raise
  except Pi0RagError:  # it is not the last change
    memory.remove(ids)
  return ids


def forget(memory: Memory, ids: list[int]) -> list[int]:
  """Returns which records were removed. Errors: Pi0RagError for ids that are not there; nothing is removed then."""
  memory.get(ids)
  memory.remove(ids)
  return ids
