"""Taking back what an episode taught, by its name."""

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import DamagedError
from pi0rag_jax.memory.tokens import tells_of


def undo_episode(memory: Memory, episode: str) -> list[int]:
  """Returns which records of an episode were taken back.

  The last one is taken back whole, with what it counted and evicted and what it was labelled with since; of an earlier
  one the records go. Errors: Pi0RagError for an episode that taught nothing.
  """
  ids = memory.of_episode(episode)
  tokens = [token for token in memory.tokens() if tells_of(token, episode)]
  if not ids and not tokens:
    raise Pi0RagError(f"no record comes of the episode '{episode}'")
  try:
    for token in reversed(tokens):
      memory.undo(token)
  except DamagedError:
    raise
  except Pi0RagError:  # it is not the last change
    memory.remove(ids, episode=episode)
  return ids


def forget(memory: Memory, ids: list[int]) -> list[int]:
  """Returns which records were removed. Errors: Pi0RagError for ids that are not there; nothing is removed then."""
  memory.get(ids)
  memory.remove(ids)
  return ids
