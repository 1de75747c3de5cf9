"""Every kind of training reads the episodes that a file of selections keeps, and no others."""

from typing import Any

import numpy as np
import pytest
import tiny

from configs import mobile_vla_lstm, pi0_libero_lora
from pi0rag_jax.curation import selection
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from train import data_entries, debug_data, head_data, policy_data
from train.named import named_config

KEPT = np.arange(12) % 3 == 0


def write_selection(file, path, kept_J) -> str:
  """Returns `file` after writing a selection of one data set."""
  selection.write_json(file, [selection.Selection(str(path), kept_J * 1.0, kept_J, 0.5, "fixed")])
  return str(file)


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
  """An entry of `config.data` that keeps a third of twelve episodes."""
  folder = tmp_path_factory.mktemp("robot")
  path = debug_data.make(folder / "data")
  return {"path": str(path), "selection": write_selection(folder / "selection.json", path, KEPT)}


def test_the_simulators_episodes(tmp_path):
  tiny.write_data(tmp_path / "data")
  file = write_selection(tmp_path / "s.json", tmp_path / "data", np.array([0, 1, 0, 0, 1, 1], bool))
  config = tiny.make_config(tmp_path / "data")
  opened = lambda **options: policy_data.open_source(  # noqa: E731
    config, named_config(config), data_entries.read({"path": str(tmp_path / "data"), **options}, tmp_path))[0]
  assert opened(selection=file).episodes.tolist() == [1, 4, 5] and opened().num_episodes == 6
  with pytest.raises(Pi0RagError, match=r"no selections \(/none.json: No such file or directory\)"):
    opened(selection="/none.json")


def test_kind_head(robot, tmp_path):
  config = mobile_vla_lstm.get_config("debug")
  part = head_data.open_part(config, data_entries.read(robot, tmp_path))
  whole = open_dataset(robot["path"])
  assert part.dataset.num_episodes == 4 and sum(map(len, part.splits.values())) == 4
  states = [whole.read_episode(episode, images=False).state for episode in np.flatnonzero(KEPT).tolist()]
  np.testing.assert_array_equal(part.state_FP, np.concatenate(states))


def test_kind_policy(robot, tmp_path):
  config: Any = pi0_libero_lora.get_config("debug")
  with config.unlocked():
    config.data = (robot,)
  (part,) = policy_data.open_parts(config, named_config(config), tmp_path)
  assert part.dataset.num_episodes == 4 and sorted(e for split in part.splits.values() for e in split) == [0, 1, 2, 3]
  np.testing.assert_array_equal(part.dataset.lengths, open_dataset(robot["path"]).lengths[KEPT])
