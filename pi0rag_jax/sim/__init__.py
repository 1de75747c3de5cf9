"""Robot simulation: MuJoCo physics, scenes, tasks with scripted experts, and a gymnasium environment."""

from pi0rag_jax.worlds.backend import select_backend

# Before any module of this package imports mujoco.
select_backend()
