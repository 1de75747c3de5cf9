import numpy as np
import pytest

from pi0rag_jax.memory import ANCHOR, CORRECTION, Record, eviction
from pi0rag_jax.memory.index import MemoryIndex, build


@pytest.fixture
def make_index(header, make_record):
  """Returns make_index(kind, xs, uses): ids from 1."""

  def make(kind, xs, uses=None):
    records = [make_record(x, kind, use_count=u) for x, u in zip(xs, uses or [0] * len(xs))]
    return build(header, 100, enumerate(records, 1))

  return make


def test_near_duplicates_go_first_then_spacing_is_measured_again(make_index):
  # Spacings 1, 1, 3, 5: of the pair the older goes, and then the other is 4 away from 3's record.
  index = make_index(ANCHOR, [0.0, 1.0, 4.0, 9.0])
  assert eviction.crowded(index, ANCHOR, 4) == [1, 2, 3, 4]
  index = make_index(ANCHOR, [0.0, 1.0, 10.0, 12.0])
  # 1-2 at distance 1 loses the older; 3-4 at 2 loses its older; then 2 and 4 tie at 11.
  assert eviction.crowded(index, ANCHOR, 4) == [1, 3, 2, 4]


def test_the_least_used_goes_on_ties(make_index):
  index = make_index(ANCHOR, [0.0, 1.0, 50.0], uses=[5, 2, 0])
  assert eviction.crowded(index, ANCHOR, 1) == [2]
  index = make_index(ANCHOR, [0.0, 1.0, 50.0], uses=[2, 5, 0])
  assert eviction.crowded(index, ANCHOR, 1) == [1]


def test_no_more_than_there_are(make_index):
  assert eviction.crowded(make_index(ANCHOR, []), ANCHOR, 3) == []
  assert eviction.crowded(make_index(ANCHOR, [1.0]), ANCHOR, 3) == [1]
  assert eviction.crowded(make_index(ANCHOR, [1.0]), CORRECTION, 3) == []


def test_only_records_nearer_than_a_threshold(make_index):
  index = make_index(ANCHOR, [0.0, 0.1, 0.2, 5.0, 5.5])
  assert eviction.crowded(index, ANCHOR, 5, below=0.5) == [1, 2]
  assert eviction.crowded(index, ANCHOR, 5, below=0.51) == [1, 2, 4]


def test_anchors_go_before_corrections_and_incoming_anchors_before_those(header, make_record):
  records = [make_record(float(x), kind) for x, kind in ((0, CORRECTION), (0, CORRECTION), (5, ANCHOR), (9, ANCHOR))]
  index = build(header, 4, enumerate(records, 1))
  assert eviction.choose(index, 1, []) == ([3], [])
  assert eviction.choose(index, 2, [ANCHOR] * 2) == ([3, 4], [])
  assert eviction.choose(index, 3, [CORRECTION, ANCHOR, ANCHOR]) == ([3, 4], [1])
  assert eviction.choose(index, 3, []) == ([3, 4, 1], [])


def spacing_by_hand(index, kind):
  """Returns {id: distance to the nearest other record of the kind}, from all pairs."""
  taken = index.region(kind)
  keys_ME, ids = index.keys(taken), index.ids_M[taken]
  distances_MM = np.linalg.norm(keys_ME[:, None] - keys_ME[None], axis=-1)
  np.fill_diagonal(distances_MM, np.inf)
  return dict(zip(ids.tolist(), distances_MM.min(axis=1, initial=np.inf)))


def test_incremental_spacing_equals_all_pairs(header):
  rng = np.random.default_rng(3)
  index, chunk_TA = MemoryIndex(header, 80), np.zeros((3, 2))
  identity = 0
  for step in range(60):
    for _ in range(60 if step == 0 else rng.integers(1, 4)):
      identity += 1
      key_E = rng.integers(0, 6, 4)  # a coarse grid: many duplicates and ties
      index.add(identity, Record(key_E, chunk_TA, chunk_TA, ANCHOR if rng.random() < 0.7 else CORRECTION, "success"))
    for kind in (ANCHOR, CORRECTION):
      eviction.refresh(index, kind)
      taken = index.region(kind)
      found = dict(zip(index.ids_M[taken].tolist(), index.spacing_M[taken]))
      assert found == pytest.approx(spacing_by_hand(index, kind))
    ids = [int(i) for kind in (ANCHOR, CORRECTION) for i in index.ids_M[index.region(kind)]]
    index.remove(rng.choice(ids, min(len(ids), max(0, len(ids) - 70) + 2), replace=False))


def test_greedy_order_equals_removing_one_at_a_time(header):
  rng = np.random.default_rng(4)
  chunk_TA = np.zeros((3, 2))
  records = [Record(rng.integers(0, 4, 4), chunk_TA, chunk_TA, ANCHOR, "success", use_count=int(rng.integers(3)))
             for _ in range(60)]  # fmt: skip
  index = build(header, 60, enumerate(records, 1))
  at_once = eviction.crowded(index, ANCHOR, 25)
  one_by_one = []
  for _ in range(25):
    spacing = spacing_by_hand(index, ANCHOR)
    one_by_one.append(min(spacing, key=lambda i: (spacing[i], records[i - 1].use_count, i)))
    index.remove(one_by_one[-1:])
  assert at_once == one_by_one
