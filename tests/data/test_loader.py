"""Batches: the same from files, cache and memory; resumed where they were; several data sets in one."""

import numpy as np
import pytest

from pi0rag_jax.data import arrays, cache, formats, loader, sampling
from pi0rag_jax.data.dataset import DamagedEpisode, Fields
from pi0rag_jax.errors import Pi0RagError


def batches(data, *, steps=3, start_step=0, **options):
  mixture = data if isinstance(data, sampling.Mixture) else sampling.Mixture(data)
  sampler = sampling.Sampler(mixture, batch_size=6, seed=1)
  with loader.Loader(sampler, horizon=8, start_step=start_step, **options) as made:
    return [next(made) for _ in range(steps)]


def assert_equal(first, second):
  assert first.keys() == second.keys()
  for name, value in first.items():
    if isinstance(value, dict):
      assert_equal(value, second[name])
    else:
      np.testing.assert_array_equal(value, second[name])


@pytest.fixture
def dataset(recorded):
  return formats.open_dataset(recorded("lerobot_v30")[0])


def test_a_batch_is_what_its_rows_say(dataset):
  step, batch = batches(dataset, steps=2)[1]
  rows = sampling.Sampler(sampling.Mixture(dataset), batch_size=6, seed=1).rows(1)
  assert step == 1
  for slot, (e, f) in enumerate(zip(rows.episode.tolist(), rows.frame.tolist())):
    data = dataset.read_episode(e)
    np.testing.assert_array_equal(batch["state"][slot], data.state[f])
    np.testing.assert_array_equal(batch["actions"][slot, 0], data.actions[f])
    np.testing.assert_array_equal(batch["actions_is_pad"][slot], np.arange(f, f + 8) >= len(data))
    np.testing.assert_array_equal(batch["image"][dataset.cameras[1]][slot], data.images[dataset.cameras[1]][f])
    assert batch["prompt"][slot] == data.prompts[f]


def test_files_cache_and_memory_give_the_same_batches(dataset, tmp_path):
  from_files = batches(dataset, image_size=(32, 48))
  memory = arrays.load_into_memory(dataset, image_size=(32, 48))
  cached = cache.build_cache(dataset, tmp_path, image_size=(32, 48))
  for other in (batches(memory), batches(cached), batches(dataset, image_size=(32, 48), threads=2, prefetch=3)):
    for (_, first), (_, second) in zip(from_files, other):
      assert_equal(first, second)


def test_a_resumed_loader_goes_on_with_the_same_batches(dataset):
  through, resumed = batches(dataset, steps=4), batches(dataset, steps=2, start_step=2)
  assert [step for step, _ in resumed] == [2, 3]
  for (_, first), (_, second) in zip(through[2:], resumed):
    assert_equal(first, second)


def test_data_sets_of_several_formats_make_one_batch(dataset, recorded):
  rlds = formats.open_dataset(recorded("rlds_tfrecord")[0], fields=Fields(cameras={"base": "image"}))
  robomimic = formats.open_dataset(recorded("robomimic_hdf5")[0], fields=Fields(cameras={"base": "agentview_image"}))
  mixture = sampling.Mixture([sampling.Source(rlds, 0.5), sampling.Source(robomimic, 0.5)])
  with pytest.raises(Pi0RagError, match=r"differ in the shape of state: \[\(8,\), \(9,\)\]"):
    batches(mixture)

  def shorten(sample):
    return sample | {"state": sample["state"][:8], "prompt": "robomimic"}

  mixture = sampling.Mixture([sampling.Source(rlds, 0.5), sampling.Source(robomimic, 0.5, transform=shorten)])
  batch = batches(mixture, steps=1)[0][1]
  assert batch["state"].shape == (6, 8) and batch["image"]["base"].shape == (6, 64, 64, 3)
  rows = sampling.Sampler(mixture, batch_size=6, seed=1).rows(0)
  assert [text == "robomimic" for text in batch["prompt"]] == (rows.source == 1).tolist()
  with pytest.raises(Pi0RagError, match=r"differ in image/: \['base'\] and \['observation"):
    batches(sampling.Mixture([sampling.Source(rlds, 0.5), sampling.Source(dataset, 0.5)]))


def test_the_time_waited_for_data_is_measured(dataset, monkeypatch):
  import time

  read = dataset.read_samples
  monkeypatch.setattr(dataset, "read_samples", lambda *a, **k: (time.sleep(0.05), read(*a, **k))[1])
  sampler = sampling.Sampler(sampling.Mixture(dataset), batch_size=2, seed=0)
  with loader.Loader(sampler, horizon=2) as made:
    next(made)
    assert made.last_wait_s > 0.04
    time.sleep(0.3)
    next(made)
    assert made.last_wait_s < 0.04 < made.waited_s


def test_an_interrupted_cache_is_finished_without_doing_all_of_it_again(dataset, tmp_path, monkeypatch):
  reads, failures, read = [], [RuntimeError("power lost")], dataset.read_episode

  def failing(episode, *, images=True):
    reads.append(episode)
    if episode == 5 and failures:
      raise failures.pop()
    return read(episode, images=images)

  monkeypatch.setattr(dataset, "read_episode", failing)
  with pytest.raises(RuntimeError):
    cache.build_cache(dataset, tmp_path, workers=1)
  folder = next(tmp_path.iterdir())
  with pytest.raises(Pi0RagError, match=r"is not whole: build it again"):
    formats.open_dataset(folder)
  reads.clear()
  cached = cache.build_cache(dataset, tmp_path, workers=1)
  assert sorted(reads) == [4, 5]  # four at a time are written
  assert formats.open_dataset(folder).num_episodes == 6
  for e in range(6):
    np.testing.assert_array_equal(cached.read_episode(e).images[dataset.cameras[0]],
                                  dataset.read_frames(e, np.arange(dataset.episode_length(e)))[dataset.cameras[0]])
  reads.clear()
  cache.build_cache(dataset, tmp_path)
  assert not reads
  assert cache.build_cache(dataset, tmp_path, cameras=dataset.cameras[:1]).path != cached.path


def test_a_cache_leaves_out_damaged_episodes_and_notices_its_own_damage(recorded, tmp_path, monkeypatch):
  dataset = formats.open_dataset(recorded("lerobot_v21")[0], skip_bad=True)
  read = dataset._read_camera

  def failing(episode, key, indices):
    if episode == 1:
      raise ValueError("broken")
    return read(episode, key, indices)

  monkeypatch.setattr(dataset, "_read_camera", failing)
  cached = cache.build_cache(dataset, tmp_path, image_size=32)
  assert cached.lengths.tolist() == dataset.lengths[[0, 2]].tolist()
  assert len(dataset.damaged) == 1
  np.testing.assert_array_equal(cached.read_episode(1).state, dataset.read_episode(2, images=False).state)
  pictures = cached.path / "images_0.u8"
  pictures.write_bytes(pictures.read_bytes()[:-1])
  with pytest.raises(Pi0RagError, match=r"is damaged .*cut off.*remove it"):
    formats.open_dataset(cached.path)
  with pytest.raises(DamagedEpisode, match=r"cut off"):
    cached.read_frames(1, [cached.episode_length(1) - 1], [dataset.cameras[0]])
