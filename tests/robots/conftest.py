"""openpi's recorded transforms: `recorded/` is a compact copy of the reference's table, with its small tokenizers."""

import json
import pathlib

import numpy as np
import pytest

RECORDED = pathlib.Path(__file__).parent / "recorded"
TOKENIZERS = RECORDED / "tokenizer"
ARRAY = "npz:"


@pytest.fixture(scope="session")
def recorded():
  """The table of cases, arrays in place of their names."""
  arrays = np.load(RECORDED / "transforms.npz")

  def resolve(node):
    if isinstance(node, dict):
      return {key: resolve(value) for key, value in node.items()}
    if isinstance(node, list):
      return [resolve(value) for value in node]
    named = isinstance(node, str) and node.startswith(ARRAY)
    return arrays[node.removeprefix(ARRAY)] if named else node

  table = resolve(json.loads((RECORDED / "transforms.json").read_text()))
  return table | {"arrays": arrays}


@pytest.fixture(scope="session")
def fast_directory():
  """A small FAST tokenizer."""
  return TOKENIZERS / "tiny_fast"
