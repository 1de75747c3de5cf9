"""Policies of a backbone and a head, on a backbone whose features are known: the mean colour of one camera."""

import dataclasses
import functools
import inspect
import json

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.models.backbones import base as backbones
from pi0rag_jax.models.heads import base, registry
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.policy import directory, head, inspection, keys
from pi0rag_jax.policy.backbone import FOLDER
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.head import HeadPolicy, HeadUnits
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.robots import normalize
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.steering.agent import Agent
from train.head_windows import window_rows

STATE = normalize.NormStats(np.full(2, 3.0), np.full(2, 2.0))
ACTIONS = normalize.NormStats(np.array([1.0, -1.0, 9.0]), np.array([0.1, 10.0, 9.0]))
BACKBONE = {"name": "colour", "checkpoint": ""}
SIZES = {"lstm": {"hidden": 4, "layers": 2}, "mlp": {"hidden_dims": (4,)}, "discrete": {"hidden_dims": (4,)},
         "transformer": {"width": 4, "layers": 1, "num_heads": 2}}


@dataclasses.dataclass(frozen=True)
class Colour(backbones.Backbone):
  hidden_size, image_keys, image_size, max_token_len = 3, ("front",), (4, 4), 0

  def init(self, rng):
    return {"gain": np.float32(1.0)}

  def vision_tower(self, params, image_BHWC):
    return params["gain"] * image_BHWC.reshape(len(image_BHWC), -1, 3)

  def word_embedding(self, params, tokens_BL):
    raise NotImplementedError

  text_tower = word_embedding

  def encode(self, params, obs):
    return self.vision_tower(params, obs.images["front"]).mean(axis=1) * obs.image_masks["front"][:, None]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  monkeypatch.setattr(backbones, "BACKBONES", backbones.BACKBONES | {"colour": Colour})


def make_policy(name="lstm", state_dim=2, robot="plain", key_stats=None, feature_dim=3, **units):
  config = registry.head_config(name, feature_dim=feature_dim, state_dim=state_dim, action_dim=3, chunk=2, window=3,
                                **SIZES[name])
  network = registry.make(config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(functools.partial(base.init, network), jax.random.key(0))
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  data = DataConfig(robot=robot, asset_id="here")
  extractor = FeatureExtractor(Colour(), {"gain": np.float32(1.0)}, STATE, robot=make_robot(data, "head"))
  units = HeadUnits(config, ACTIONS, **units)
  spec = PolicySpec(
    name="painter", model=ModelConfig(), sizes=None, data=data, control_hz=10.0, execute_steps=1,
    head=head.description(extractor, units, backbone=BACKBONE, image_size=[4, 4], state_in_prompt=False,
                          fields={"cameras": {"front": "front"}}))
  return HeadPolicy(spec, params, extractor=extractor, units=units, key_stats=key_stats)


def write(policy, folder, asset_id="here"):
  """Writes all of a head's directory but what says what it is."""
  checkpoints.save_params(folder, jax.device_get(policy.params["head"]))
  checkpoints.save_params(folder / FOLDER, {"gain": np.float32(1.0)})
  checkpoints.save_norm_stats(folder, asset_id, {"state": STATE.to_dict(), "actions": ACTIONS.to_dict()})
  return folder


def observe(steps, seed=1):
  rng = np.random.default_rng(seed)
  return [{"image": {"front": rng.integers(0, 256, (4, 4, 3), np.uint8)}, "state": rng.normal(size=2),
           "prompt": f"draw line {i}"} for i in range(steps)]


def open_memory(policy, folder):
  known = inspect.signature(Memory.open).parameters
  return Memory.open(folder, **{name: value for name, value in policy.memory_header().items() if name in known})


@pytest.mark.parametrize("name", SIZES)
def test_a_stream_is_its_window_and_a_batch_its_rows(name):
  policy, seen = make_policy(name), [observe(5, seed=s) for s in (1, 2, 3)]
  windows = window_rows([0] * 5, window=3)
  run, unit = jax.jit(base.apply, static_argnums=0), jax.jit(policy.units.to_robot)
  carry, chunks = policy.start(4), []
  for t in range(5):
    carry, chunk = policy.sample(carry, policy.prepare([stream[t] for stream in seen]))
    chunks.append(np.asarray(chunk[:3]))
  for row, stream in enumerate(seen):
    inputs = policy.batch([policy.model_input(raw) for raw in stream])
    features_FD = policy.extractor.backbone.encode(policy.params["backbone"], Observation.from_dict(inputs))
    rows_FD = np.concatenate([features_FD, inputs["state"]], axis=-1)
    wanted = run(registry.make(policy.units.config), policy.params["head"], rows_FD[windows.history_FW],
                 windows.history_mask_FW)
    wanted = np.asarray(unit(jax.tree.map(lambda x: x[:, -1], wanted)))
    np.testing.assert_allclose([chunk[row] for chunk in chunks], wanted, atol=1e-4)
    agent = Agent(policy)
    alone = [agent.infer(raw)["actions"] for raw in stream]
    np.testing.assert_allclose([chunk[row] for chunk in chunks], alone, atol=1e-5)


def test_sample_is_encode_and_decode():
  policy, inputs = make_policy(), make_policy().prepare(observe(2))
  after, chunk = policy.sample(policy.start(2), inputs)
  carry, encoded = policy.encode(policy.start(2), inputs)
  np.testing.assert_allclose(policy.decode(encoded), chunk, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, after)
  assert encoded.key_BE.shape == (2, policy.key_dim) and policy.key_dim == 3 + 2 and chunk.shape == (2, 2, 3)
  with pytest.raises(Pi0RagError, match=r"policy 'painter' \(head\) starts from no noise"):
    policy.decode(encoded, np.zeros((2, 2, 3)))


def test_a_row_that_begins_anew_leaves_the_others():
  policy, seen = make_policy(), observe(4)
  carry, _ = policy.sample(policy.start(2), policy.prepare(seen[:2]))
  _, onward = policy.sample(carry, policy.prepare(seen[2:]))
  _, mixed = policy.sample(policy.restart(carry, [False, True]), policy.prepare(seen[2:]))
  _, fresh = policy.sample(policy.start(2), policy.prepare(seen[2:]))
  np.testing.assert_array_equal(mixed, np.stack([onward[0], fresh[1]]))
  assert not np.allclose(onward[1], fresh[1])


def test_sessions_do_not_meet_and_a_bad_observation_changes_nothing():
  agent, seen = Agent(make_policy()), observe(3)
  alone = [agent.infer(raw)["actions"] for raw in seen]
  first, second = agent.session(), agent.session()
  one, two = [], []
  for raw, other in zip(seen, seen[::-1]):
    one.append(first.infer(raw)["actions"])
    with pytest.raises(Pi0RagError, match="state: array has 3 dims, the norm stats have 2"):
      first.infer(raw | {"state": np.zeros(3)})
    two.append(second.infer(other)["actions"])
  np.testing.assert_array_equal(one, alone)
  agent.reset()
  np.testing.assert_array_equal(two, [agent.infer(raw)["actions"] for raw in seen[::-1]])
  assert not np.allclose(two[0], alone[0])


def test_an_absent_camera_is_marked_by_row():
  policy, (raw, other) = make_policy(), observe(2)
  dark = other | {"image_mask": {"front": False}}
  _, encoded = policy.encode(policy.start(2), policy.prepare([raw, dark]))
  assert np.abs(encoded.key_BE[0, :3]).min() > 0 and not np.asarray(encoded.key_BE[1, :3]).any()


@pytest.mark.parametrize("feeding", ["overlap", "callback"])
def test_a_memory_corrects_a_head(tmp_path, feeding):
  stats = keys.KeyStats.identity(keys.KeyRecipe(source=keys.FEATURES), 3)
  policy, seen = make_policy(key_stats=stats), observe(2)
  _, own = Agent(policy).decide(policy.start(2), seen)
  with open_memory(policy, tmp_path) as memory:
    agent = Agent(policy, memory, feeding=feeding)
    _, empty = agent.decide(policy.start(2), seen)
    np.testing.assert_array_equal(empty.actions_BTA, empty.base_BTA)
    memory.add([Record(key=own.key_BE[0], base_chunk=own.base_BTA[0], corrected_chunk=own.base_BTA[0] + [0.1, 0.0, 0.0],
                       kind="correction", outcome="success", provenance={"source": "expert", "seed": 0})])
    agent = Agent(policy, memory, feeding=feeding)
    carry, taught = agent.decide(policy.start(2), seen, trust_B=np.array([1.0, 0.0]))
    np.testing.assert_allclose(taught.base_BTA, own.base_BTA, atol=1e-6)
    moved_TA = taught.actions_BTA[0] - taught.base_BTA[0]
    assert taught.used_B.tolist() == [1, 0] and moved_TA[:, 0].max() > 0.01
    np.testing.assert_array_equal(taught.actions_BTA[1], taught.base_BTA[1])
    assert carry["count"].tolist() == [1, 1]
    with pytest.raises(Pi0RagError, match="a flow elsewhere, which a head policy has none of"):
      Agent(policy, memory, "guidance", feeding=feeding)


def test_units_by_hand():
  units = make_policy(closed=255.0, open=-1.0).units
  labels = units.labels([[1.1, -11.0, 255.0], [0.9, -1.0, 0.0]])
  np.testing.assert_allclose(labels, [[1, -1, 0], [-1, 0, 1]], atol=1e-4)
  output = base.HeadOutput(np.array([[1.0, -1.0], [-1.0, 0.0]]), np.array([[-0.1], [0.1]]))
  np.testing.assert_allclose(units.to_robot(output), [[1.1, -11.0, 255.0], [0.9, -1.0, -1.0]], atol=1e-4)
  with pytest.raises(Pi0RagError, match=r"open at 1.0 and closed at 1.0"):
    make_policy(closed=1.0)
  with pytest.raises(Pi0RagError, match="the norm stats have 2 action dims, the head 3"):
    HeadUnits(units.config, STATE)


def test_a_policy_directory_of_either_format_opens(tmp_path):
  policy, seen = make_policy(closed=255.0, open=-1.0), observe(1)
  wanted = Agent(policy).infer(seen[0])["actions"]
  new = write(policy, tmp_path / "new")
  policy.spec.save(new)
  loaded = directory.load(new)
  assert loaded.spec == policy.spec and loaded.fingerprint == policy.fingerprint
  np.testing.assert_array_equal(Agent(loaded).infer(seen[0])["actions"], wanted)
  np.testing.assert_array_equal(Agent(loaded).infer(loaded.robot.example())["actions"].shape, (2, 3))
  told = inspection.inspect(str(new))
  assert list(told["parts"]) == ["head", "all"] and told["flops"] is None and told["cameras"] == ["front"]
  assert told["parts"]["all"]["parameters"] == sum(x.size for x in jax.tree.leaves(policy.params["head"]))
  assert "not counted here" in told["doubts"][0] and "painter: head" in inspection.in_words(told)
  old, plain = write(policy, tmp_path / "old", "head"), policy.spec.head
  (old / "head.json").write_text(json.dumps({name: plain[name] for name in ("head", "units", *head.FINGERPRINTS)}))
  with pytest.raises(Pi0RagError, match=r"no record.json in"):
    directory.load(old)
  (old / "record.json").write_text(json.dumps({"config": {"name": "painter"}}))
  with pytest.raises(Pi0RagError, match=r"record.json in .* it lacks 'fields'"):
    directory.load(old)
  (old / "record.json").write_text(json.dumps({"config": {
    "name": "painter", "backbone": BACKBONE, "fields": plain["fields"], "text_tokenizer": "", "stride": 2,
    "state_in_prompt": False}}))
  loaded = directory.load(old)
  assert loaded.fingerprint == policy.fingerprint and loaded.spec.execute_steps == 2
  np.testing.assert_array_equal(Agent(loaded).infer(seen[0])["actions"], wanted)


def test_what_does_not_belong_together_is_refused(tmp_path):
  policy = make_policy()
  folder = write(policy, tmp_path)
  policy.spec.save(folder)
  with pytest.raises(Pi0RagError, match=r"weights 'int8' of a head; allowed: None"):
    directory.load(folder, weights="int8")
  for given in ({"start": "draw:1"}, {"denoising_steps": 3}):
    with pytest.raises(Pi0RagError, match="is a head: it has no flow"):
      directory.load(folder, **given)
  with pytest.raises(Pi0RagError, match=r"the keys 'hidden\+state1' are made of 3 numbers; a head's are"):
    directory.load(folder, key_stats=keys.KeyStats.identity(keys.KeyRecipe(), 3))
  dataclasses.replace(policy.spec, head={**policy.spec.head, "weights": "another's"}).save(folder)
  with pytest.raises(Pi0RagError, match=r"trained with other weights of the backbone \(another's"):
    directory.load(folder)
  elsewhere = {**policy.spec.head, "backbone": BACKBONE | {"checkpoint": "/none"}}
  dataclasses.replace(policy.spec, head=elsewhere).save(folder)
  with pytest.raises(Pi0RagError, match="the backbone's weights are missing: nothing at '/none'"):
    directory.load(folder)
  dataclasses.replace(policy.spec, head={"head": policy.spec.head["head"], "cameras": ["front"]}).save(folder)
  with pytest.raises(Pi0RagError, match="its head lacks units, backbone, image_size"):
    directory.load(folder)
  with pytest.raises(Pi0RagError, match="the head reads 4 features, the backbone gives 3"):
    make_policy(feature_dim=4)
  with pytest.raises(Pi0RagError, match="the head reads 1 dims of state, the robot has 2"):
    make_policy(state_dim=1)
  with pytest.raises(Pi0RagError, match="actions: the robot 'panda' has 5 dims, the norm stats have 3"):
    make_policy(robot="panda")
  with pytest.raises(Pi0RagError, match="no picture of front, there are side"):
    policy.prepare([observe(1)[0] | {"image": {"side": np.zeros((4, 4, 3), np.uint8)}}])
