"""openpi's running statistics: its recorded result, its rules at the borders, and a data set's in parallel."""

from pathlib import Path

import numpy as np
import pytest

from pi0rag_jax.data import formats, loader, running_stats, sampling
from pi0rag_jax.data.dataset import DamagedEpisode, Dataset, EpisodeData, Fields
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


class Frames(Dataset):
  """Episodes of given states, which are the actions too."""

  format = "frames"

  def __init__(self, *episodes, skip_bad=False):
    super().__init__("frames", fields=Fields(), skip_bad=skip_bad)
    self._episodes, self.fps, self.camera_keys = episodes, 10.0, {}
    self.lengths = np.asarray([len(episode) for episode in episodes])

  def episode_name(self, episode):
    return f"episode {episode}"

  def files(self):
    return []

  def _read_arrays(self, episode):
    rows = np.asarray(self._episodes[episode])
    return EpisodeData(rows, rows, ["go"] * len(rows), np.arange(len(rows)) / 10)

  def _read_camera(self, episode, key, indices):
    raise NotImplementedError


def test_quantiles_are_exact_whatever_the_order_and_the_threads():
  rng = np.random.default_rng(0)
  zeros = np.zeros((90, 3))
  rows = np.concatenate([rng.normal(size=(700, 3)), rng.normal(size=(7, 3)) * 1e6, zeros, -zeros])
  rows = np.column_stack([rows, np.repeat([0.0, 1e-30, 5.0], [500, 300, 87]), np.full(887, -3.25)]).astype(np.float32)
  rng.shuffle(rows)
  expected = np.quantile(rows.astype(float), [0.01, 0.99], axis=0)
  for cuts, workers in (([100, 103, 600], 1), ([5, 300], 3)):
    found = running_stats.compute_norm_stats(Frames(*np.split(rows, cuts)), horizon=1, workers=workers)["state"]
    np.testing.assert_array_equal([found.q01, found.q99], expected)
    np.testing.assert_allclose([found.mean, found.std], [rows.mean(0, float), rows.std(0, float)], rtol=1e-12)


def test_a_range_that_grows_spoils_openpis_quantiles_and_not_ours():
  episodes = [np.linspace(0, 1, 90)[:, None], np.full((10, 1), 5000.0)]
  theirs = running_stats.compute_norm_stats(Frames(*episodes), horizon=1, openpi_quantiles=True)["state"]
  ours = running_stats.compute_norm_stats(Frames(*episodes), horizon=1)["state"]
  stats = updated(*episodes).result()
  assert (theirs.q01[0], theirs.q99[0]) == (stats.q01[0], stats.q99[0])
  exact = np.quantile(np.concatenate(episodes), 0.01)
  assert abs(ours.q01[0] - exact) < 1e-7 < abs(theirs.q01[0] - exact)


@pytest.mark.parametrize("openpi_quantiles", [False, True])
def test_numbers_that_are_not_finite_are_named_and_left_out(openpi_quantiles):
  bad = np.ones((6, 2))
  bad[4, 1] = np.nan
  options = {"horizon": 3, "openpi_quantiles": openpi_quantiles}
  with pytest.raises(DamagedEpisode, match=r"state\[1\] of episode 1 is nan at frame 4, in the data set 'frames'"):
    running_stats.compute_norm_stats(Frames(np.ones((5, 2)), bad), **options)
  dataset = Frames(np.ones((5, 2)), bad, np.full((5, 2), 3.0), skip_bad=True)
  assert running_stats.compute_norm_stats(dataset, **options)["state"].mean.tolist() == [2.0, 2.0]
  assert list(dataset.damaged) == ["episode 1"]
  with pytest.raises(DamagedEpisode, match=r"\[0\] of episode 0 is 1e\+39 at frame 0"):
    running_stats.compute_norm_stats(Frames(np.full((5, 2), 1e39)), **options)


def test_dimensions_that_hardly_vary_are_warned_of(caplog):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(500, 4)) * [1, 1e-7, 0, 1e-3]
  rows[250, 2] = 1.0  # one frame in 500, far from the others
  running_stats.compute_norm_stats(Frames(rows[:300], rows[300:]), horizon=1)
  warned = [message.split(":")[0] for message in caplog.messages]
  assert warned == [f"{name}[{dim}] hardly varies" for name in ("state", "actions") for dim in (1, 2)]


def test_vectors_of_several_sizes_are_refused():
  with pytest.raises(Pi0RagError, match=r"vectors have 3 dims, those before had 2|vectors have 2 dims, those"):
    running_stats.compute_norm_stats(Frames(np.ones((5, 2)), np.ones((5, 3))), horizon=1, workers=1)


def test_a_loader_gives_no_number_that_is_not_finite():
  rows = np.ones((6, 2))
  rows[3, 1] = np.inf
  dataset = Frames(rows, np.ones((6, 2)), skip_bad=True)
  with loader.Loader(sampling.Sampler(sampling.Mixture(dataset), batch_size=12, seed=0), horizon=2) as batches:
    assert np.isfinite(next(batches)[1]["actions"]).all()
  assert "[1] of episode 0 is not finite at frame 3" in dataset.damaged["episode 0"] or "at frame 2" in (
    dataset.damaged["episode 0"])
