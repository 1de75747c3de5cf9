"""Teaching over the wire: the same records as in process, whole after any restart, and what is refused."""

import collections
import dataclasses
import types

import numpy as np
import pytest

from pi0rag_jax.data import columns
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import interventions, kept, lessons, taught
from pi0rag_jax.learning.interventions import InterventionConfig
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.learning.online import OnlineConfig, OnlineLearner
from pi0rag_jax.learning.supervisor import SupervisorConfig
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.tokens import token_of
from pi0rag_jax.serving import client, episode_log, messages, server
from pi0rag_jax.serving.episode_log import EpisodeLog
from pi0rag_jax.serving.session import Teachable
from pi0rag_jax.sim.tasks.pick_and_place import PickAndPlace, PickAndPlaceConfig
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Job
from pi0rag_jax.worlds.world import WorldConfig

from .conftest import HOST, PROMPT, running


def opened(policy, folder, capacity=10_000) -> Memory:
  return Memory.open(folder, **policy.memory_header(), capacity=capacity)


def said(memory):
  """Returns all that the records of a memory say, but for where they come from."""
  return [(r.kind, r.outcome, r.failure_kind, r.task, r.prompt, r.provenance["source"], r.provenance["tick"],
           *(array.tobytes() for array in (r.key, r.base_chunk, r.corrected_chunk)), r.helped, r.hurt)
          for _, r in memory.records()]


@pytest.fixture(scope="module")
def played(policy, tmp_path_factory):
  """Two episodes of a simulator in which somebody takes over and hands back, and what they taught in process."""
  task = PickAndPlace(PickAndPlaceConfig(time_limit=44))
  learning = OnlineConfig(taught_by="takeover", supervisor=SupervisorConfig(delay_s=0.4, hold_s=0.4))
  with opened(policy, tmp_path_factory.mktemp("in_process")) as memory:
    agent = Agent(policy, memory)
    learner = OnlineLearner(memory, policy.space, task="pick", condition="nominal", config=learning, stream="s",
                            tick_s=0.05,
                            expert_plan=lambda moments: np.zeros((len(moments), 16, 5), np.float32))
    traces, kinds = [], []
    with BatchEnv(WorldConfig(task, "nominal"), slots=1, processes=0) as env:
      jobs = collections.deque([Job(3, 0), Job(4, 1)])
      for trace in rollout.run(env, agent, jobs, launch=learner.launch, watch=learner.watch, keep_observations=True):
        traces.append(trace)
        kinds.append(learner.learn(trace).failure_kind)
    return list(zip(traces, kinds)), said(memory), (memory.episodes, memory.successes)


def told(trace, kind, name):
  """Returns the messages of a robot that lives through an episode."""
  entries = []
  for number, step in enumerate(trace.steps):
    entry = {"id": name, "task": "pick", "decision": number}
    if number:
      entry |= did(trace, number - 1)
    entries.append({**step.observation, "episode": entry})
  end = {"success": trace.outcome == "success", "failure_kind": kind}
  last = {"id": name, "task": "pick", "decision": len(trace.steps), **did(trace, -1), "end": end}
  return [*entries, {"episode": last}]


def did(trace, number):
  ends = [*(step.tick for step in trace.steps[1:]), trace.ticks]
  step, end = trace.steps[number], ends[number]
  return {"by": step.by, "done": step.actions_TA[: end - step.tick].astype(np.float64)}


@dataclasses.dataclass
class Server:
  """A server without its socket, whose process may be ended at any time."""

  policy: object
  folder: object
  keep: object = None  # folder of kept episodes
  capacity: int = 10_000

  def __enter__(self):
    self.memory = opened(self.policy, self.folder, self.capacity)
    self.agent = Agent(self.policy, self.memory)
    self.log = EpisodeLog(self.folder / episode_log.LOG_NAME)
    self.keeper = None if self.keep is None else kept.Keeper(self.keep, self.policy, under_way=list(self.log.open))
    return Teachable(self.agent, self.memory, self.log, self.keeper)

  def __exit__(self, *_):
    if self.keeper is not None:
      self.keeper.close()
    self.log.close()
    self.agent.close()
    self.memory.close()


def test_what_is_taught_over_the_wire_is_what_is_taught_in_process(policy, played, tmp_path):
  traces, wanted, clock = played
  assert {"correction"} <= {kind for kind, *_ in wanted} and any(trace.helped for trace, _ in traces)
  with Server(policy, tmp_path) as teachable:
    robot = teachable.session()
    for name, (trace, kind) in zip("ab", traces):
      for message, step in zip(told(trace, kind, name), trace.steps):
        answer = robot.infer(messages.unpack(messages.pack(message)))
        if step.by == "policy":
          np.testing.assert_array_equal(answer["actions"], step.actions_TA.astype(np.float64))
      ended = robot.infer(told(trace, kind, name)[-1])
      assert ended["episode"]["id"] == name and not teachable.log.open
    memory = teachable._memory
    assert said(memory) == wanted and (memory.episodes, memory.successes) == clock


def test_a_recorded_data_set_teaches_the_same_corrections(policy, played, tmp_path):
  traces, wanted, _ = played
  keeper = kept.Keeper(tmp_path / "kept", policy)
  with opened(policy, tmp_path / "memory") as memory:
    for name, (trace, kind) in zip("ab", traces):
      context = RecordContext("pick", trace.prompt, {"episode": name}, kind)
      memory.add(lessons.of_episode(trace, policy.space, context, CorrectionConfig()), token=token_of(name))
      ends = [*(step.tick for step in trace.steps[1:]), trace.ticks]
      steps = [dataclasses.replace(step, done_NA=step.actions_TA[: end - step.tick])
               for step, end in zip(trace.steps, ends)]
      for at, step in enumerate(steps):
        keeper.saw(name, at, step.observation)
      keeper.ended(name, kept.Ending("pick", "", trace.prompt, trace.outcome == "success", kind), steps)
  keeper.close()
  written = taught.export(tmp_path / "memory", tmp_path / "kept", tmp_path / "data", pictures="images")
  dataset, to_robot = columns.open_columns(tmp_path / "data", written.columns, action_columns=("action",))
  with opened(policy, tmp_path / "again") as again:
    interventions.learn(again, policy, dataset, InterventionConfig(batch=1), to_robot=to_robot, task="pick")
    # An anchor of a recording says what came next, not what else had been planned; and nobody recorded which records
    # had a say, of which credit is made.
    corrections = [row[:2] + row[3:-2] for row in said(again) if row[0] == "correction"]
  assert corrections == [row[:2] + row[3:-2] for row in wanted if row[0] == "correction"]


@pytest.mark.parametrize("before_the_answer", [False, True])
def test_a_server_that_is_killed_anywhere_goes_on_with_the_episode(policy, played, tmp_path, before_the_answer):
  """Each message meets a new process; its answer is lost at times, so that the robot asks again."""
  traces, wanted, clock = played
  for name, (trace, kind) in zip("ab", traces):
    for message in told(trace, kind, name):
      for _ in range(1 + before_the_answer):
        with Server(policy, tmp_path) as teachable:
          answer = teachable.session().infer(message)
  assert answer["episode"].get("again", False) == before_the_answer
  with opened(policy, tmp_path) as memory:
    assert said(memory) == wanted and (memory.episodes, memory.successes) == clock


def test_others_get_the_answers_of_any_server(policy, played, tmp_path):
  observation = played[0][0][0].steps[0].observation
  with Server(policy, tmp_path) as teachable:
    found, wanted = teachable.session().infer(observation), Agent(policy, teachable._memory).infer(observation)
    assert found.keys() == wanted.keys() and "episode" not in found
    assert messages.pack(found["actions"]) == messages.pack(wanted["actions"]) and not teachable.log.open


def test_undo_takes_the_last_episode_back_and_of_others_the_records(policy, played, tmp_path):
  traces, _, _ = played
  with Server(policy, tmp_path) as teachable:
    robot = teachable.session()
    ids, after = {}, {}
    for name, (trace, kind) in zip("ab", traces):
      for message in told(trace, kind, name):
        answer = robot.infer(message)
      ids[name] = answer["episode"]["records"]
      after[name] = said(teachable._memory)
    memory = teachable._memory
    assert robot.infer({"episode": {"undo": "b"}}) == {"episode": {"id": "b", "forgotten": ids["b"]}}
    assert said(memory) == after["a"] != after["b"] and memory.episodes == 1
    with pytest.raises(Pi0RagError, match="no record comes of the episode 'b'"):
      robot.infer({"episode": {"undo": "b"}})
    robot.infer({"episode": {"forget": ids["a"][:1]}})
    assert robot.infer({"episode": {"undo": "a"}})["episode"]["forgotten"] == ids["a"][1:]
    assert len(memory) == 0


def test_what_the_policy_saw_is_kept_whenever_the_server_is_killed(policy, played, tmp_path, capsys):
  """Every fourth message meets a new process, and is sent to the next one again."""
  folder = tmp_path / "kept"
  for name, (trace, kind) in zip("ab", played[0]):
    entries = told(trace, kind, name)
    for first in range(0, len(entries), 4):
      with Server(policy, tmp_path, folder) as teachable:
        for message in entries[max(first - 1, 0) : first + 4]:
          teachable.session().infer(message)
  with Server(policy, tmp_path, folder) as teachable:
    teachable.session().infer(entries[-1])
  episodes = list(kept.read(folder))
  assert [each.facts.episode for each in episodes] == ["a", "b"] and not list((folder / kept.UNDER_WAY).iterdir())
  for each, (trace, _) in zip(episodes, played[0]):
    np.testing.assert_array_equal(each.data.actions, trace.executed())
    assert [decision.tick for decision in each.facts.decisions] == [step.tick for step in trace.steps]
    by = np.repeat([step.by for step in trace.steps], np.diff([step.tick for step in trace.steps] + [trace.ticks]))
    assert each.data.extras["by"].tolist() == by.tolist() and each.success == (trace.outcome == "success")
    assert each.facts.task == "pick" and each.data.prompts[0] == trace.prompt
    seen = each.observations([step.tick for step in trace.steps])
    for found, step in zip(seen, trace.steps):
      assert found.keys() == step.observation.keys()
      np.testing.assert_array_equal(found["state"], np.float32(step.observation["state"]))
      for camera, picture in step.observation["image"].items():
        np.testing.assert_array_equal(found["image"][camera], picture)
  assert main(["explain", str(tmp_path), "--episode=a", "--decision=1"]) == 0  # of the server's log
  assert "decision 1, tick 4: policy acted; 0 records were near" in capsys.readouterr().out
  with Server(policy, tmp_path, folder) as teachable:
    teachable.undo("b")
  assert [each.facts.episode for each in kept.read(folder)] == ["a"]


@pytest.mark.parametrize(("rule", "way"), [("residual", "forget"), ("aligned", "undo"), ("forgetting", "forget")])
def test_who_is_taught_and_forgets_acts_as_if_never_taught(policy, played, tmp_path, rule, way):
  """The episode is replayed bit for bit, by the agent that was taught and by one that reads the memory anew."""
  (first, second), observations = played[0], [step.observation for step in played[0][1][0].steps]
  # An undo brings back what was evicted, too.
  capacity = len(played[1]) - 2 if way == "undo" else 10_000
  with (Server(policy, tmp_path / "never", capacity=capacity) as never,
        Server(policy, tmp_path / "forgot", capacity=capacity) as forgot):
    agents = [Agent(policy, each._memory, rule) for each in (never, forgot)]
    live_through(never, first, "a")
    live_through(forgot, first, "a")
    before = acted(agents[1], observations)
    ids = live_through(forgot, second, "b")
    assert any(not np.array_equal(*pair) for pair in zip(before, acted(agents[1], observations)))
    if way == "undo":
      assert forgot._memory.statistics()["evicted"]
      forgot.undo("b")
    else:
      forgot.forget(ids)
      with pytest.MonkeyPatch.context() as patch:  # what others helped in it stays, though its own records go
        patch.setattr(lessons, "of_episode", lambda *_: [])
        live_through(never, second, "b")
    third = dataclasses.replace(first[0], steps=[dataclasses.replace(step, key_E=step.key_E + 1) for step in
                                                 first[0].steps])
    for each in (never, forgot):  # at ids that were free again
      context = lessons.RecordContext("pick", "p", {"episode": "c"})
      each._memory.add(lessons.of_episode(third, policy.space, context, lessons.CorrectionConfig()))
    wanted = acted(agents[0], observations)
    again = Agent(policy, Memory.load(tmp_path / "forgot"), rule)
    for found in (acted(agents[1], observations), acted(again, observations)):
      np.testing.assert_array_equal(found, wanted)


def live_through(teachable, episode, name):
  """Returns the records that an episode taught."""
  for message in told(*episode, name):
    answer = teachable.session().infer(message)
  return answer["episode"]["records"]


def acted(agent, observations):
  return [agent.infer(observation)["actions"] for observation in observations]


def test_a_robot_that_knows_nothing_of_episodes_is_taught_from_beside(policy, played, tmp_path):
  trace, _ = played[0][0]
  with Server(policy, tmp_path) as teachable:
    robot, person = teachable.session(), teachable.session()
    assert person.infer({"episode": {"sessions": True}}) == {"episode": {"sessions": [1, 2], "yours": 2}}
    person.infer({"episode": {"id": "a", "session": 1}})
    for number, step in enumerate(trace.steps):
      assert "episode" not in robot.infer(step.observation)
      person.infer({"episode": {"id": "a", **did(trace, number)}})
    ended = person.infer({"episode": {"id": "a", "end": {"success": trace.outcome == "success"}}})
    assert len(ended["episode"]["records"]) == len(teachable._memory) > 0
    robot.infer(trace.steps[0].observation)
    assert not teachable.log.open


@pytest.mark.parametrize(("entry", "message"), [
  (7, "'episode' is a map, got a int"), ({"id": "a", "ends": True}, "unknown field `ends`"),
  ({"id": "a\n"}, "is no name"), ({"id": "a", "by": "dog"}, "unknown actor.*'dog'"), ({}, "an episode needs an id"),
  ({"id": "b", "decision": 3}, "has had 3 answers.*of which 0 are known"),
  ({"id": "b", "end": {"success": True}}, "nothing is known of the episode 'b'"),
  ({"id": "a", "done": np.zeros((2, 3)), "decision": 1}, r"done has shape \[2, 3\]|3 numbers of action"),
  ({"id": "a", "done": np.full((2, 5), 9.0), "decision": 1}, "the policy's robot takes"),
  ({"id": "a", "ticks": 40, "decision": 1}, "ticks is 40, an answer has 16 actions"),
  ({"id": "a", "session": 9}, "there is no session 9"), ({"undo": "zebra"}, "no record comes of the episode 'zebra'"),
  ({"forget": [12345]}, "12345"),
])
def test_what_is_wrong_with_an_entry_is_said(policy, played, tmp_path, entry, message):
  with Server(policy, tmp_path) as teachable:
    robot = teachable.session()
    robot.infer(told(*played[0][0], "a")[0])
    with pytest.raises(Pi0RagError, match=message):
      robot.infer({"episode": entry})


@pytest.mark.parametrize("asked", [
  {"undo": "a"}, {"id": "b", "end": {"success": True}}, {"id": "b", "forget": [1]}, {}])
def test_a_message_with_an_observation_asks_nothing_else(policy, played, tmp_path, asked):
  trace, kind = played[0][0]
  with Server(policy, tmp_path) as teachable:
    robot = teachable.session()
    for message in told(trace, kind, "a"):
      robot.infer(message)
    before = said(teachable._memory)
    with pytest.raises(Pi0RagError, match="give its id, and ask nothing else"):
      robot.infer({**trace.steps[0].observation, "episode": asked})
    assert said(teachable._memory) == before and not teachable.log.open


def test_open_episodes_are_bounded(policy, played, tmp_path, monkeypatch):
  monkeypatch.setattr(episode_log, "MAX_OPEN", 2)
  monkeypatch.setattr(episode_log, "_LARGEST_LOG", 1)
  first = played[0][0][0].steps[0].observation
  with Server(policy, tmp_path) as teachable:
    for name in "abca":
      teachable.session().infer({**first, "episode": {"id": name}})
    assert list(teachable.log.open) == ["c", "a"]
  with Server(policy, tmp_path) as teachable:
    assert list(teachable.log.open) == ["c", "a"]
    assert [len(episode.steps) for episode in teachable.log.open.values()] == [1, 1]


def test_the_client_teaches_over_a_socket_and_outlives_its_server(policy, played, tmp_path):
  trace, kind = played[0][0]
  home = Server(policy, tmp_path)
  with home as teachable, running(server_of(teachable)) as first:
    robot = client.TeachingClient(HOST, first.port)
    robot.begin("a", task="pick", robot="arm 3", teacher="Ann")
    teach(robot, trace, range(2))
    port = first.port
  with home as teachable, running(server_of(teachable, port)):
    teach(robot, trace, range(2, len(trace.steps)))
    ended = robot.end(trace.outcome == "success", failure_kind=kind)
    assert ended["records"] and len(teachable._memory) == len(ended["records"])
    for record in teachable._memory.get(ended["records"]):
      assert (record.provenance["robot"], record.provenance["teacher"]) == ("arm 3", "Ann")
    with pytest.raises(client.ServerError, match="zebra"):
      robot.undo("zebra")
    assert robot.undo("a")["forgotten"] == ended["records"] and len(teachable._memory) == 0
    with pytest.raises(client.ServerError):
      robot.undo("a")
    assert "episode" not in robot.infer(trace.steps[0].observation)  # by another connection
    robot.close()


def server_of(teachable, port=None):
  from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

  return WebsocketPolicyServer(teachable, HOST, port, admission=PROMPT)


def teach(robot, trace, numbers):
  for number in numbers:
    robot.infer(trace.steps[number].observation)
    said_ = did(trace, number)
    robot.did(said_["done"], by=said_["by"])


@pytest.mark.parametrize(("flags", "message"), [
  ({"memory": None}, "--learn needs a --memory"),
  ({"learn": False, "keep_episodes": "kept"}, "--keep_episodes keeps the episodes that teach: it needs --learn"),
  ({"memory_version": 3}, "--memory_version reads what was, which cannot learn"),
  ({"host": "0.0.0.0"}, "whoever reaches 0.0.0.0 could teach the policy: give a --token"),
])
def test_who_may_teach(flags, message):
  values = types.SimpleNamespace(**({"learn": True, "memory": "m", "host": "127.0.0.1", "keep_episodes": None} | flags))
  with pytest.raises(Pi0RagError, match=message):
    server.check_learning(values, None)
  server.check_learning(types.SimpleNamespace(learn=True, memory="m", host="0.0.0.0", keep_episodes=None), "secret")
