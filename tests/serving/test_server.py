"""The command: any policy with its memory, compiled, served, ended by Ctrl-C; mistakes end in one line."""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import interventions
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.policy.spec import TOKENIZER_NAME
from pi0rag_jax.serving import server
from pi0rag_jax.serving.chunk_broker import ActionChunkBroker
from pi0rag_jax.serving.client import WebsocketClientPolicy
from pi0rag_jax.steering.agent import Agent
from tests.learning.recorded_aloha import write_aloha
from tests.steering.conftest import make_policy, seen  # noqa: F401

TESTS = pathlib.Path(__file__).parents[1]
TOKENIZER = TESTS / "robots" / "recorded" / "tokenizer" / "tiny_paligemma_like.model"
COMMAND = [sys.executable, "-m", "pi0rag_jax.serving.server"]
SHIPPED = "panda_small"
CHECKPOINT = TESTS / "golden" / "pi0" / "checkpoint"
# A model of the golden case's sizes for ALOHA, whose data have the columns of its own recorder.
CONFIG = f"""
import dataclasses, json, pathlib
from eval import parity
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS
from pi0rag_jax.openpi import named_configs
from pi0rag_jax.openpi.config import ModelConfig

class Small(ModelConfig):
  def build(self):
    case = json.loads(pathlib.Path({str(CHECKPOINT.parent / "case.json")!r}).read_text())
    return parity.read_config(case["kind"], case["config"], dict.fromkeys(f"in/image/{{k}}" for k in OPENPI_CAMERAS))

def get_config():
  config = named_configs.get_config("pi0_aloha")
  repack = {{"images": {{"cam_high": "cam_high", "cam_left_wrist": "cam_left_wrist"}}, "state": "observations/qpos",
            "actions": "action"}}
  return dataclasses.replace(config, model=Small(), data=dataclasses.replace(config.data, repack=repack))
"""


def flags(**changes):
  """Returns the flags of the server, or of the command that learns from interventions."""
  return types.SimpleNamespace(**{
    "policy": None, "config": None, "checkpoint": None, "memory": None, "keep_episodes": None, "key_name": "",
    "start": None, "capacity": 100, "default_prompt": None, "denoising_steps": None, "weights": None, "token": None,
    "real_time": False,
    "allow_origin": [], "max_clients": 8, "idle_s": 60.0,
    "batch_window_ms": 0.0, "max_message_mb": None, "columns": None, "fps": None,
    "state": None, "actions": None, "cameras": None, "prompt": None, "flag": "intervention", "stride": 1, "before": 1,
    "task": "", "failure_kind": "", "skip_bad": False, **changes})


@pytest.fixture
def golden(tmp_path, monkeypatch):
  """The flags of an openpi checkpoint with a configuration file."""
  monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
  (tmp_path / "big_vision").mkdir()
  shutil.copy(TOKENIZER, tmp_path / "big_vision" / "paligemma_tokenizer.model")
  (tmp_path / "mine.py").write_text(CONFIG)
  return {"policy": str(tmp_path / "mine.py"), "checkpoint": str(CHECKPOINT)}


def test_an_openpi_checkpoint_gets_a_memory_from_recorded_interventions(golden, tmp_path, connect, capsys):
  recorded = write_aloha(tmp_path / "data" / "open_the_jar")
  memory_dir = str(tmp_path / "memory")
  interventions.run(flags(**golden, data=tmp_path / "data", memory=memory_dir, prompt="open the jar"))
  assert "22 records of 2 interventions in 2 episodes" in capsys.readouterr().out
  assert directory.describe(**golden)[0].start == "new"
  with server.open_agent(flags(**golden, memory=memory_dir)) as agent:
    assert agent.policy.spec.start == agent.memory.header.start == "zero"
    example = server.example_of(agent, "wave")
    server.warm_up(agent, example, all_prompts=False)
    client = connect(agent, agent.metadata)
    assert client.get_server_metadata() == agent.policy.spec.metadata and example["prompt"] == "wave"
    base = Agent(agent.policy)
    with Memory.load(memory_dir) as memory:
      records = [record for _, record in memory.records() if record.provenance["episode"] == 1]
    at = {record.provenance["tick"]: record for record in records}
    found = client.infer(recorded[20])
    own_TA = base.infer(recorded[20])["actions"]
    np.testing.assert_array_equal(found["actions"], agent.session().infer(recorded[20])["actions"])
    np.testing.assert_allclose(at[20].base_chunk, own_TA, atol=0.02)
    # At the record's own place the chunk goes the whole way to what the person did there, in the robot's units.
    away = np.abs(found["actions"] - at[20].corrected_chunk).mean()
    assert found["neighbours_used"] > 0 and away < 0.2 * np.abs(own_TA - at[20].corrected_chunk).mean()
    rng = np.random.default_rng(9)
    strange = {**recorded[0], "state": rng.uniform(-1, 1, 14), "images": {
        name: np.full((3, 24, 32), 255 * row, np.uint8) for row, name in enumerate(recorded[0]["images"])}}
    elsewhere = client.infer(strange)
    assert elsewhere["neighbours_used"] == 0
    np.testing.assert_array_equal(elsewhere["actions"], base.infer(strange)["actions"])


def test_a_memory_of_another_start_is_refused(golden, tmp_path):
  memory_dir = str(tmp_path / "memory")
  with Memory.open(memory_dir, **directory.load(**golden, start="draw:3").memory_header()):
    pass
  with server.open_agent(flags(**golden, memory=memory_dir)) as agent:
    assert agent.policy.spec.start == "draw:3"
  with pytest.raises(Pi0RagError, match="start is 'zero', the memory has 'draw:3'"), \
       server.open_agent(flags(**golden, memory=memory_dir, start="zero")):
    pass


@pytest.mark.parametrize(("changes", "message"), [
  ({"columns": "{"}, "--columns is no JSON"),
  ({"columns": '{"state": "x"}'}, "'actions' among them"),
  ({"columns": '{"images": {"cam_high": "top"}, "state": "qpos", "actions": "action"}'}, "column 'top'"),
  ({"fps": 10.0}, "has 10 frames per s, policy 'pi0_aloha' acts 50 times"),
  ({"flag": "takeover"}, "unknown field for the intervention"),
  ({"cameras": ["cam_high"]}, "--cameras has 'cam_high', expected the policy's camera=stored camera"),
])
def test_data_that_do_not_fit_are_refused(golden, tmp_path, changes, message):
  write_aloha(tmp_path / "data" / "open_the_jar", episodes=1, frames=22)
  with pytest.raises(Pi0RagError, match=message):
    interventions.run(flags(**golden, data=tmp_path / "data", memory=str(tmp_path / "memory"), **changes))


def test_columns_must_be_known(golden, tmp_path):
  pathlib.Path(golden["policy"]).write_text(CONFIG.replace("repack=repack", "repack=None"))
  with pytest.raises(Pi0RagError, match="give --columns, the robot's keys by column names"):
    interventions.run(flags(**golden, data=tmp_path, memory=str(tmp_path / "memory")))


def test_a_policy_directory_is_served(golden, tmp_path, connect):
  """As train.launch writes one of a fine-tune: it says all of its configuration, columns of the data too."""
  spec, _ = directory.describe(golden["policy"], golden["checkpoint"])
  folder = tmp_path / "policy"
  checkpoints.save_checkpoint(folder, checkpoints.load_params(CHECKPOINT), {
    "trossen": checkpoints.load_norm_stats(CHECKPOINT, "trossen")})
  spec.save(folder)
  shutil.copy(TOKENIZER, folder / TOKENIZER_NAME)
  recorded = write_aloha(tmp_path / "data" / "open_the_jar", episodes=1, frames=22)
  with server.open_agent(flags(policy=str(folder), start="zero")) as agent, \
       server.open_agent(flags(config=golden["policy"], checkpoint=str(CHECKPOINT), start="zero")) as by_name:
    assert agent.policy.spec.data.repack == spec.data.repack
    np.testing.assert_array_equal(connect(agent).infer(recorded[0])["actions"], by_name.infer(recorded[0])["actions"])


def test_clients_of_a_head_have_windows_of_their_own(make_policy, seen, connect):  # noqa: F811
  def chunks(agent, raws):
    return [agent.infer(raw)["actions"] for raw in raws]

  agent = Agent(make_policy("lstm"))
  client = connect(agent, agent.metadata)
  first = chunks(client, seen[:1])
  np.testing.assert_array_equal(chunks(connect.another(), seen[1:2]), chunks(agent.session(), seen[1:2]))
  wanted = chunks(agent.session(), seen[:2])
  np.testing.assert_array_equal(first + chunks(client, seen[1:2]), wanted)
  # A new connection is a new episode.
  np.testing.assert_array_equal(chunks(connect.another(), seen[:1]), wanted[:1])
  assert np.abs(wanted[1] - chunks(agent.session(), seen[1:2])[0]).max() > 1e-4


@pytest.fixture(scope="module")
def small():
  return directory.load(SHIPPED)


@pytest.fixture
def memory_dir(small, observations, tmp_path):
  """A memory of one correction, made where the first observation is."""
  _, decision = Agent(small).decide((), observations[:1])
  base_TA = decision.base_BTA[0]
  with Memory.open(tmp_path, **small.memory_header()) as memory:
    memory.add([Record(key=decision.key_BE[0], base_chunk=base_TA, kind="correction", outcome="success",
                       corrected_chunk=base_TA + np.float32([0, 0.005, 0, 0, 0]),
                       provenance={"source": "expert", "seed": 0})])
  return str(tmp_path)


def test_a_shipped_policy_is_served_with_its_memory(small, memory_dir, observations, connect):
  base_TA = Agent(small).infer(observations[0])["actions"]
  with server.open_agent(flags(policy=SHIPPED, memory=memory_dir)) as agent:
    client = connect(agent, agent.metadata)
    metadata = client.get_server_metadata()
    assert metadata["execute_steps"] == 8 and metadata["memory_records"] == 1 and metadata["action_horizon"] == 16
    found = client.infer(observations[0])
    assert found["neighbours_used"] == 1 and np.abs(found["actions"] - base_TA).max() > 1e-3
    np.testing.assert_array_equal(found["actions"], agent.infer(observations[0])["actions"])
    timing = found["policy_timing"]
    assert timing["infer_ms"] >= timing["search_ms"] > 0 and "steer_ms" in timing
    with pytest.raises(Pi0RagError, match=r"the state is absurd, .* not of a working robot"):
      client.infer({**observations[0], "state": np.full(10, 1e38)})


def test_no_request_waits_for_the_compiler(memory_dir, observations, capsys):
  with server.open_agent(flags(policy=SHIPPED, memory=memory_dir)) as agent:
    with warnings.catch_warnings():
      warnings.simplefilter("error")  # of an example's zeros, which no robot measured
      server.warm_up(agent, server.example_of(agent, None), all_prompts=False)
    assert "an inference takes" in capsys.readouterr().out
    session = agent.session()
    with pytest.warns(UserWarning, match="state lies far outside"):
      session.infer({**observations[1], "state": np.zeros(10)})
    with compiling.counted() as at_a_request:
      session.infer({**observations[1], "prompt": "do something"})
  assert at_a_request.needed == 0
  server.warm_up(agent, None, all_prompts=False)
  assert "Not compiled yet" in capsys.readouterr().out


def test_a_signal_during_the_start_is_not_lost(monkeypatch):
  """Where the exception that it raises is: in a callback of the garbage collector."""
  def warm_up(*args, **kwargs):
    with pytest.raises(KeyboardInterrupt):
      server._terminate(signal.SIGTERM, None)

  monkeypatch.setattr(server, "_terminated", threading.Event())
  monkeypatch.setattr(server, "warm_up", warm_up)
  monkeypatch.setattr(compiling, "keep_programs", lambda: None)
  with pytest.raises(KeyboardInterrupt):
    server.run(flags(policy=SHIPPED, host="127.0.0.1", port=0, token_file=None, all_prompts=False, learn=False))


@pytest.mark.parametrize(("changes", "message"), [
  ({"image": None}, "image is NoneType; allowed: a dictionary"),
  ({"image": {}}, "'image' is a dictionary of nothing"),
  ({"state": np.zeros(3)}, "state has 3 numbers, the robot has 10"),
  ({"prompt": None}, "prompt is NoneType; allowed: one string"),
  ({"prompt": b"\xff"}, "prompt is no UTF-8"),
  ({"prompt": "x" * 5000}, "prompt has 5000 characters; allowed: 4096"),
])
def test_observations_that_do_not_fit_are_refused(small, observations, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    Agent(small).infer({**observations[0], **changes})


def test_prompts_may_be_arrays_or_missing(small, observations):
  wanted = Agent(small).infer(observations[0])["actions"]
  for prompt in (np.array(observations[0]["prompt"]), np.array([observations[0]["prompt"]])):
    np.testing.assert_array_equal(Agent(small).infer({**observations[0], "prompt": prompt})["actions"], wanted)
  silent = {key: value for key, value in observations[0].items() if key != "prompt"}
  with server.open_agent(flags(policy=SHIPPED, default_prompt=observations[0]["prompt"])) as agent:
    np.testing.assert_array_equal(agent.infer(silent)["actions"], wanted)


def test_the_chunk_broker_takes_a_policy_of_this_process(small, observations):
  broker = ActionChunkBroker(Agent(small), 2)
  first = broker.infer(observations[0])["actions"]
  broker.infer(observations[0])
  broker.reset()
  np.testing.assert_array_equal(broker.infer(observations[0])["actions"], first)


def test_a_memory_must_be_there_and_the_policys(small, tmp_path):
  with pytest.raises(Pi0RagError, match="no memory in /none"), \
       server.open_agent(flags(policy=SHIPPED, memory="/none")):
    pass
  with Memory.open(tmp_path, **{**small.memory_header(), "policy": "another"}):
    pass
  with pytest.raises(Pi0RagError, match="another"), server.open_agent(flags(policy=SHIPPED, memory=str(tmp_path))):
    pass


def test_messages_may_be_as_large_as_the_observation_needs(small):
  admission = server.admission(flags(), "sesame", small.robot.example())
  assert admission.token == "sesame" and 2 * server.PICTURE_BYTES < admission.message_bytes < 3 * server.PICTURE_BYTES
  assert server.admission(flags(max_message_mb=100), None, None).message_bytes == 100 << 20


def test_tokens_come_from_flag_file_or_environment(tmp_path, monkeypatch):
  (tmp_path / "token").write_text("of file\n")
  assert server.read_token(None, None) is None and server.read_token("of flag", None) == "of flag"
  assert server.read_token(None, str(tmp_path / "token")) == "of file"
  monkeypatch.setenv(server.TOKEN_VARIABLE, "of environment")
  assert server.read_token(None, None) == "of environment"
  for token, file, message in (("x", "y", "either"), ("", None, "is empty"), ("é", None, "other characters"),
                               (None, str(tmp_path / "none"), "cannot read --token_file")):
    with pytest.raises(Pi0RagError, match=message):
      server.read_token(token, file)


def test_it_serves_until_interrupted(observations):
  command = [*COMMAND, f"--policy={SHIPPED}", "--port=0", "--token=sesame"]
  with contextlib.ExitStack() as ends:
    # A shell's background jobs ignore Ctrl-C, and so do their children.
    process = ends.enter_context(subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)))
    ends.callback(process.kill)
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("Loaded ") and lines[1].startswith("Compiled in ") and " programs, " in lines[1], lines
    address = lines[2].split()[2]
    assert address.startswith("ws://127.0.0.1:")
    client = WebsocketClientPolicy(address, api_key="sesame")
    for observation in observations:
      actions_TA = client.infer(observation)["actions"]
      assert actions_TA.shape == (16, 5) and np.isfinite(actions_TA).all()
    process.send_signal(signal.SIGINT)
    out, log = process.communicate(timeout=60)
  assert (process.returncode, out) == (0, "\nStopped.\n"), log
  assert "Traceback" not in log and "opened" in log and "closed" in log
  client.close()


@pytest.mark.parametrize("flags_", [[], ["--config=pi0_droid", f"--policy={SHIPPED}"]])
def test_mistakes_end_in_one_line(flags_):
  done = subprocess.run([*COMMAND, *flags_], capture_output=True, text=True, check=False)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith("pi0rag_jax.serving.server: give one --policy") and done.stderr.count("\n") == 1
