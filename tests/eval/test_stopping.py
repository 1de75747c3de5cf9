"""When a comparison is decided, and in which order it is looked at."""

from eval import stopping
from eval.records import EpisodeRecord


def records(letters: str, policy="memory") -> list[EpisodeRecord]:
  names = {"s": "success", "f": "failure", "c": "crashed"}
  return [EpisodeRecord("eval", policy, "task", "shift", "", seed, seed, names[letter])
          for seed, letter in enumerate(letters)]


def decided_after(mine: str, *controls: str) -> int | None:
  decision = stopping.Decision([records(letters, "base") for letters in controls])
  return next((count for count, record in enumerate(records(mine), 1) if decision.add(record)), None)


def test_seven_of_seven_changes_decide_either_way():
  assert decided_after("s" * 20, "f" * 20) == decided_after("f" * 20, "s" * 20) == 7
  assert decided_after("s" * 6, "f" * 20) is None
  assert decided_after("fs" * 10, "ff" * 10) == 14, "what ends as before says nothing"
  assert decided_after("sf" * 40, "fs" * 40) is None


def test_crashes_are_no_pairs():
  assert decided_after("csssssss", "f" * 8) == 8
  assert decided_after("ssssssss", "c" + "f" * 7) == 8


def test_every_control_must_be_decided_but_not_at_once():
  assert decided_after("s" * 20, "f" * 20, "s" * 20) is None
  assert decided_after("s" * 14, "f" * 7 + "s" * 7, "s" * 7 + "f" * 7) == 14


def test_episodes_are_looked_at_by_their_seeds_and_no_more_than_needed():
  made = records("s" * 6)
  asked = []

  def new():
    for record in (made[3], made[1], made[2], made[5]):
      asked.append(record.seed)
      yield record

  seen = stopping.in_order(range(6), {0: made[0], 4: made[4]}, new())
  assert next(seen) is made[0] and not asked
  assert next(seen) is made[1] and asked == [3, 1]
  assert [record.seed for record in seen] == [2, 3, 4, 5]
