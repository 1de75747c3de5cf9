"""Notebooks: their cells run in order, and come out as their text says."""

import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "docs" / "notebooks"


def test_the_flow():
  names = run("flow.ipynb")
  assert names["off"] < 0.4 and names["errors"][10] < 0.5
  assert names["errors"][1] > 1.5 * names["errors"][2] > 1.5 * names["errors"][10]
  assert abs(names["zero"][0.5]) < 1e-6 and names["zero"][0.55] > 0.5
  assert names["apart"]["residual"] < 0.05 < 0.3 < names["apart"]["injection"]
  assert names["noise_length"]["a mode"] < 1.5 < names["noise_length"]["beside it"]


def run(name: str) -> dict:
  """Returns the names that a notebook leaves behind; what it printed once is not kept in it."""
  notebook, names = json.loads((FOLDER / name).read_text("utf8")), {"__name__": name}
  for number, cell in enumerate(notebook["cells"]):
    if cell["cell_type"] == "code":
      assert not cell["outputs"], f"{name}, cell {number}"
      exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
  return names
