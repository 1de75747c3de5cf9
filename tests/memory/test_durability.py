import numpy as np

from pi0rag_jax.memory import codec, durability


def test_killed_writers_lose_nothing_that_they_acknowledged():
  report = durability.run(10, seed=0)
  assert report.problems == []
  assert (report.runs, report.runs_evicting) == (10, 5)
  assert report.records_acknowledged > 50


def test_batches_are_the_same_every_time():
  digests = [[codec.digest(r, durability.HEADER) for r in durability.batch_records(7)] for _ in range(2)]
  assert digests[0] == digests[1]
  assert 1 <= len(digests[0]) <= 6


def filled(directory, capacity, batches):
  memory = durability._open(str(directory), capacity)
  return memory, {n: memory.add(durability.batch_records(n), token=f"batch {n}") for n in range(batches)}


def test_the_check_sees_what_is_lost_doubled_partial_or_strange(tmp_path):
  memory, acknowledged = filled(tmp_path, durability.ROOMY, 6)
  with memory:
    assert durability.check(memory, acknowledged, 6) == ([], False)
    memory.remove(acknowledged[2][:1])
    problems, _ = durability.check(memory, acknowledged, 6)
    assert any("batch 2 was acknowledged" in problem for problem in problems)
    del acknowledged[2]
    assert any("batches [2] were never written" in p for p in durability.check(memory, acknowledged, 6)[0])
    assert any("batch 2 is there in part" in p for p in durability.check(memory, acknowledged, 2)[0])
    memory.add(durability.batch_records(3))
    assert any("batch 3 was acknowledged" in p for p in durability.check(memory, acknowledged, 2)[0])


def test_a_tight_memory_must_hold_its_last_batch(tmp_path):
  memory, acknowledged = filled(tmp_path, durability.TIGHT, 40)
  with memory:
    assert len(memory) == durability.TIGHT
    assert durability.check(memory, acknowledged, 40) == ([], False)
    memory.remove(acknowledged[39])
    assert len(durability.check(memory, acknowledged, 40)[0]) == 1


def test_acknowledgements_are_read_from_a_killed_writer(tmp_path):
  rng = np.random.default_rng(1)
  first = durability.kill_once(str(tmp_path), 0, durability.ROOMY, rng)
  second = durability.kill_once(str(tmp_path), len(first), durability.ROOMY, rng)
  assert sorted(first | second) == list(range(len(first) + len(second)))
  assert all(len(ids) == len(durability.batch_records(n)) for n, ids in (first | second).items())


def test_command_line(capsys):
  assert durability.main(["--runs=1", "--seed=3"]) == 0
  assert '"runs": 1' in capsys.readouterr().out
