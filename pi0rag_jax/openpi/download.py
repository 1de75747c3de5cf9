"""Files at addresses such as gs://bucket/name, downloaded once into the cache that openpi itself uses."""

import base64
import hashlib
import logging
import os
import pathlib
import shutil
import socket
import urllib.parse
from collections.abc import Mapping

from pi0rag_jax.errors import Pi0RagError

DATA_HOME = "OPENPI_DATA_HOME"
DEFAULT_DATA_HOME = "~/.cache/openpi"
# Read without an account; every other bucket is read with the caller's credentials.
PUBLIC_BUCKETS = ("openpi-assets", "big_vision", "vertex-model-garden-paligemma-us")
EXTRA = "pip install 'pi0rag-jax[gcs]'"
# Parts of a checkpoint that only resuming a training run needs: twice the weights or more.
SKIPPED = ("train_state",)
WEIGHTS = ("params", "model.safetensors")
STORE, CONNECT_S = ("storage.googleapis.com", 443), 10.0
# With one of these set, the store is reached in another way than directly.
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "STORAGE_EMULATOR_HOST")
BLOCK_BYTES = 16 * 2**20

logger = logging.getLogger(__name__)


def is_remote(path) -> bool:
  """Returns whether `path` is an address rather than a local path."""
  return "://" in str(path)


def cache_directory() -> pathlib.Path:
  """Returns the cache, $OPENPI_DATA_HOME or ~/.cache/openpi; it need not exist."""
  return pathlib.Path(os.environ.get(DATA_HOME) or DEFAULT_DATA_HOME).expanduser().absolute()


def cached_path(url: str) -> pathlib.Path:
  """Returns where the cache keeps an address, present or not: <cache>/<bucket>/<path>, as in openpi."""
  parts = urllib.parse.urlparse(str(url))
  names = parts.path.strip("/").split("/")
  if not parts.netloc or not names[0] or ".." in names:
    raise Pi0RagError(f"'{url}' is no address of a file or folder; expected gs://bucket/path")
  return cache_directory() / parts.netloc / pathlib.Path(*names)


def local_checkpoint(path) -> pathlib.Path:
  """Returns the local directory or file of a checkpoint; an address is downloaded first, unless it is in the cache.

  Of a remote checkpoint directory all but `train_state` is taken, part by part: each part is there whole or not at all.
  """
  if not is_remote(path):
    return pathlib.Path(os.path.expanduser(path))
  url = str(path).rstrip("/")
  local = cached_path(url)
  if local.name in WEIGHTS or local.suffix == ".npz":
    return fetch(url)
  if not ((local / "assets").is_dir() and any((local / name).exists() for name in WEIGHTS)):
    for name in _children(url):
      if name not in SKIPPED:
        fetch(f"{url}/{name}")
  return local


def fetch(url: str) -> pathlib.Path:
  """Returns the cached copy of a remote file or folder, downloaded if absent.

  The copy appears whole or not at all. Processes that want the same address take turns on openpi's lock file.

  Raises:
    Pi0RagError: nothing is there, the transfer failed or fell short, or the packages for it are not installed.
  """
  url = str(url).rstrip("/")
  local = cached_path(url)
  if local.exists():
    return local
  filelock = _import_filelock(url)
  try:
    local.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(local.with_suffix(".lock")):
      if not local.exists():
        draft = local.with_suffix(".partial")
        _remove(draft)
        _download(url, draft)
        os.replace(draft, local)
  except OSError as error:
    raise Pi0RagError(f"cannot store {url} at {local}: {error}; set {DATA_HOME} to a folder with room") from error
  return local


def _download(url: str, draft: pathlib.Path) -> None:
  """Writes the file or the folder at `url` to `draft` and compares every size."""
  filesystem, root = _open(url)
  try:
    found = filesystem.find(root, detail=True)
    # Object stores may hold an empty object in place of a folder.
    sizes = {name: (info or filesystem.info(name))["size"] for name, info in found.items()
             if info.get("type") != "directory" and not name.endswith("/")}
    if not sizes:
      raise Pi0RagError(f"nothing at {url}: check the name")
    total_gb = sum(sizes.values()) / 1e9
    logger.info("downloading %s: %d files, %.2f GB", url, len(sizes), total_gb)
    targets = [draft / name.removeprefix(root).lstrip("/") for name in sizes]
    for target in targets:
      target.parent.mkdir(parents=True, exist_ok=True)
    filesystem.get(list(sizes), [str(target) for target in targets])
  except Pi0RagError:
    raise
  # The storage clients raise errors of several libraries (aiohttp, google.auth, gcsfs, requests).
  except Exception as error:
    raise Pi0RagError(f"downloading {url} failed: {error!r}; what was whole before stays in the cache") from error
  short = [target for target, size in zip(targets, sizes.values()) if target.stat().st_size != size]
  if short:
    raise Pi0RagError(f"downloading {url} fell short: {short[0].name} and {len(short) - 1} more; try again")
  wrong = [target for target, name in zip(targets, sizes) if not _fits(target, found[name] or {})]
  if wrong:
    raise Pi0RagError(f"downloading {url} went wrong: {wrong[0].name} and {len(wrong) - 1} more have another checksum "
                      "than the store says; try again")


def _fits(file: pathlib.Path, info: Mapping) -> bool:
  """Returns whether a file has the checksum that the store tells: CRC-32C, or MD5 without the package for that."""
  try:
    import google_crc32c
  except ImportError:
    google_crc32c = None
  if google_crc32c is not None and info.get("crc32c"):
    digest, wanted = google_crc32c.Checksum(), info["crc32c"]
  elif info.get("md5Hash"):
    digest, wanted = hashlib.md5(usedforsecurity=False), info["md5Hash"]
  else:
    return True
  with open(file, "rb") as stream:
    while block := stream.read(BLOCK_BYTES):
      digest.update(block)
  return base64.b64encode(digest.digest()).decode() == wanted


def _children(url: str) -> list[str]:
  """Returns the names of the files and folders in a remote folder."""
  filesystem, root = _open(url)
  try:
    names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(root, detail=True)
             if entry["name"].rstrip("/") != root.rstrip("/")]
  except FileNotFoundError as error:
    raise Pi0RagError(f"nothing at {url}: check the name") from error
  except Exception as error:  # As in _download.
    raise Pi0RagError(f"listing {url} failed: {error!r}; {cached_path(url)} does not hold all of it") from error
  if not any(name in WEIGHTS for name in names):
    raise Pi0RagError(f"{url} is no checkpoint: it holds {', '.join(sorted(names)[:8]) or 'nothing'}, not params")
  return names


def _open(url: str):
  """Returns the fsspec file system of an address and the path within it."""
  import fsspec

  parts = urllib.parse.urlparse(url)
  options = {"token": "anon"} if parts.scheme in ("gs", "gcs") and parts.netloc in PUBLIC_BUCKETS else {}
  try:
    opened = fsspec.core.url_to_fs(url, **options)
  except ImportError as error:
    raise Pi0RagError(f"reading {url} needs a package that is not installed ({error}): {EXTRA}") from error
  except ValueError as error:
    raise Pi0RagError(f"{url}: {error}") from error
  if parts.scheme in ("gs", "gcs"):
    _refuse_offline(url)
  return opened


def _refuse_offline(url: str) -> None:
  """Raises Pi0RagError where the store cannot be reached; its client would try for a minute before it says so."""
  if any(os.environ.get(name) for name in PROXIES):
    return
  try:
    socket.create_connection(STORE, timeout=CONNECT_S).close()
  except OSError as error:
    raise Pi0RagError(f"downloading {url} failed: {STORE[0]} cannot be reached ({error}); what was whole before stays "
                      f"in the cache, {cached_path(url)}") from error


def _import_filelock(url: str):
  try:
    import filelock
  except ImportError as error:
    raise Pi0RagError(f"downloading {url} needs the package filelock: {EXTRA}") from error
  return filelock


def _remove(path: pathlib.Path) -> None:
  """Removes what a killed download left."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
