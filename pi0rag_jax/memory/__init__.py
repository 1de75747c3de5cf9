"""A durable memory of corrections and anchors, searched by key. `memory.bridge` feeds it to jax."""

from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.neighbours import Neighbours
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, KINDS, OUTCOMES, SOURCES, Header, Record
from pi0rag_jax.memory.sqlite_store import SqliteStore
from pi0rag_jax.memory.store import Store

__all__ = [
  "ANCHOR",
  "CORRECTION",
  "FAILURE",
  "KINDS",
  "OUTCOMES",
  "SOURCES",
  "Header",
  "Memory",
  "Neighbours",
  "Record",
  "SqliteStore",
  "Store",
]
