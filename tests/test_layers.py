"""Imports point downward: one test for the whole tree (DESIGN in WORKSPACE.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = {"pi0rag_jax", "pi0rag_jax.typing", "pi0rag_jax.errors", "pi0rag_jax.files", "pi0rag_jax.cli",
          "pi0rag_jax.statistics", "pi0rag_jax.anytime", "pi0rag_jax.schema", "pi0rag_jax.cluster", "pi0rag_jax.crew"}
# What each layer may import of ours, beside itself and SHARED.
ALLOWED = {
    "pi0rag_jax.models": set(),
    "pi0rag_jax.pages": set(),
    "pi0rag_jax.memory": set(),
    "pi0rag_jax.openpi": {"pi0rag_jax.models"},
    "pi0rag_jax.robots": {"pi0rag_jax.models", "pi0rag_jax.openpi"},
    "pi0rag_jax.data": {"pi0rag_jax.robots"},
    "pi0rag_jax.policy": {"pi0rag_jax.models", "pi0rag_jax.openpi", "pi0rag_jax.robots"},
    "pi0rag_jax.steering": {"pi0rag_jax.models", "pi0rag_jax.robots", "pi0rag_jax.memory", "pi0rag_jax.policy"},
    # Demonstrations are written in both.
    "pi0rag_jax.worlds": {"pi0rag_jax.steering", "pi0rag_jax.policy", "pi0rag_jax.robots", "pi0rag_jax.data",
                          "pi0rag_jax.openpi"},
    "pi0rag_jax.sim": {"pi0rag_jax.data", "pi0rag_jax.robots", "pi0rag_jax.worlds"},  # one family of worlds
    "pi0rag_jax.learning": {"pi0rag_jax.robots", "pi0rag_jax.steering", "pi0rag_jax.policy", "pi0rag_jax.memory",
                            "pi0rag_jax.data", "pi0rag_jax.worlds"},
    "pi0rag_jax.curation": {"pi0rag_jax.models", "pi0rag_jax.openpi", "pi0rag_jax.robots", "pi0rag_jax.policy",
                            "pi0rag_jax.steering", "pi0rag_jax.data", "pi0rag_jax.worlds", "pi0rag_jax.sim",
                            "pi0rag_jax.pages"},
    # It shows what the others do.
    "pi0rag_jax.study": {"pi0rag_jax.models", "pi0rag_jax.robots", "pi0rag_jax.memory", "pi0rag_jax.policy",
                         "pi0rag_jax.steering", "pi0rag_jax.worlds", "pi0rag_jax.learning", "pi0rag_jax.pages"},
    "pi0rag_jax.serving": {"pi0rag_jax.policy", "pi0rag_jax.openpi", "pi0rag_jax.robots", "pi0rag_jax.memory",
                           "pi0rag_jax.steering", "pi0rag_jax.data", "pi0rag_jax.worlds", "pi0rag_jax.learning",
                           "pi0rag_jax.pages"},
    "pi0rag_jax.control": {"pi0rag_jax.openpi", "pi0rag_jax.robots", "pi0rag_jax.policy", "pi0rag_jax.steering",
                           "pi0rag_jax.data", "pi0rag_jax.worlds", "pi0rag_jax.learning", "pi0rag_jax.serving"},
    "pi0rag_jax.console": {"pi0rag_jax.robots", "pi0rag_jax.policy", "pi0rag_jax.steering", "pi0rag_jax.data",
                           "pi0rag_jax.worlds", "pi0rag_jax.serving", "pi0rag_jax.pages", "pi0rag_jax.control"},
    "train": {"pi0rag_jax.models", "pi0rag_jax.openpi", "pi0rag_jax.robots", "pi0rag_jax.policy", "pi0rag_jax.data",
              "pi0rag_jax.sim", "pi0rag_jax.worlds", "pi0rag_jax.curation", "pi0rag_jax.learning",
              "pi0rag_jax.steering"},
    # Recorded training steps.
    "eval": {"pi0rag_jax.models", "pi0rag_jax.openpi", "pi0rag_jax.robots", "pi0rag_jax.policy", "pi0rag_jax.memory",
             "pi0rag_jax.data", "pi0rag_jax.steering", "pi0rag_jax.worlds", "pi0rag_jax.learning", "pi0rag_jax.sim",
             "pi0rag_jax.curation", "pi0rag_jax.pages", "pi0rag_jax.serving", "pi0rag_jax.control", "train"},
}
# They show all: the names that users import, and the commands that look after a memory or a policy.
FACES = {ROOT / "pi0rag_jax" / "__init__.py", ROOT / "pi0rag_jax" / "memory" / "__main__.py",
         ROOT / "pi0rag_jax" / "policy" / "__main__.py", ROOT / "pi0rag_jax" / "sim" / "teach.py",
         ROOT / "pi0rag_jax" / "robots" / "run.py"}


def layer(module: str) -> str:
  parts = module.split(".")
  return ".".join(parts[:2]) if parts[0] == "pi0rag_jax" else parts[0]


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      yield from names if node.module in ("pi0rag_jax", "train", "eval") else [node.module]


def files():
  for folder in ("pi0rag_jax", "train", "eval"):
    yield from sorted(set((ROOT / folder).rglob("*.py")) - FACES)


@pytest.mark.parametrize("path", list(files()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
  here = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
  for module in imports(path):
    target = layer(module)
    if target not in ALLOWED or target == here or module in SHARED:
      continue
    assert target in ALLOWED.get(here, set()), f"{here} must not import {module}"
