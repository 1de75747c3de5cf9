"""The package's face: every name that it offers is there, and none is left out of `__all__`."""

import pi0rag_jax


def test_every_name_is_there():
  assert set(pi0rag_jax.__all__) == set(pi0rag_jax._HOMES) == set(dir(pi0rag_jax))
  assert all(getattr(pi0rag_jax, name).__module__.startswith("pi0rag_jax.") for name in pi0rag_jax.__all__)
