"""Training of policies: it learns, resumes exactly, leaves the base alone, and what it exports is the same policy."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from configs import (
  my_robot,
  panda_small,
  panda_tasks,
  pi0_aloha_sim_lora,
  pi0_full_fsdp,
  pi0_libero_lora,
  pi05_droid_lora,
  small_from_scratch,
)
from pi0rag_jax.data import columns
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import pi0
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import directory
from pi0rag_jax.robots.normalize import NormStats
from train import debug_data, emphasis, loop, policy, policy_data, policy_loss, prepared, step
from train.checkpoint import CheckpointStore
from train.named import filled, named_config, read_model


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return debug_data.make(tmp_path_factory.mktemp("robot") / "data")


def make_config(data_dir, module=pi0_libero_lora, **changes) -> ConfigDict:
  """Returns the debug configuration of adapters on data that is there already, with few steps and layers."""
  config = module.get_config("debug")
  with config.unlocked():
    if data_dir is not None:
      config.data = ({"path": str(data_dir)},)
    config.threads, config.key_source = 1, ""
    config.model.siglip.width = config.model.siglip.mlp_dim = 16
    for tower in ("paligemma", "expert"):
      config.model[tower].update({"width": 16, "mlp_dim": 16})
    for name, value in changes.items():
      config[name] = value
  return config


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
  """A run of adapters to its end, with keys."""
  workdir = tmp_path_factory.mktemp("trained")
  loop.train_and_evaluate(
    make_config(data_dir, steps=60, validate_every=30, learning_rate=1e-2, key_source="values"), workdir)
  return workdir


def _scores(workdir) -> dict[int, float]:
  store = CheckpointStore(workdir, asset_id="-")
  return {number: store.metrics(number)["loss"] for number in store.steps()}


def test_adapters_lower_the_validation_loss(data_dir, trained, tmp_path):
  config = filled(make_config(data_dir))
  with contextlib.closing(policy.make_task(config, tmp_path)) as task:
    validate, key = jax.jit(task.validate), step.validation_key(config.seed)
    losses = [validate(task.trainable, task.frozen, batch, key)["loss"] for batch in task.validation_batches()]
  before, after = np.mean(losses), min(_scores(trained).values())
  # Held-out frames with the same noise and times each time.
  assert after < 0.9 * before, (before, after)


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def test_the_base_stays_and_the_policy_is_the_merged_model(data_dir, trained):
  record = json.loads((trained / "policy" / "record.json").read_text())
  folder = trained / "checkpoints" / str(record["step"])
  config = filled(make_config(data_dir))
  named = named_config(config)
  model = read_model(config, named)
  _, frozen = policy.initial_params(config, named, model)
  saved = checkpoints.load_params(folder)
  weight = ("PaliGemma", "llm", "layers", "attn", "q_einsum_1", "w")
  get = lambda tree: np.asarray(_at(tree, weight), np.float32)  # noqa: E731
  np.testing.assert_array_equal(get(saved), get(frozen))
  merged = checkpoints.load_params(trained / "policy")
  assert np.abs(get(merged) - get(saved)).max() > 1e-4
  assert not any("lora" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(merged))


def test_what_was_trained_is_the_policy_that_loads(data_dir, trained):
  """One frame of the data: the served chunk is the training network's, adapters and all, in the robot's units."""
  loaded = directory.load(trained / "policy", start="zero")
  assert (loaded.spec.name, loaded.spec.start, loaded.robot.name) == ("pi0_libero_lora", "zero", "libero")
  assert directory.describe(trained / "policy")[0].start == "new" and loaded.spec.control_hz == debug_data.FPS
  assert loaded.spec.execute_steps == 2 and loaded.unit_distance is not None and loaded.unit_distance > 0
  config = filled(make_config(data_dir))
  named = named_config(config)
  model = read_model(config, named)
  data = policy_data.load_data(config, named, model, trained)
  raw = data.parts[0].columns.observations(data.parts[0].dataset, 0, 1)[0]
  _, chunk_BTA = loaded.sample(loaded.start(1), loaded.prepare([raw]))
  store = CheckpointStore(trained, asset_id="-")
  params = checkpoints.load_params(store.folder(store.best_step()))
  batch = data.mixtures["train"].sources[0].dataset.read_samples(np.array([0]), np.array([0]), horizon=4)
  normalized_BTX = pi0.sample_actions(pi0.Pi0(model), params, Observation.from_dict(batch),
                                      jnp.zeros((1, 4, model.action_dim)))
  units = policy.path_error(policy.make_spec(config, named, model, data), data).units
  np.testing.assert_allclose(chunk_BTA, units.to_robot(normalized_BTX, batch["state"]), atol=5e-3)  # merged in bfloat16


def test_two_steps_and_two_more_equal_four(data_dir, tmp_path):
  config = make_config(data_dir, steps=4, validate_every=2, log_every=1, augment=True)
  tiny.train(config, tmp_path / "straight", killed=tmp_path / "killed", at=3)
  # Reading from files changes nothing either.
  with config.unlocked():
    config.cache = str(tmp_path / "cache")
  file = tmp_path / "killed" / loop.CONFIG_FILE
  file.write_text(json.dumps(json.loads(file.read_text()) | {"cache": config.cache}))
  loop.train_and_evaluate(config, tmp_path / "killed")
  straight, resumed = (
    checkpoints.load_params(tmp_path / name / "checkpoints" / "4") for name in ("straight", "killed"))
  jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_fresh_adapters_change_nothing_unless_asked_to(data_dir):
  config = make_config(data_dir)
  named = named_config(config)
  model = read_model(config, named)
  for identity in (True, False):
    with config.unlocked():
      config.lora_identity = identity
    trainable, _ = policy.initial_params(config, named, model)
    factor = np.asarray(_at(trainable["policy"], ("PaliGemma", "llm", "layers", "attn", "q_einsum", "lora_b")))
    assert (np.abs(factor).max() == 0) == identity


@pytest.mark.parametrize(("module", "trainable"), [
  (pi0_libero_lora, ("lora", "PaliGemma/img")), (pi05_droid_lora, ("lora", "PaliGemma/img")),
  (pi0_aloha_sim_lora, ("lora", "PaliGemma/img")), (pi0_full_fsdp, None)])
def test_the_released_sizes_and_what_of_them_trains(module, trainable):
  config = filled(module.get_config())
  named = named_config(config)
  model = read_model(config, named)
  assert (model.paligemma.width, model.image_size, model.remat) == (2048, (224, 224), "full")
  paths = policy.trainable_paths(config, model)
  if trainable is None:
    assert paths("PaliGemma/llm/layers/attn/q_einsum/w") and paths("PaliGemma/img/head/kernel")
    return
  assert model.paligemma.lora_attn.rank == 16 and model.expert.lora_ffn.rank == 32
  assert paths("PaliGemma/llm/layers/attn/q_einsum/lora_a") and paths("action_in_proj/kernel")
  assert not paths("PaliGemma/llm/layers/attn/q_einsum/w") and not paths("PaliGemma/img/head/kernel")


def test_the_recipe_is_the_named_configurations_unless_said_otherwise():
  config = pi0_libero_lora.get_config().copy_and_resolve_references().unlock()
  config.openpi, config.batch_size = "configs/my_robot.py", 7
  found = filled(config)
  assert (found.steps, found.batch_size, found.asset_id) == (my_robot.get_config().num_train_steps, 7, "my_robot")
  assert found.ema_decay == 0.0 and filled(pi0_full_fsdp.get_config()).ema_decay == 0.99


@pytest.mark.parametrize(("columns_", "fields", "expected"), [
  ({}, {}, ("Transfer cube", "Transfer cube")),  # as openpi, and as the served policy says where the robot says nothing
  ({}, {"prompt": "prompt"}, ("hold it", "hold it")), ({"prompt": "task"}, {}, ("hold it", "hold it"))])
def test_prompts_follow_openpi(tmp_path, columns_, fields, expected):
  config = make_config(None, pi0_aloha_sim_lora)
  path = debug_data.make(tmp_path / "data", "debug_two_arms")
  with config.unlocked():
    config.columns = ConfigDict({**config.columns.to_dict(), **columns_})
  entry = policy_data.data_entries.read({"path": str(path), "fields": fields}, path)
  named = named_config(filled(config))
  _, to_robot = policy_data.open_source(config, named, entry)
  sample = {"state": np.zeros(14), "actions": np.zeros((4, 14)), "prompt": "hold it",
            "image": {"front": np.zeros((32, 32, 3), np.uint8)}}
  seen = []

  class Tokenizer:
    def encode_prompt(self, text, length, state=None):
      seen.append(text)
      return np.zeros(length, np.int32), np.ones(length, bool)

  stats = dict.fromkeys(("state", "actions"), NormStats(np.zeros(14), np.ones(14)))
  group = policy_data.policy_transforms(named.data, named.model, read_model(config, named), stats,
                                        text_tokenizer=Tokenizer())
  robot = to_robot(sample)
  for data in (robot, {**robot, "actions": sample["actions"]}):
    policy_data.compose(group.inputs)(data)
  assert tuple(seen) == expected


def test_parts_of_columns_become_the_robots_entries(data_dir):
  repack = {"arm": {"joints": "state[0:3]"}, "hand": "state[7:8]", "picture": "front", "actions": "actions"}
  dataset, to_robot = columns.open_columns(data_dir, repack, action_columns=("actions",))
  sample = {"state": np.arange(8.0), "actions": np.zeros((2, 7)), "prompt": "go",
            "image": {"front": np.zeros((32, 16, 3), np.uint8)}}
  found = to_robot(sample)
  np.testing.assert_array_equal(found["arm"]["joints"], [0, 1, 2])
  np.testing.assert_array_equal(found["hand"], [7])
  assert found["picture"].shape == (3, 32, 16) and found["prompt"] == "go" and found["actions"].shape == (2, 7)
  assert dataset.cameras == ("front",)
  (seen,) = to_robot.observations(dataset, 0, 1)
  assert set(seen) == {"arm", "hand", "picture", "prompt"}
  with pytest.raises(Pi0RagError, match="reads 'actions' from column 'actions', action_sequence_keys name 'action'"):
    columns.open_columns(data_dir, repack, action_columns=("action",))


def test_chunks_are_cut_from_the_column_that_is_the_actions():
  """Such as a recorder's clean labels; no other entry has to say so."""
  config = make_config("data", columns=ConfigDict({"observation/state": "state", "actions": "label"}))
  assert named_config(filled(config)).data.action_sequence_keys == ("label",)


def test_what_is_prepared_is_what_transforms_make(data_dir, tmp_path):
  config = filled(make_config(data_dir))
  named = named_config(config)
  data = policy_data.load_data(config, named, read_model(config, named), tmp_path)
  source = data.mixtures["train"].sources[0]
  assert isinstance(source.dataset, prepared.PreparedDataset) and source.transform is None
  with config.unlocked():
    config.cache = ""
  plain = policy_data.load_data(config, named, read_model(config, named), tmp_path)
  with policy_data.make_loader(config, data, "train", 0, horizon=4) as fast, \
       policy_data.make_loader(config, plain, "train", 0, horizon=4) as slow:
    found, expected = (policy_data.with_index(loader.read_batch(3)[0]) for loader in (fast, slow))
  found.pop("actions_is_pad", None), expected.pop("actions_is_pad", None)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_pictures_that_a_robot_changes_are_not_passed_on():
  sample = {"image": {"a": np.zeros((4, 4, 3), np.uint8), "b": np.zeros((4, 4, 3), np.uint8)}}
  turned = lambda data: {"image": {"x": data["image"]["a"][::-1]}}  # noqa: E731
  assert prepared.picture_columns(sample, turned) is None
  swapped = lambda data: {"image": {"x": data["image"]["b"], "y": np.zeros((4, 4, 3), np.uint8)}}  # noqa: E731
  assert prepared.picture_columns(sample, swapped) == {"x": ("b", (4, 4)), "y": (None, (4, 4))}


@pytest.fixture(scope="module")
def panda(tmp_path_factory):
  """(configuration, its named one, model, data) of the simulator's episodes, one of six a failure."""
  folder = tmp_path_factory.mktemp("panda")
  tiny.write_data(folder / "data", 5)
  tiny.write_episodes(tiny.episode_path(folder / "data", 5), [tiny.make_episode(5, success=False)])
  config = filled(tiny.make_config(folder / "data", approach_repeats=3))
  named = named_config(config)
  model = read_model(config, named)
  return config, named, model, policy_data.load_data(config, named, model, folder)


def test_the_simulators_episodes_are_one_more_format(panda):
  config, _, _, data = panda
  (part,) = data.parts
  assert part.dataset.num_episodes == 5 and part.facts["tasks"]["pick_and_place"]["seeds"] == [0, 4]
  samples = part.dataset.read_samples(np.array([2]), np.array([1]), horizon=4)
  np.testing.assert_array_equal(samples["actions"][0], tiny.make_episode(2).action_chunks[1])
  batch = policy_data.with_index(policy_data.make_loader(config, data, "train", 0, horizon=4).read_batch(0)[0])
  assert batch["targets"].shape == (4, 7) and batch["actions"].shape == (4, tiny.HORIZON, 5)
  assert np.abs(batch["state"][:, 6:]).max() < 1e-5 < np.abs(batch["state"][:, :6]).max()  # hidden


def test_approaches_are_shown_more_often(panda):
  *_, data = panda
  chunks_FTA = np.zeros((3, emphasis.APPROACH_STEPS, 5))
  chunks_FTA[0, :, 1], chunks_FTA[1, :, 3] = 0.006, -0.02
  assert emphasis.approaches(chunks_FTA, np.array([0, 1, 0])).tolist() == [True, False, False]
  source = data.mixtures["train"].sources[0]
  assert len(source.again) % 3 == 0 < len(source.again)
  frames = sum(data.parts[0].dataset.lengths[list(source.episodes)])
  assert data.mixtures["train"].num_frames == frames + len(source.again)
  assert policy_data.data_record(data)["frames"]["train"] == frames


def test_the_auxiliary_head_learns_beside_several_draws(panda):
  config, named, model, data = panda
  trainable, frozen = policy.initial_params(config, named, model, data)
  assert set(trainable) == {"policy", "auxiliary"} and not frozen
  batch = policy_data.with_index(policy_data.make_loader(config, data, "train", 0, horizon=4).read_batch(0)[0])
  whole, halves = batch, [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(2)]
  loss = jax.jit(lambda batch: policy_loss.batch_loss(
    pi0.Pi0(model), trainable, {}, batch, jax.random.key(1), options=None, draws=2, auxiliary_weight=0.5)[1])
  found = loss(whole)
  assert float(found["loss"]) == pytest.approx(float(found["flow_loss"] + 0.5 * found["auxiliary_loss"]))
  # An example's draws follow from its index, however the batch is split.
  np.testing.assert_allclose(np.mean([loss(half)["loss"] for half in halves]), found["loss"], rtol=1e-5)


def test_fresh_patches_begin_at_the_mean_colour():
  kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
  params = {"PaliGemma": {"img": {"embedding": {"kernel": kernel, "bias": np.ones(4, np.float32)}}, "llm": {}}}
  mean_3 = np.array([0.5, -0.5, 0.0])
  centred = policy.center_images(params, mean_3)["PaliGemma"]["img"]["embedding"]
  np.testing.assert_allclose(centred["bias"] + np.einsum("hwcd,c->d", kernel, mean_3), 1.0, atol=1e-5)


def test_hidden_entries_are_hidden_by_quantiles_too():
  stats = policy_data.hidden(NormStats(np.ones(2), np.ones(2), np.zeros(2), np.full(2, 2.0)), (1,))
  for quantile in (False, True):
    seen = policy_data.normalize(np.array([3.0, 9.0]), stats, quantile=quantile)
    assert abs(seen[0]) > 0.5 and abs(seen[1]) < 1e-4
  with pytest.raises(Pi0RagError, match=r"hidden_state_dims \[2\]: the state has entries 0..1"):
    policy_data.hidden(stats, (2,))


def test_a_small_policy_from_scratch(tmp_path):
  """The example of a new user: what it trains opens, and chunks are the recordings' actions in size."""
  config = make_config(None, small_from_scratch, steps=1, validate_every=1, key_source="values", validation_batches=1)
  loop.train_and_evaluate(config, tmp_path)
  loaded = directory.load(tmp_path / "policy")
  _, chunk_BTA = loaded.sample(loaded.start(1), loaded.prepare([loaded.robot.example()]))
  assert chunk_BTA.shape == (1, 16, 7) and loaded.spec.start == "zero" and loaded.unit_distance
  assert CheckpointStore(tmp_path, asset_id="-").metrics(1)["path_error"] > 0


@pytest.mark.parametrize("module", [panda_small, panda_tasks])
def test_the_shipped_policies_sizes_are_those_of_their_configurations(module):
  config = filled(module.get_config())
  spec, _ = directory.describe(config.name)
  named = named_config(config)
  assert dataclasses.replace(read_model(config, named), remat="none") == spec.sizes
  assert (spec.control_hz, spec.execute_steps, spec.start, spec.data.robot) == (
    config.control_hz, config.execute_steps, config.start, named.data.robot)


@pytest.mark.parametrize(("changes", "message"), [
  ({"data": ()}, r"config.data is empty: give data sets"),
  ({"data": ({"path": "/none"},)}, r"no data set at '/none'"),
  ({"data": ("recordings",)}, r"config.data is \('recordings',\); expected data sets"),
  ({"data": ({"path": "debug", "fields": {"state": "x"}},)}, r"fields: unknown state; allowed: default_prompt, fps"),
  ({"openpi": "pi0_libro"}, r"pi0_libro.*pi0_libero"),
  ({"openpi": "configs/none.py"}, r"no configuration file"),
  ({"openpi": "configs/panda_small.py"}, r"returns a ConfigDict, expected a TrainConfig"),
  ({"columns": ConfigDict({"observation/image": "fromt", "observation/state": "state", "actions": "actions"})},
   r"column 'fromt', which is no camera of .* \(front, wrist\)"),
  ({"microbatches": 3}, r"batch_size 16 must be a multiple of the 1 devices times 3 microbatches"),
  ({"init_checkpoint": "/none"}, r"no checkpoint directory at /none"),
  ({"auxiliary_targets": ("speed",)}, r"column 'speed'.*unknown field"),
])
def test_mistakes_are_named(data_dir, tmp_path, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    loop.train_and_evaluate(make_config(data_dir, **changes), tmp_path)
