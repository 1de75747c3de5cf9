"""Tests of the OpenGL backend choice, which happens once, before mujoco is imported."""

import os
import subprocess
import sys

import pytest


def test_keeps_the_users_choice_and_mujoco_imports_without_opengl():
  code = "import os, pi0rag_jax.sim, mujoco; print(os.environ['MUJOCO_GL'])"
  environment = {**os.environ, "MUJOCO_GL": "disabled"}
  done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "disabled"


@pytest.mark.parametrize("renders", [True, False])
def test_takes_the_first_backend_that_renders(monkeypatch, renders):
  from pi0rag_jax.worlds import backend

  monkeypatch.delenv("MUJOCO_GL", raising=False)
  monkeypatch.delitem(sys.modules, "mujoco")
  monkeypatch.setattr(backend, "_loads", lambda name: True)
  monkeypatch.setattr(backend, "_renders", lambda name: renders and name == "osmesa")
  assert backend.select_backend() == ("osmesa" if renders else "disabled")
  assert os.environ["MUJOCO_GL"] == ("osmesa" if renders else "disabled")


def test_a_missing_library_warns_instead_of_crashing(monkeypatch):
  from pi0rag_jax.worlds import backend

  monkeypatch.setenv("MUJOCO_GL", "egl")
  monkeypatch.delitem(sys.modules, "mujoco")
  monkeypatch.setattr(backend, "_loads", lambda name: False)
  with pytest.warns(UserWarning, match=r"MUJOCO_GL=egl has no library here.*apt-get install"):
    assert backend.select_backend() == "disabled"

