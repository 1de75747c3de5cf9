"""The data sets of a curation: numbered as in training, at one pace, each with its own labels."""

from typing import Any

import numpy as np
import pytest
import tiny

from configs import curation_panda, mobile_vla_lstm, pi0_libero_lora
from pi0rag_jax.curation import selection
from pi0rag_jax.curation.labels import Rule
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.data.episodes import episode_path, write_episodes
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from train import data_entries, debug_data, head_data
from train.curation import data, sources
from train.curation.sources import Source, Sources


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
  """The folder of twelve recorded episodes, and a file that keeps a third of them."""
  folder = tmp_path_factory.mktemp("robot")
  path, kept_J = debug_data.make(folder / "data"), np.arange(12) % 3 == 0
  selection.write_json(folder / "selection.json", [Selection(str(path), kept_J * 1.0, kept_J, 0.5, "fixed")])
  return str(path), str(folder / "selection.json")


def write(folder, episodes=6, **changes):
  for seed in range(episodes):
    write_episodes(episode_path(folder, seed), [tiny.make_episode(seed, **{"success": seed != 2, **changes})])
  return str(folder)


def make_config(folder, **rollouts) -> Any:
  config = curation_panda.get_config().copy_and_resolve_references().unlock()
  config.training = tiny.make_config(folder / "demonstrations")
  config.rollouts.given = (("early", str(folder / "early")), ("late", str(folder / "late")))
  config.rollouts.update(rollouts)
  return config


def test_kind_policy_learns_of_successes_that_an_earlier_selection_kept(tmp_path):
  path, kept_J = write(tmp_path / "data"), np.arange(6) > 0
  selection.write_json(tmp_path / "s.json", [Selection(path, kept_J * 1.0, kept_J, 0.5, "fixed")])
  training = tiny.make_config(path, data=({"path": path, "selection": str(tmp_path / "s.json")},))
  assert data.demonstrations(training, tmp_path)[path].episodes.tolist() == [1, 3, 4, 5]
  assert data.recorded(training, path, tmp_path).num_episodes == 6
  with pytest.raises(Pi0RagError, match=r"no data set at '/none'; make it with: python -m"):
    data.demonstrations(tiny.make_config("/none"), tmp_path)
  with pytest.raises(Pi0RagError, match="holds no successful episode"):
    data.demonstrations(tiny.make_config(write(tmp_path / "failed", success=False)), tmp_path)


def test_kind_head_is_opened_as_its_training_opens_it(robot, tmp_path):
  path, kept = robot
  training: Any = mobile_vla_lstm.get_config("debug")
  entry = {"path": path, "selection": kept, "format": "episodes", "fields": {"cameras": {"seen": "front"}}}
  with training.unlocked():
    training.data = (entry,)
  (found,) = data.demonstrations(training, tmp_path).values()
  part = head_data.open_part(training, data_entries.read(entry, tmp_path))
  assert found.episodes.tolist() == [0, 3, 6, 9] and found.lengths.tolist() == part.dataset.lengths.tolist()
  assert found.cameras == part.dataset.cameras == ("seen",)
  rollouts = data.recorded(training, path, tmp_path)
  assert rollouts.cameras == ("base_0_rgb", "left_wrist_0_rgb") and rollouts.num_episodes == 12
  with training.unlocked():
    training.data = (entry, {"path": path})
  with pytest.raises(Pi0RagError, match=r"several entries of config.training.data have the same path"):
    data.demonstrations(training, tmp_path)


def test_kind_openpi_reads_its_columns(tmp_path):
  training: Any = pi0_libero_lora.get_config("debug")
  ((path, found),) = data.demonstrations(training, tmp_path).items()
  rollouts = data.recorded(training, path, tmp_path)
  assert path == str(tmp_path / "debug_data") and found.num_episodes == rollouts.num_episodes == 12
  assert found.state_dim == rollouts.state_dim and found.cameras == rollouts.cameras


def test_an_unknown_kind_is_named(tmp_path):
  with pytest.raises(Pi0RagError, match=r"unknown kind of training 'flaw'. Valid names: head, openpi, policy"):
    data.recorded(tiny.make_config(tmp_path, kind="flaw"), tmp_path, tmp_path)


def test_rollouts_are_cut_and_labelled_by_the_file_beside_them(tmp_path):
  write(tmp_path / "demonstrations")
  for name, lengths, text in (("early", (5, 9, 12), "0,1\n1,1\n2,0\n"), ("late", (6, 8, 12), "0,1\n1,0\n2,0\n")):
    for seed, frames in enumerate(lengths):
      write_episodes(episode_path(tmp_path / name, seed), [tiny.make_episode(seed, frames=frames)])
    (tmp_path / name / "labels.csv").write_text(text)
  config = make_config(tmp_path, success={"kind": "file", "path": "labels.csv"}, every=2)
  found = {name: Sources(config, tmp_path).labelled(source, config.classifiers.state)
           for name, source in Sources(config, tmp_path).rollouts.items()}
  assert [each.success_J.tolist() for each in found.values()] == [[1, 1, 0], [1, 0, 0]]
  assert [[len(v) for v in each.values] for each in found.values()] == [[3, 4, 4], [3, 3, 3]]  # of 7 and 6 frames
  config.rollouts.cut = 0
  sources = Sources(config, tmp_path)
  assert [len(v) for v in sources.labelled(sources.rollouts["late"], config.classifiers.state).values] == [3, 4, 6]


def test_a_step_lasts_as_long_everywhere(tmp_path, caplog):
  said = lambda name, fps, every: Source(  # noqa: E731
    data.views.readable(open_dataset(write(tmp_path / name, 1, fps=fps))), every)
  half, slow, silent = said("half", 10.0, 2), said("slow", 5.0, 1), said("silent", 0.0, 2)
  sources.check_pace({"demonstrations": half, "rollouts": slow})
  with pytest.raises(Pi0RagError, match=r"0.1 s in demonstrations, 0.2 s in rollouts. Set demonstrations_every or"):
    sources.check_pace({"demonstrations": Source(half.dataset, 1), "rollouts": slow})
  sources.check_pace({"old ones": silent, "rollouts": slow})
  assert "not known is how many frames per second there are of old ones: whether" in caplog.text


def test_one_file_of_labels_for_all_rollouts_is_refused():
  rule = Rule("file", path="/labels.csv")
  sources.check_label_file(rule, 1)
  with pytest.raises(Pi0RagError, match=r"'/labels.csv' is one file for 2 data sets of rollouts: give it from each"):
    sources.check_label_file(rule, 2)
