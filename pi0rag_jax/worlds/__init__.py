"""Worlds: what can be stepped, families of them, batches, rollouts and episodes."""

from pi0rag_jax.worlds.backend import select_backend

# Before any family, or a package that it wraps, imports mujoco.
select_backend()
