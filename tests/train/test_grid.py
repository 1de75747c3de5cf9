"""Searches over lists: their points, how they resume, what fails, and the ranking. Training itself is a stand-in."""

import io
import json

import pytest
import tiny
from rich.console import Console

from pi0rag_jax.cluster import Machines
from pi0rag_jax.errors import Pi0RagError
from train import grid, loop


@pytest.fixture
def config():
  return tiny.make_config("data")


class Trainer:
  """Writes what a run leaves: the score is the learning rate times the width."""

  def __init__(self, *, fails: float = 0.0, dies_after: int = 99):
    self.fails, self.dies_after = fails, dies_after
    self.seen = []

  def __call__(self, config, folder):
    if len(self.seen) == self.dies_after:
      raise KeyboardInterrupt
    self.seen.append(folder.name)
    if config.learning_rate == self.fails:
      raise Pi0RagError("no step was finite")
    checkpoint = folder / "checkpoints" / "4"
    checkpoint.mkdir(parents=True, exist_ok=True)  # of an actor that died before it could say so
    score = config.learning_rate * config.model.expert.width
    (checkpoint / "metrics.json").write_text(json.dumps({"loss": 9.0, "score": score}))
    loop.claim_workdir(config, folder)


def _run(config, workdir, trainer, screen=None):
  return grid.run(config, workdir, train=trainer, console=Console(file=screen or io.StringIO(), width=160))


def _recorded(workdir):
  return json.loads((workdir / "grid.json").read_text())["points"]


def test_points_are_all_combinations_nested_ones_too(config):
  wide = grid.with_lists(config, ["learning_rate=1e-3,1", "model.expert.width=8,16"])
  found = grid.points(grid.lists(wide))
  assert [tuple(p.values()) for p in found] == [(0.001, 8), (0.001, 16), (1.0, 8), (1.0, 16)]
  assert grid.names(found)[:2] == ["learning_rate=0.001,width=8", "learning_rate=0.001,width=16"]
  point = grid.with_values(wide, found[3])
  assert (point.learning_rate, point.model.expert.width, point.is_locked) == (1.0, 16, True)
  assert isinstance(wide.learning_rate, list) and config.learning_rate == 1e-3  # neither was changed
  assert not grid.lists(config)  # tuples are values


def test_names_stay_apart():
  found = grid.points({"model.expert.width": [1], "model.paligemma.width": [2]})
  assert grid.names(found) == ["model.expert.width=1,model.paligemma.width=2"]
  alike = grid.names(grid.points({"data_dir": ["a/b", "a-b", "x" * 200]}))
  assert len(set(alike)) == 3 and all(len(name) < 100 and "/" not in name for name in alike)


@pytest.mark.parametrize(
  ("text", "values"),
  [("schedule=cosine,rsqrt", ["cosine", "rsqrt"]), ("seed=0,1", [0, 1]), ("learning_rate=1", [1.0]), ("name=1,2",
   ["1", "2"]), ("hidden_state_dims=(6,7),()", [(6, 7), ()]), ("model.unroll=True,False", [True, False])])
def test_lists_of_the_command_line(config, text, values):
  name, found = grid.read_list(config, text)
  assert found == values and name == text.split("=")[0]


@pytest.mark.parametrize(
  ("text", "message"),
  [("lerning_rate=1,2", r"unknown entry of the configuration: 'lerning_rate'; did you mean 'learning_rate'"),
   ("seed", "expected NAME=VALUE,VALUE"), ("seed=0,x", r"'0' is no value of 'seed', which is 0"),
   ("steps=1.5", r"1.5 is no value of 'steps'"), ("model.unroll=1", r"1 is no value of 'model.unroll'")])
def test_mistakes_on_the_command_line_are_named(config, text, message):
  with pytest.raises(Pi0RagError, match=message):
    grid.read_list(config, text)


def test_a_search_ranks_its_points(config, tmp_path):
  screen, trainer = io.StringIO(), Trainer()
  entries = _run(grid.with_lists(config, ["learning_rate=3e-2,1e-2", "seed=0,1"]), tmp_path, trainer, screen)
  assert trainer.seen == [entry["name"] for entry in entries] and len(entries) == 4
  assert [entry["score"] for entry in _recorded(tmp_path)] == [0.24, 0.24, 0.08, 0.08]
  assert entries[0]["status"] == "done" and entries[0]["step"] == 4 and entries[0]["validation"]["loss"] == 9.0
  rows = [line for line in screen.getvalue().splitlines() if "learning_rate=" in line]
  assert [row.split("│")[2].strip() for row in rows] == ["0.01", "0.01", "0.03", "0.03"]
  assert "path_error" in screen.getvalue()  # what `best_by` names
  assert not list(tmp_path.glob("*.tmp"))


def test_a_search_that_was_stopped_goes_on(config, tmp_path):
  spanned = grid.with_lists(config, ["seed=0,1,2"])
  with pytest.raises(KeyboardInterrupt):
    _run(spanned, tmp_path, Trainer(dies_after=2))
  assert [entry.get("status") for entry in _recorded(tmp_path)] == ["done", "done", None]
  _run(spanned, tmp_path, trainer := Trainer())
  assert trainer.seen == ["seed=2"]
  # More values keep what is there, and nothing is trained twice.
  entries = _run(grid.with_lists(config, ["seed=3,2,1,0"]), tmp_path, trainer := Trainer())
  assert trainer.seen == ["seed=3"] and [entry["status"] for entry in entries] == ["done"] * 4


def test_points_train_on_a_cluster_and_one_that_was_killed_goes_on(config, tmp_path, made_up_ray):
  wide, trainer, ray = grid.with_lists(config, ["learning_rate=3e-2,1e-2", "seed=0,1"]), Trainer(), made_up_ray(one=2)
  ray.dying = [False, True]
  found = grid.run(wide, tmp_path / "ray", train=trainer, console=Console(file=io.StringIO()),
                   machines=Machines("local"))
  assert len(ray.taken) > 1 and set(trainer.seen) == {entry["name"] for entry in found}
  assert found == _run(wide, tmp_path / "here", Trainer())
  assert _recorded(tmp_path / "ray") == _recorded(tmp_path / "here")


def test_a_point_that_fails_is_recorded_and_tried_again(config, tmp_path):
  spanned, screen = grid.with_lists(config, ["learning_rate=9.0,1e-2"]), io.StringIO()
  entries = _run(spanned, tmp_path, Trainer(fails=9.0), screen)
  assert [entry["status"] for entry in entries] == ["failed", "done"]
  assert _recorded(tmp_path)[0]["error"] == "no step was finite"
  assert [line for line in screen.getvalue().splitlines() if "learning_rate=" in line][-1].count("failed") == 1
  entries = _run(spanned, tmp_path, trainer := Trainer())
  assert trainer.seen == ["learning_rate=9.0"] and "error" not in entries[0]


def test_other_workdirs_and_lists_are_refused_before_any_work(config, tmp_path):
  spanned = grid.with_lists(config, ["seed=0,1"])
  _run(spanned, tmp_path, Trainer())
  with pytest.raises(Pi0RagError, match="of another configuration: steps differ"):
    _run(grid.with_values(spanned, {"steps": 8}), tmp_path, trainer := Trainer())
  assert not trainer.seen
  loop.claim_workdir(config, tmp_path)
  with pytest.raises(Pi0RagError, match="is of a single run"):
    _run(spanned, tmp_path, Trainer())
  with pytest.raises(Pi0RagError, match="'seed' is an empty list"):
    _run(grid.with_values(config, {"seed": []}), tmp_path, Trainer())
  with pytest.raises(Pi0RagError, match=r"'seed' lists a value twice: \[1, 1\]"):
    _run(grid.with_lists(config, ["seed=1,1"]), tmp_path, Trainer())
  with pytest.raises(Pi0RagError, match="best_by is a list"):
    _run(grid.with_lists(config, ["best_by=loss,flow_loss"]), tmp_path, Trainer())
  with pytest.raises(Pi0RagError, match=r"'seed' is the list \[0, 1\]: train.launch runs the grid"):
    loop.train_and_evaluate(spanned, tmp_path)
