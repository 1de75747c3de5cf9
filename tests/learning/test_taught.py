"""From what was kept of taught episodes: a data set, a training's samples, and a memory of other weights."""

import dataclasses
import json

import numpy as np
import pytest

from configs import panda_consolidate
from pi0rag_jax.data import columns
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.learning import interventions, kept, lessons, migrate, taught
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.memory import Memory
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.memory.tokens import token_of
from pi0rag_jax.policy import directory
from pi0rag_jax.worlds.episode import Job, Step, Trace
from train import policy_data
from train.named import named_config, read_model

DECISIONS, TICKS = 6, 4
ACTED = ("policy", "policy", "policy", "human", "human", "policy")


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


@pytest.fixture(scope="module")
def home(policy, tmp_path_factory):
  """A folder with a memory that two episodes taught, one of them kept with another one that taught nothing."""
  folder = tmp_path_factory.mktemp("home")
  rng = np.random.default_rng(0)
  keeper = kept.Keeper(folder / "kept", policy)
  with Memory.open(folder / "memory", **policy.memory_header()) as memory:
    for name in ("a", "never", "not kept"):
      steps = list(made_up(rng, policy))
      trace = Trace(Job(0, 0), "pick up the red cube", steps, outcome="success", ticks=DECISIONS * TICKS)
      context = RecordContext("pick", trace.prompt, {"episode": name, "robot": "r1"})
      if name != "never":
        memory.add(lessons.of_episode(trace, policy.space, context, CorrectionConfig(path_before=1)),
                   token=token_of(name))
      if name != "not kept":
        for at, step in enumerate(steps):
          keeper.saw(name, at, step.observation)
        keeper.ended(name, kept.Ending("pick", "r1", trace.prompt, True, note="well done"), steps)
  keeper.close()
  return folder


def made_up(rng, policy):
  for number, by in enumerate(ACTED):
    base_TA, better_TA = rng.uniform(policy.space.low, policy.space.high, (2, 16, 5)).astype(np.float32)
    look = {"image": {name: rng.integers(0, 255, (64, 64, 3), np.uint8) for name in policy.spec.cameras},
            "state": rng.standard_normal(10).astype(np.float32), "prompt": "pick up the red cube"}
    yield Step(number * TICKS, None, np.full(policy.key_dim, number, np.float32), base_TA, better_TA, 2,
               np.array([7, 1, -1]), np.float32([0.2, 0.9, 0.0]), observation=look, by=by, done_NA=better_TA[:TICKS])


def records_of(folder):
  with Memory.load(folder) as memory:
    return [record for _, record in memory.records()]


@pytest.fixture(scope="module")
def exported(home):
  done = taught.export(home / "memory", home / "kept", home / "data", pictures="images")
  assert (done.episodes, done.frames, done.labels, done.untaught, done.without_pictures) == (1, 24, 6, 1, 6)
  assert done.columns == {
    "image": {name: f"observation.images.{name}" for name in ("base_0_rgb", "left_wrist_0_rgb")},
    "state": "observation.state[0:10]", "actions": "action"}
  return home / "data"


def test_the_data_set_says_what_was_done_by_whom_and_what_is_better(home, exported):
  (episode,) = [each for each in kept.read(home / "kept") if each.facts.episode == "a"]
  dataset = open_dataset(exported)
  data = dataset.read_episode(0, images=True)
  np.testing.assert_array_equal(data.actions, episode.data.actions)
  np.testing.assert_array_equal(data.state, episode.data.state)
  looked = np.arange(24) % TICKS == 0
  np.testing.assert_array_equal(data.extras["observed"] != 0, looked)
  np.testing.assert_array_equal(data.extras["intervention"] != 0, np.repeat([by == "human" for by in ACTED], TICKS))
  np.testing.assert_array_equal(data.extras["taught"] != 0, looked)  # each decision has a record
  records = {record.provenance["tick"]: record for record in records_of(home / "memory")
             if record.provenance["episode"] == "a"}
  for tick, record in records.items():
    np.testing.assert_array_equal(data.extras["label"][tick], record.corrected_chunk)
    for camera, pictures in data.images.items():
      np.testing.assert_array_equal(pictures[tick + 3], episode.dataset.read_frames(episode.number, [tick])[
        camera.removeprefix("observation.images.")][0])
  assert json.loads((exported / "meta" / taught.EPISODES_FILE).read_text()) == [
    {"episode": "a", "robot": "r1", "task": "pick", "success": True, "failure": "", "note": "well done",
     "helped": True}]


def test_a_training_learns_the_labels_where_there_are_any(home, exported, tmp_path):
  config = panda_consolidate.get_config().unlock()
  config.data = ({"path": str(exported)}, {"path": str(exported)})
  config.validation_fraction = 0.0
  named = named_config(config)
  part = policy_data.open_parts(config, named, tmp_path)[0]
  chosen = policy_data.frames_where(part, [0], config.frames_where)
  assert chosen.tolist() == [0, 4, 8, 12, 16, 20]
  sample = part.dataset.read_samples(np.zeros(1, int), chosen[3:4], horizon=read_model(config, named).action_horizon)
  (wanted,) = [record.corrected_chunk for record in records_of(home / "memory")
               if (record.provenance["episode"], record.provenance["tick"]) == ("a", 12)]
  np.testing.assert_array_equal(sample["actions"][0], np.float32(wanted))


def test_interventions_are_read_where_the_policy_looked(policy, exported, tmp_path):
  repack = {"image": {name: f"observation.images.{name}" for name in policy.spec.cameras},
            "state": "observation.state", "actions": "action"}
  dataset, to_robot = columns.open_columns(exported, repack, action_columns=("action",))
  with Memory.open(tmp_path / "m", **policy.memory_header()) as memory:
    interventions.learn(memory, policy, dataset, to_robot=to_robot)
    assert [(record.kind, record.provenance["tick"]) for _, record in memory.records()] == [
        *(("correction", tick) for tick in (0, 4, 8, 12, 16)), ("anchor", 20)]


def test_migration_asks_the_policy_again_and_retires_what_it_knows(policy, home, tiny_policy_dir, tmp_path, capsys):
  out = tmp_path / "all"
  arguments = ["migrate", str(home / "memory"), f"--policy={tiny_policy_dir}", f"--kept={home / 'kept'}"]
  assert main([*arguments, f"--out={out}", "--below=1e-9"]) == 0
  said = capsys.readouterr().out
  assert said.startswith("12 records (6 corrections, 6 anchors) before, 6 records (3 corrections, 3 anchors) in ")
  assert "left out: 6 of episodes that were not kept; retired: 0 on which" in said
  (episode,) = [each for each in kept.read(home / "kept") if each.facts.episode == "a"]
  records = records_of(out)
  seen = episode.observations([record.provenance["tick"] for record in records])
  _, encoded = policy.encode((), policy.prepare(seen))
  for row, (old, new) in enumerate(zip(records_of(home / "memory"), records)):
    np.testing.assert_allclose(new.key, np.asarray(encoded.key_BE)[row], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new.base_chunk, np.asarray(policy.decode(encoded))[row], rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(new.corrected_chunk, old.corrected_chunk)
    assert new.kind == old.kind and new.provenance["migrated_from"] == policy.fingerprint
  assert main([*arguments, f"--out={tmp_path / 'none'}", "--below=1e9"]) == 0
  assert "0 records () in" in capsys.readouterr().out and not records_of(tmp_path / "none")
  space = policy.space
  agrees = [dataclasses.replace(record, corrected_chunk=record.base_chunk) for record in records]
  assert not migrate.staying(agrees, space, 1.0, 0.5).any()
  kinds = [record.kind for record in records]
  agrees[kinds.index("correction")] = records[kinds.index("correction")]
  near = [kind == "anchor" for kind in kinds]
  near[kinds.index("correction")] = True
  assert migrate.staying(agrees, space, 1e9, 0.5).tolist() == near  # an anchor holds back the correction near it
  assert migrate.staying(agrees, space, 1e-9, 0.5).sum() == 1


def test_a_decision_is_explained_by_who_taught_what(home, capsys):
  memory, folder = str(home / "memory"), f"--kept={home / 'kept'}"
  assert main(["explain", memory, "--episode=a", folder, "--decision=3", "--records=1"]) == 0
  said = capsys.readouterr().out
  assert "decision 3, tick 12: human acted; 2 records were near" in said
  assert "record 1 with a weight of 0.90: correction, of a failure" in said
  assert "taught by human on " in said and "in episode a at tick 8, robot r1" in said
  assert "  1 others had less of a say" in said
  assert main(["explain", memory, "--ids=4,12", "--json"]) == 0
  first, last = json.loads(capsys.readouterr().out)
  assert (first["kind"], first["taught_by"], last["episode"]) == ("anchor", "policy", "not kept")
  assert first["differs_mean"] > 0 and len(first["nearest"]) == 3
  with Memory.load(memory, read_only=False) as changed:
    tokens = changed.tokens()
  assert tokens == [token_of("a"), token_of("not kept")]


def test_users_mistakes_are_told_in_one_line(home, tiny_policy_dir, tmp_path, capsys):
  memory, folder, out = str(home / "memory"), f"--kept={home / 'kept'}", f"--out={tmp_path / 'out'}"
  with Memory.open(tmp_path / "other", key_dim=2, action_horizon=3, action_dim=2, encoder="e", policy="p"):
    pass
  other = str(tmp_path / "other")
  (tmp_path / "empty").mkdir()
  for arguments, message in (
    (["explain", memory], "give either --ids"), (["explain", memory, "--ids=99"], "no record 99"),
    (["explain", memory, "--episode=zebra"], "no episode 'zebra'"),
    (["explain", memory, "--episode=zebra", folder], "no episode 'zebra' in"),
    (["explain", memory, "--episode=a", folder, "--decision=9"], "decisions 0 to 5, not 9"),
    (["explain", memory, "--ids=1", "--policy=zebra"], "zebra"),
    (["export", memory, out, "--format=lerobot"], "needs --kept"),
    (["export", memory, out, "--format=lerobot", f"--kept={tmp_path / 'empty'}"], "no data set that we know"),
    (["export", other, out, "--format=lerobot", folder], "none of the 2 episodes"),
    (["migrate", memory, "--policy=zebra", folder, out], "zebra"),
    (["migrate", other, f"--policy={tiny_policy_dir}", folder, out], "of another action space"),
    (["migrate", memory, f"--policy={tiny_policy_dir}", f"--kept={tmp_path / 'gone'}", out], "no data set at"),
    (["migrate", memory, f"--policy={tiny_policy_dir}", folder, f"--out={tmp_path / 'empty'}"], "is there already"),
  ):
    assert main(arguments) == 2, arguments
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
  assert not (tmp_path / "out").exists()
