"""The command: a mixture, scores, what is kept, and a part written as LeRobot v3; wrong input ends in one line."""

import json
import tarfile
from pathlib import Path

import judged
import numpy as np
import pytest

from pi0rag_jax.curation import selection, verdicts
from pi0rag_jax.curation.__main__ import main
from pi0rag_jax.data.formats import open_dataset

RECORDED = Path(__file__).parents[1] / "data" / "recorded"
PROMPTS = ("pick up the cube", "put it down")


@pytest.fixture
def data(tmp_path):
  """Six episodes, every second one flawed and failed."""
  for seed in range(6):
    rng = np.random.default_rng(seed)
    frames = 4 + seed
    judged.write_episodes(judged.episode_path(tmp_path / "data", seed), [judged.make_episode(
      seed, state=rng.normal(size=(frames, 3)).astype(np.float32), prompt=PROMPTS[seed % 2],
      actions=rng.normal(size=(frames, 2)).astype(np.float32))])
  return tmp_path / "data"


def test_a_mixture_is_a_file_of_selections(data, tmp_path, capsys):
  out = tmp_path / "mixture.json"
  assert main(["mix", str(data), "--share", "0.25", "--episodes", "4", "--out", str(out)]) == 0
  assert capsys.readouterr().out.startswith("clean 3, near_miss 1, written to ")
  kept = selection.choose(open_dataset(data), out)
  assert sorted(verdicts.flaws_of(kept)) == ["clean"] * 3 + ["near_miss"]


def test_scores_are_printed_and_written(data, tmp_path, capsys):
  out = tmp_path / "scores.json"
  assert main(["score", str(data), "--scorer", "length", "--scorer", "agreement", "--out", str(out)]) == 0
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == 2 and printed[0].startswith("length") and "AUROC 0.667" in printed[0]
  assert "least: 5, 4, 3, 2, 1" in printed[0]
  assert json.loads(out.read_text())["scores"]["length"] == [-4, -5, -6, -7, -8, -9]


def test_a_chosen_part_is_written_and_read_back(data, tmp_path, capsys):
  """As images, so that pictures come back exactly; what is said of an episode goes along."""
  chosen, out = tmp_path / "kept.json", tmp_path / "out"
  assert main(["keep", str(data), "--scorer", "length", "--share", "0.5", "--out", str(chosen)]) == 0
  assert main(["export", str(data), "--selection", str(chosen), "--out", str(out), "--pictures", "images"]) == 0
  assert "3 episodes, written to" in capsys.readouterr().out
  whole, written = open_dataset(data), open_dataset(out)
  assert written.format == "lerobot" and written.lengths.tolist() == [4, 5, 6] and written.fps == whole.fps
  assert verdicts.flaws_of(written) == ["clean", "near_miss", "clean"]
  for episode in range(3):
    before, after = whole.read_episode(episode), written.read_episode(episode)
    np.testing.assert_array_equal(after.state, before.state)
    np.testing.assert_array_equal(after.actions, before.actions)
    assert list(after.prompts) == list(before.prompts)
    assert bool(after.extras["next.success"][-1]) == before.metadata["success"]
    np.testing.assert_array_equal(after.images["observation.images.base_0_rgb"], before.images["base_0_rgb"])
    np.testing.assert_array_equal(after.extras["action_chunks"], before.extras["action_chunks"])


def test_flaws_are_put_in_and_told(data, tmp_path):
  out = tmp_path / "out"
  arguments = ["export", str(data), "--out", str(out), "--pictures", "images"]
  assert main([*arguments, "--flaw", "wrong_prompt", "--share", "0.5"]) == 0
  whole, written = open_dataset(data), open_dataset(out)
  told = verdicts.flaws_of(written)
  assert told.count("wrong_prompt") == 3
  for episode, flaw in enumerate(told):
    same = list(written.read_episode(episode).prompts) == list(whole.read_episode(episode).prompts)
    assert same == (flaw != "wrong_prompt")


def test_what_is_not_known_is_not_made_up(tmp_path, capsys):
  with tarfile.open(RECORDED / "aloha_hdf5.tar.xz") as archive:
    archive.extractall(tmp_path, filter="data")
  root, out = tmp_path / "aloha_hdf5" / "dataset", tmp_path / "out"
  assert main(["export", str(root), "--out", str(out), "--robot", "aloha"]) == 2
  assert "an episode has an empty prompt" in capsys.readouterr().err
  assert main(["export", str(root), "--out", str(out), "--robot", "aloha", "--default_prompt", "move the cube"]) == 0
  written = open_dataset(out)
  assert "next.success" not in written.read_episode(0, images=False).extras and written.num_episodes == 2
  assert set(written.read_episode(0, images=False).prompts) == {"move the cube"}


@pytest.mark.parametrize(("arguments", "message"), [
  (["keep", "DATA", "--share", "0", "--out", "s.json"], "the rule 'fraction' keeps a share of 0.0"),
  (["mix", "DATA", "--share", "0.5", "--episodes", "40", "--out", "s.json"], "takes 20 episodes that are"),
  (["score", "nowhere"], "no data set at"),
  (["score", "DATA", "--tool", "0", "9"], "in entry 9 of the state; there are 0 to 2"),
  (["score", "DATA", "--every", "0"], "steps of every 0 frames"),
  (["export", "DATA", "--out", "DATA2", "--selection", "none.json"], "no selections"),
  (["export", "DATA", "--out", "DATA2", "--flaw", "idle_end", "--share", "2"], "a share of 2"),
  (["export", "DATA", "--out", "DATA2", "--flaw", "idle_end", "--integrates", "7"], "integrates names entry 7"),
  (["export", "DATA", "--out", "DATA2", "--actions", "action_chunks"], "has chunks of actions")])
def test_wrong_input_ends_in_one_line(data, tmp_path, capsys, arguments, message):
  given = [{"DATA": str(data), "DATA2": str(tmp_path / "out")}.get(each, each) for each in arguments]
  given = [str(tmp_path / each) if each.endswith(".json") else each for each in given]
  assert main(given) == 2
  told = capsys.readouterr().err.strip()
  assert message in told and "\n" not in told


def test_a_seed_is_a_whole_number(data, capsys):
  with pytest.raises(SystemExit) as ended:
    main(["score", str(data), "--seed", "-1"])
  assert ended.value.code == 2 and "allowed: whole numbers from 0" in capsys.readouterr().err


def test_a_data_set_is_not_written_over(data, tmp_path, capsys):
  arguments = ["export", str(data), "--out", str(tmp_path / "out"), "--pictures", "images"]
  assert main(arguments) == 0 and main(arguments) == 2
  assert "holds a data set already" in capsys.readouterr().err
