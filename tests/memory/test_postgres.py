"""A memory on a real server: who follows, what happens while it is away, what was at a version, what is refused."""

import logging
import threading
import time

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, Memory, address, anew, portable, store, verify
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.memory.survey import Survey

psycopg = pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
from pi0rag_jax.memory.postgres import connection as connections  # noqa: E402
from pi0rag_jax.memory.postgres import schema as tables  # noqa: E402
from pi0rag_jax.memory.postgres import store as postgres_store  # noqa: E402

pytestmark = pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)


def soon(holds):
  """Waits for what another thread does."""
  deadline_s = time.monotonic() + 20
  while not holds():
    assert time.monotonic() < deadline_s
    time.sleep(0.005)


def same(*memories):
  """Waits until all have heard of the same version; returns whether their indices then are the truth."""
  newest = max(memory.statistics()["version"] for memory in memories)
  soon(lambda: all(memory.statistics()["version"] == newest for memory in memories))
  return all(memory.index_problems() == [] for memory in memories)


def test_everybody_follows_everything(open_memory, make_record, key):
  one, two = open_memory(capacity=4), open_memory(capacity=4)
  reader = open_memory(read_only=True, capacity=1)
  assert one.add([make_record(0.0), make_record(1.0, ANCHOR, task="pick")], token="a") == [1, 2]
  assert two.add([make_record(2.0), make_record(3.0, ANCHOR)], token="b", outcomes=[([1], [0.5], True)]) == [3, 4]
  assert same(one, two, reader) and len(reader) == 4
  assert reader.query(key(0.0), 4).helped_BK.tolist()[0][0] == 0.5
  assert reader.query(key(0.0), 4, task="pick").ids_BK.tolist() == [[-1, -1, 2, -1]]
  # Evicts what another one added: 2 and 4 are anchors, 2 the older one.
  two.record_use([4])
  two.flush()
  assert one.add([make_record(9.0)], token="c") == [5]
  assert same(one, two, reader) and sorted(i for i, _ in reader.records()) == [1, 3, 4, 5]
  one.undo("c")
  assert same(one, two, reader) and sorted(i for i, _ in two.records()) == [1, 2, 3, 4]
  two.remove([1])
  two.quarantine([3], "why")
  assert same(one, two, reader)
  assert reader.query(key(0.0), 4).ids_BK.tolist() == [[-1, -1, 2, 4]]
  assert reader.removals > 0 and (reader.episodes, reader.successes) == (1, 1)
  with pytest.raises(Pi0RagError, match="changed without a token since"):
    one.undo("b")


def test_several_write_at_once_without_a_gap(open_memory, make_record, place):
  memories = [open_memory(capacity=1000) for _ in range(3)]

  def teach(memory, robot):
    for number in range(8):
      # A clock that is a day off decides nothing.
      memory.add([make_record(float(number), created=1e9 - 86_400 * robot)] * (1 + robot), token=f"{robot} {number}")

  threads = [threading.Thread(target=teach, args=pair) for pair in zip(memories, range(3))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert same(*memories)
  contents = anew.read(place())
  assert list(contents.records) == list(range(1, 49)) and len(contents.commits) == 24
  spans = sorted((commit.span.start, commit.span.stop) for commit in contents.commits)
  assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
  assert verify.verify(place()) == []


def test_what_was_is_read_as_it_was(open_memory, make_record, key, place):
  memory = open_memory(capacity=3)
  states = [anew.digest(anew.read(place()))]
  told = []

  def after(change):
    change()
    told.append(anew.digest(anew.read(place())))

  after(lambda: memory.add([make_record(0.0), make_record(1.0, ANCHOR)], token="a"))
  after(lambda: memory.add([], token="b", outcomes=[([1, 2], [0.1, 0.7], True)]))
  after(lambda: memory.add([make_record(5.0), make_record(6.0)], token="c", outcomes=[([1], [0.3], False)]))  # evicts 2
  after(lambda: memory.quarantine([1], "why"))
  memory.record_use([1, 1])
  after(memory.flush)
  states += told
  for version, state in enumerate(states):
    with Memory.load(place(), version=version) as then:
      assert anew.digest(anew.read(address.at_version(place(), version))) == state, version
      assert then.index_problems() == [] and then.statistics()["version"] == version
  with Memory.load(place(), version=2) as then:
    memory.add([make_record(7.0)])
    found = then.query(key(0.0), 4)
    assert found.ids_BK.tolist() == [[1, -1, 2, -1]] and np.allclose(found.helped_BK, [[0.1, 0, 0.7, 0]])
    assert then.episodes == 1
    with pytest.raises(Pi0RagError, match="read-only"):
      then.add([])
  with pytest.raises(Pi0RagError, match=r"there is no version 99, allowed: 0 to \d"):
    Memory.load(place(), version=99)
  with pytest.raises(Pi0RagError, match="what was is only read"):
    Memory.load(place(), version=1, read_only=False)


def test_versions_that_are_given_up(open_memory, make_record, place):
  memory, reader = open_memory(capacity=2), open_memory(read_only=True)
  for number in range(6):
    memory.add([make_record(float(number), ANCHOR)], token=str(number), outcomes=[([number], [1.0], True)])
  assert same(memory, reader)
  with reader.frozen():  # hears of nothing until all is over
    memory.add([make_record(6.0, ANCHOR)], token="6")
    memory.add([make_record(7.0, ANCHOR)], token="7")
    assert main(["compact", place(), "--keep_versions=1"]) == 0
    memory.add([make_record(8.0, ANCHOR)], token="8")
  assert same(memory, reader) and len(reader) == 2
  assert verify.verify(place()) == []
  assert len(Memory.load(place(), version=7)) == 2
  with pytest.raises(Pi0RagError, match="there is no version 6, allowed: 7 to 9"):
    Memory.load(place(), version=6)
  memory.undo("8")
  memory.undo("7")
  with pytest.raises(Pi0RagError, match="what was before it was given up"):
    memory.undo("6")
  assert same(memory, reader)


def test_what_is_removed_for_good_is_gone_from_every_version(open_memory, make_record, place, postgres):
  memory = open_memory(capacity=2)
  said = {"provenance": {"source": "human", "episode": "e", "note": "a face"}, "prompt": "a secret"}
  memory.add([make_record(1.0, ANCHOR, **said), make_record(2.0, ANCHOR, **said)], token="e")
  memory.add([make_record(9.0)])  # evicts one of the two
  memory.remove(memory.of_episode("e"), episode="e")
  memory.add([make_record(3.0, prompt="a secret")], token="f")
  memory.undo("f")
  with psycopg.connect(connections.conninfo.make_conninfo(address.locate(place()).uri)) as connection:
    kept = connection.execute("SELECT r::text FROM pi0rag.records r JOIN pi0rag.memories m ON m.id = memory "
                              "WHERE name = %s AND r::text LIKE '%%secret%%'", (address.locate(place()).memory,))
    assert kept.fetchall() == []
  with pytest.raises(Pi0RagError, match="version 1 cannot be read any more, 2 of its records were removed for good"):
    Memory.load(place(), version=1)
  assert memory.index_problems() == verify.verify(place()) == []


def test_while_the_server_is_away(make_record, key, caplog, monkeypatch, own_server):
  monkeypatch.setattr(postgres_store, "PATIENCE_S", 0.2)
  fields = {"key_dim": 4, "action_horizon": 3, "action_dim": 2, "encoder": "test", "policy": "policy 1"}
  with Memory.open(own_server.address("m"), **fields) as memory:
    memory.add([make_record(0.0)], token="a")
    with caplog.at_level(logging.WARNING, logger="pi0rag_jax"):
      own_server.kill()
      soon(lambda: not memory.statistics()["connected"])
      assert memory.query(key(0.0), 2).ids_BK.tolist() == [[1, -1]]
      found = memory.statistics()
      assert (found["records"], found["by_kind"], found["version"]) == (1, {"correction": 1}, 1)
      with pytest.raises(store.UnreachableError, match=r"nothing more is tried after 0.2 s.*same token is safe"):
        memory.add([make_record(1.0)], token="b")
      with pytest.raises(Pi0RagError, match=r"cannot be reached: .*refused"):
        Memory.load(own_server.address("m"))
      time.sleep(0.3)
      own_server.start()
      soon(lambda: memory.statistics()["connected"])
    # What other tests left running may warn too.
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("pi0rag_jax.memory")]
    assert len(lines) == 2 and "going on with the records that are here" in lines[0] and "is back after" in lines[1]
    assert not any(own_server.password in line for line in lines)
    assert memory.add([make_record(1.0)], token="b") == [2]
    assert len(memory) == 2 and memory.index_problems() == []
    memory.record_use([1])
    own_server.kill()
  assert "use counts of this session are lost" in caplog.messages[-1]


@pytest.fixture
def own_server(store_kind, tmp_path_factory, postgres):
  """The worker's server, to be killed and started by the test."""
  yield postgres
  postgres.kill()
  postgres.start()


@pytest.mark.parametrize("token", ["a", None])
def test_a_connection_that_breaks_after_the_commit(open_memory, make_record, place, monkeypatch, token):
  memory = open_memory()
  told = postgres_store.writing.finish
  breaks = iter([True, False])

  def finish(commit, kind, call):
    told(commit, kind, call)
    if next(breaks):
      # The answer to the COMMIT is lost on its way back.
      commit.connection.execute("COMMIT")
      raise psycopg.OperationalError("the connection was lost")

  monkeypatch.setattr(postgres_store.writing, "finish", finish)
  ids = memory.add([make_record(0.0), make_record(1.0)], token=token)
  assert ids == [1, 2] and len(memory) == 2
  assert list(anew.read(place()).records) == [1, 2]
  assert memory.index_problems() == []


def test_a_connection_that_breaks_in_the_middle_leaves_nothing_half(open_memory, make_record, place, monkeypatch):
  memory = open_memory()
  memory.add([make_record(0.0)], token="a")
  before = anew.digest(anew.read(place()))
  insert = postgres_store.writing.insert
  monkeypatch.setattr(postgres_store, "PATIENCE_S", 0.1)

  def broken(commit, rows, refuse):
    insert(commit, rows, refuse)
    commit.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

  monkeypatch.setattr(postgres_store.writing, "insert", broken)
  with pytest.raises(store.UnreachableError, match=r"the connection to .* was lost"):
    memory.add([make_record(1.0), make_record(2.0)], token="b", outcomes=[([1], [1.0], True)])
  monkeypatch.undo()
  assert anew.digest(anew.read(place())) == before and len(memory) == 1
  assert memory.add([make_record(1.0), make_record(2.0)], token="b") == [2, 3]


def test_a_frozen_memory_stands_still(open_memory, make_record):
  one, two = open_memory(), open_memory()
  with one.frozen():
    two.add([make_record(0.0)])
    time.sleep(0.05)
    assert len(one) == 0
  soon(lambda: len(one) == 1)


def test_servers_and_memories_that_are_refused(open_memory, postgres, place, make_record):
  open_memory().add([make_record(0.0)])
  good = place()
  wrong = good.replace(f":{postgres.password}@", ":wrong-secret@")
  for where, options, message in (
    (wrong, {}, "the server refuses: .*password authentication failed"),
    (good.replace("/postgres?", "/nowhere?"), {}, 'database "nowhere" does not exist'),
    (good.replace(f":{postgres.port}/", ":1/"), {}, "cannot be reached: .*refused"),
    (good + "&nonsense=1", {}, "no address that libpq understands: .*nonsense"),
    (good + "-other", {"create": False}, "no memory in .*-other: the server has none of this name"),
    (good + "-other", {"read_only": True}, "no memory in"),
    (good, {"policy": "policy 2"}, "policy is 'policy 2', the memory has 'policy 1'"),
  ):
    with pytest.raises(Pi0RagError, match=message) as told:
      open_memory(where, **options)
    text = str(told.value)
    assert "\n" not in text and postgres.password not in text and "wrong-secret" not in text
  with pytest.raises(Pi0RagError, match=r"cannot be read or written: .*NUL"):
    open_memory().add([make_record(0.0, task="a\0b")])


def test_tables_of_another_version_are_left_alone(open_memory, place, postgres):
  open_memory()
  with psycopg.connect(address.locate(place()).uri, autocommit=True) as connection:
    connection.execute("UPDATE pi0rag.alembic_version SET version_num = '99'")
    try:
      for options in ({}, {"read_only": True}):
        with pytest.raises(Pi0RagError, match="its tables have version 99, this code knows 1: it was left as it is"):
          open_memory(**options)
    finally:
      connection.execute("UPDATE pi0rag.alembic_version SET version_num = %s", (tables.REVISIONS[-1],))


def test_the_migrations_are_those_that_the_code_knows(store_kind):
  import alembic.config
  import alembic.script

  config = alembic.config.Config()
  config.set_main_option("script_location", "pi0rag_jax.memory.postgres:migrations")
  found = [script.revision for script in alembic.script.ScriptDirectory.from_config(config).walk_revisions()]
  assert tuple(reversed(found)) == tables.REVISIONS


def test_tables_are_made_once_by_many_at_once(postgres, place, open_memory):
  name = f"db_{address.locate(place()).memory.partition('-')[0]}"
  with psycopg.connect(address.locate(place()).uri, autocommit=True) as connection:
    connection.execute(f"CREATE DATABASE {name}")
  where, ended = place().replace("/postgres?", f"/{name}?"), []
  with pytest.raises(Pi0RagError, match="no memory in"):
    open_memory(where, read_only=True)

  def make():
    ended.append(open_memory(where))

  threads = [threading.Thread(target=make) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(ended) == 3 and len({memory.header for memory in ended}) == 1


def test_credentials_come_from_a_file_or_the_environment(open_memory, postgres, place, tmp_path, monkeypatch):
  open_memory()
  bare = place().replace(f":{postgres.password}@", "@")
  with pytest.raises(Pi0RagError, match="no password supplied"):
    Memory.load(bare)
  passwords = tmp_path / "passwords"
  passwords.write_text(f"127.0.0.1:{postgres.port}:*:*:{postgres.password}\n")
  passwords.chmod(0o600)
  Memory.load(address.with_credentials(bare, str(passwords))).close()
  monkeypatch.setenv("PGPASSWORD", postgres.password)
  Memory.load(bare).close()


def test_a_server_that_does_not_sync_is_named(open_memory, place, caplog):
  with psycopg.connect(address.locate(place()).uri, autocommit=True) as connection:
    connection.execute("ALTER ROLE pi0rag SET synchronous_commit = off")
    try:
      memory = open_memory()
      assert memory._store._rows("SELECT current_setting('synchronous_commit')")[0][0] == "on"
    finally:
      connection.execute("ALTER ROLE pi0rag RESET synchronous_commit")
  assert [record.getMessage() for record in caplog.records if "synchronous_commit off" in record.getMessage()]


def test_copies_both_ways_say_the_same(open_memory, make_record, place, tmp_path, capsys):
  memory = open_memory(capacity=3)
  memory.add([make_record(0.0, task="pick"), make_record(1.0, ANCHOR)], token="a", outcomes=[([], [], True)])
  memory.add([make_record(2.0)], token="b", outcomes=[([1], [0.25], False)])
  memory.add([make_record(3.0)])
  memory.record_use([1])
  memory.quarantine([3], "why")
  memory.close()
  folder, again = str(tmp_path / "folder"), place("again")
  assert main(["copy", place(), folder]) == 0
  assert main(["copy", folder, again]) == 0
  told = capsys.readouterr().out
  assert told.count("which says the same") == 2 and "pi0rag:" not in told
  assert len({anew.digest(anew.read(where)) for where in (place(), folder, again)}) == 1
  assert verify.verify(folder) == verify.verify(again) == []
  with Memory.load(again, read_only=False) as copied:
    assert copied.add([make_record(2.0)], token="b") == [3]  # known by its token
    with pytest.raises(Pi0RagError, match="cannot be taken back"):
      copied.undo("b")
    assert copied.add([make_record(8.0)]) == [5]
  for target in (folder, again):
    assert main(["copy", place(), target]) == 2
    assert "is in use already: choose a new place" in capsys.readouterr().err


def test_commands_take_a_server(open_memory, make_record, place, tmp_path, capsys):
  memory = open_memory()
  memory.add([make_record(0.0, task="pick")], token="a")
  memory.add([make_record(1.0, ANCHOR)], token="b")
  where = place()
  for command in (["inspect", where], ["inspect", where, "--json", "--memory_version=1"], ["verify", where],
                  ["backup", where, str(tmp_path / "backup")], ["export", where, f"--out={tmp_path / 'm.npz'}"],
                  ["import", place("new"), f"--from={tmp_path / 'm.npz'}"], ["compact", where],
                  ["explain", where, "--ids=1"],
                  ["merge", place("both"), where, place("new")]):
    assert main(command) == 0, command
    told = capsys.readouterr()
    assert address.locate(where).secrets()[0] not in told.out + told.err
  assert verify.verify(tmp_path / "backup") == []
  assert portable.read_export(tmp_path / "m.npz")[1][0].task == "pick"
  assert len(Memory.load(place("both"))) == 2
  survey = Survey(where)
  try:
    assert survey.overview()["records"] == 2 and survey.episodes()["total"] == 2
    memory.add([make_record(5.0)], token="c", outcomes=[([1], [1.0], True)])
    soon(lambda: survey.overview()["records"] == 3)
    assert survey.record(1)["record"]["helped"] == 1.0 and survey.episodes()["total"] == 3
    memory.undo("c")
    soon(lambda: survey.overview()["records"] == 2)
  finally:
    survey.close()


def test_nothing_of_it_is_seen_by_others_nor_left_behind(open_memory, place, tmp_path, monkeypatch):
  """The survey's process gets the address by its input, not by its arguments."""
  open_memory()
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  from pi0rag_jax.memory.aside import SurveyAside

  aside = SurveyAside(place())
  try:
    assert aside.ask("overview")["records"] == 0
    with open(f"/proc/{aside._process.pid}/cmdline", "rb") as file:
      assert b"postgresql" not in file.read()
    assert len(list(tmp_path.glob("pi0rag_mirror_*"))) == 1
  finally:
    aside.close()
  assert not list(tmp_path.glob("pi0rag_mirror_*"))
