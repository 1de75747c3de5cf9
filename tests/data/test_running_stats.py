"""openpi's running statistics: its recorded result, its rules at the borders, and a data set's in parallel."""

from pathlib import Path

import numpy as np
import pytest

from pi0rag_jax.data import formats, running_stats, sampling
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.errors import Pi0RagError

NAMES = ("mean", "std", "q01", "q99")


def updated(*batches) -> running_stats.RunningStats:
  stats = running_stats.RunningStats()
  for batch in batches:
    stats.update(batch)
  return stats


def test_openpis_recorded_result():
  case = np.load(Path(__file__).with_name("recorded") / "running_stats.npz")
  result = updated(*(case[f"in/{i}"] for i in range(4))).result()
  for name in NAMES:
    np.testing.assert_allclose(getattr(result, name), case[f"out/{name}"], rtol=0, atol=1e-12)


def test_a_growing_range_drops_the_lowest_bin_as_openpi_does():
  stats = updated(np.asarray([[0.0], [1.0]]), np.asarray([[2.0]]))
  # The first bin began at -1e-10, below the new range; its entry, of the value 0, is lost.
  assert stats._counts_PX.sum() == 2
  assert stats.result().mean[0] == 1.0


def test_merged_parts_differ_by_a_bin_at_most():
  rng = np.random.default_rng(0)
  parts = [rng.normal(i, 1 + i, (200, 2)) for i in range(4)]
  whole, merged = updated(np.concatenate(parts)), updated(parts[0])
  for part in parts[1:]:
    merged.merge(updated(part))
  for name in NAMES:
    width = np.diff(whole.edges_PX[:, :2])[:, 0]
    assert (np.abs(getattr(merged.result(), name) - getattr(whole.result(), name)) <= 3 * width).all()
  assert merged.count == 800


def test_a_data_sets_statistics_are_those_of_its_episodes_one_after_the_other(recorded):
  dataset = formats.open_dataset(recorded("lerobot_v30")[0])
  state, actions = running_stats.RunningStats(), running_stats.RunningStats()
  for _, data in dataset.iterate():
    state.update(data.state)
    actions.update(action_chunks(data.actions, np.arange(len(data)), 10)[0])
  for workers in (1, 3):
    found = running_stats.compute_norm_stats(dataset, horizon=10, workers=workers, openpi_quantiles=True)
    for name in NAMES:
      np.testing.assert_array_equal(getattr(found["state"], name), getattr(state.result(), name))
      np.testing.assert_array_equal(getattr(found["actions"], name), getattr(actions.result(), name))


def test_transforms_come_before_the_statistics(recorded):
  dataset = formats.open_dataset(recorded("lerobot_v30")[0])
  source = sampling.Source(dataset, transform=lambda sample: sample | {"state": sample["state"][:2]})
  delta = lambda sample: sample | {"actions": sample["actions"][:, :2] - sample["state"]}  # noqa: E731
  found = running_stats.compute_norm_stats(sampling.Mixture([source]), horizon=3, transform=delta)
  episodes = [data for _, data in dataset.iterate()]
  chunks_FTA = np.concatenate([action_chunks(d.actions, np.arange(len(d)), 3)[0][..., :2] for d in episodes])
  state_FP = np.concatenate([d.state[:, :2] for d in episodes])
  np.testing.assert_allclose(found["actions"].mean, (chunks_FTA - state_FP[:, None]).mean((0, 1)), atol=1e-6)
  assert found["state"].mean.shape == (2,)


@pytest.mark.parametrize("batch, message", [
  (np.zeros((0, 2)), "finite rows"), (np.asarray([[np.inf, 0.0]]), "finite rows"), (np.zeros((3, 1)), "have 1 dims"),
])
def test_batches_that_cannot_be_counted_are_refused(batch, message):
  stats = updated(np.ones((2, 2)))
  with pytest.raises(Pi0RagError, match=message):
    stats.update(batch)
  with pytest.raises(Pi0RagError, match="two vectors or more, seen: 1"):
    updated(np.ones((1, 2))).result()
