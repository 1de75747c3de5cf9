import pathlib
import sys
import threading

import fsspec
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, download, norm_stats

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pi0" / "checkpoint"
URL = "memory://bucket/checkpoints/pi0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv(download.DATA_HOME, str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def remote():
  """A store in memory with openpi's checkpoint, and a train_state beside it."""
  store = fsspec.filesystem("memory")
  store.put(str(GOLDEN), "/bucket/checkpoints/pi0", recursive=True)
  store.pipe("/bucket/checkpoints/pi0/train_state/big", b"0" * 1000)
  store.pipe("/bucket/weights/table.npz", b"table")
  yield store
  store.rm("/bucket", recursive=True)


def forbid(monkeypatch, *names):
  """Makes every use of the network, or of packages, fail."""
  def refuse(url):
    raise AssertionError(f"asked for {url}")
  for name in names:
    monkeypatch.setattr(download, name, refuse)


def test_the_cache_is_openpis(monkeypatch, tmp_path):
  url = "gs://openpi-assets/checkpoints/pi0_base/params/"
  assert download.cached_path(url) == tmp_path / "cache/openpi-assets/checkpoints/pi0_base/params"
  monkeypatch.delenv(download.DATA_HOME)
  assert download.cached_path(url) == pathlib.Path.home() / ".cache/openpi/openpi-assets/checkpoints/pi0_base/params"


@pytest.mark.parametrize("url", ["gs://bucket", "gs://", "gs://bucket/a/../../b"])
def test_an_address_of_nothing_is_refused(url):
  with pytest.raises(Pi0RagError, match="expected gs://bucket/path"):
    download.cached_path(url)


def test_a_checkpoint_is_downloaded_once_without_its_train_state(remote, cache, monkeypatch):
  params = checkpoints.load_params(URL)
  stats = norm_stats.load_norm_stats(URL, "physical-intelligence/libero")
  local = cache / "bucket/checkpoints/pi0"
  assert stats["actions"]["std"].shape == (7,)
  assert sorted(path.name for path in local.iterdir() if path.suffix != ".lock") == [
      "_CHECKPOINT_METADATA", "assets", "params"]
  files = {path.relative_to(GOLDEN): path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
  assert files == {path: (local / path).read_bytes() for path in files}
  forbid(monkeypatch, "_open", "_import_filelock")
  again = checkpoints.load_params(URL + "/")
  assert again["state_proj"]["bias"].tobytes() == params["state_proj"]["bias"].tobytes()


def test_the_params_alone_will_do(remote, cache):
  assert len(checkpoints.load_params(f"{URL}/params")["state_proj"]) == 2
  assert not (cache / "bucket/checkpoints/pi0/assets").exists()
  # What is missing of a checkpoint comes when it is asked for.
  assert norm_stats.load_norm_stats(URL, "droid")["state"]["mean"].shape == (8,)


def test_a_single_file(remote, cache):
  file = download.fetch("memory://bucket/weights/table.npz")
  assert file == cache / "bucket/weights/table.npz" and file.read_bytes() == b"table"
  assert download.local_checkpoint("memory://bucket/weights/table.npz") == file


def test_a_broken_download_leaves_nothing_under_the_final_name(remote, cache, monkeypatch):
  class Breaking(type(remote)):
    def get(self, sources, targets):
      pathlib.Path(targets[0]).write_bytes(b"half")
      raise ConnectionResetError("line went dead")

  with monkeypatch.context() as patch:
    patch.setattr(download, "_open", lambda url: (Breaking(), "/bucket/weights"))
    with pytest.raises(Pi0RagError, match="line went dead"):
      download.fetch("memory://bucket/weights")
  assert not (cache / "bucket/weights").exists()
  assert (download.fetch("memory://bucket/weights") / "table.npz").read_bytes() == b"table"
  assert not (cache / "bucket/weights.partial").exists()


def test_a_short_download_is_noticed(remote, cache, monkeypatch):
  class Short(type(remote)):
    def get(self, sources, targets):
      pathlib.Path(targets[0]).write_bytes(b"tab")

  monkeypatch.setattr(download, "_open", lambda url: (Short(), "/bucket/weights"))
  with pytest.raises(Pi0RagError, match=r"fell short: table\.npz"):
    download.fetch("memory://bucket/weights")
  assert not (cache / "bucket/weights").exists()


def test_two_at_once_download_once(remote, monkeypatch):
  calls, whole = [], download._download

  def counted(url, draft):
    calls.append(url)
    whole(url, draft)

  monkeypatch.setattr(download, "_download", counted)
  threads = [threading.Thread(target=download.fetch, args=("memory://bucket/weights",)) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(calls) == 1


def test_a_wrong_address_is_named(remote):
  with pytest.raises(Pi0RagError, match="nothing at memory://bucket/nowhere"):
    download.fetch("memory://bucket/nowhere")
  with pytest.raises(Pi0RagError, match=r"is no checkpoint: it holds table\.npz, not params"):
    checkpoints.load_params("memory://bucket/weights")
  with pytest.raises(Pi0RagError, match="Protocol not known: nosuch"):
    download.fetch("nosuch://bucket/weights")


@pytest.mark.parametrize("package", ["gcsfs", "filelock"])
def test_a_missing_package_says_how_to_install_it(package, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(Pi0RagError, match=r"pip install 'pi0rag-jax\[gcs\]'"):
    download.fetch("gs://openpi-assets/checkpoints/pi0_base/params")


@pytest.mark.parametrize("told", [{"crc32c": "yZRlqg=="}, {"md5Hash": "XrY7u+Ae7tCTyyK7j1rNww=="}])
def test_checksums_of_the_store_are_compared(told, remote, cache, monkeypatch):
  """Of the text `hello world`."""

  class Store(type(remote)):
    text = b"hello world"

    def find(self, root, detail):
      return {"/bucket/weights/table.npz": {"size": 11, **told}}

    def get(self, sources, targets):
      pathlib.Path(targets[0]).write_bytes(self.text)

  monkeypatch.setattr(download, "_open", lambda url: (Store(), "/bucket/weights"))
  assert (download.fetch("memory://bucket/weights") / "table.npz").read_bytes() == b"hello world"
  monkeypatch.setattr(Store, "text", b"hello World")
  with pytest.raises(Pi0RagError, match=r"went wrong: table.npz and 0 more have another checksum"):
    download.fetch("memory://bucket/other")
  assert not (cache / "bucket/other").exists()


def test_a_store_that_cannot_be_reached_is_told_at_once(monkeypatch):
  for name in download.PROXIES:
    monkeypatch.delenv(name, raising=False)

  def refuse(address, timeout):
    raise OSError("no route")

  monkeypatch.setattr(download.socket, "create_connection", refuse)
  monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (None, url))
  with pytest.raises(Pi0RagError, match=r"storage.googleapis.com cannot be reached \(no route\)"):
    download.fetch("gs://openpi-assets/checkpoints/pi0_base/params")
