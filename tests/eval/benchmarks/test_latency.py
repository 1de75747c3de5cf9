"""Rows of `latency`: the yardstick computes what we do, and a package written here stands for openpi."""

import argparse
import functools
import sys

import jax
import numpy as np
import pytest

from eval import naive
from eval.benchmarks import latency, models, openpi_latency
from pi0rag_jax.models import packing, pi0

CONFIG = """
import dataclasses, jax, jax.numpy as jnp
from flax import nnx

class Model(nnx.Module):
  def __init__(self, config, rngs):
    self.config = config
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), (config.action_dim, config.action_dim)))

  def sample_actions(self, rng, observation, *, num_steps=10):
    assert observation.images["base_0_rgb"].dtype == jnp.float32 and self.kernel[...].dtype == jnp.bfloat16
    assert observation.tokenized_prompt.shape[1] == self.config.max_token_len
    noise = jax.random.normal(rng, (len(observation.state), self.config.action_horizon, self.config.action_dim))
    return jax.lax.fori_loop(0, num_steps, lambda _, x: x - 0.1 * (x @ self.kernel[...].astype(x.dtype)), noise)

@dataclasses.dataclass(frozen=True)
class Pi0Config:
  dtype: str
  paligemma_variant: str
  action_expert_variant: str
  action_dim: int
  action_horizon: int
  max_token_len: int

  def create(self, rng):
    return Model(self, nnx.Rngs(rng))
"""
OBSERVATION = """
import flax.struct, jax, jax.numpy as jnp

@flax.struct.dataclass
class Observation:
  images: dict
  image_masks: dict
  state: jax.Array
  tokenized_prompt: jax.Array
  tokenized_prompt_mask: jax.Array

  @classmethod
  def from_dict(cls, data):
    images = {name: x.astype(jnp.float32) / 255.0 * 2.0 - 1.0 for name, x in data["image"].items()}
    return cls(images, data["image_mask"], data["state"], data["tokenized_prompt"], data["tokenized_prompt_mask"])
"""


@pytest.fixture
def checkout(tmp_path):
  """Returns a checkout that has what the script calls; its configuration is where older ones have it."""
  models = tmp_path / "checkout/src/openpi/models"
  models.mkdir(parents=True)
  for folder in (models.parent, models):
    (folder / "__init__.py").write_text("")
  (models / "pi0.py").write_text(CONFIG)
  (models / "model.py").write_text(OBSERVATION)
  return tmp_path / "checkout"


LATENCY = ("latency", "--size=dummy", "--repeats=2", "--cameras=2")


@pytest.mark.parametrize(("size", "cameras"), [("dummy", 2), ("pi05_dummy", 3)])
def test_the_naive_structure_samples_the_same_chunk(size, cameras):
  config = models.SIZES[size]
  params, noise_BTA = models.params(config), models.chunk(config, batch=2)
  obs = models.observation(config, batch=2, cameras=cameras)
  wanted_BTA = jax.jit(functools.partial(naive.sample_actions, pi0.Pi0(config), num_steps=3))(params, obs, noise_BTA)
  packed, packed_config = packing.pack(params, config)
  alone_config, alone = models.with_cameras(packed_config, obs, cameras)
  ours = jax.jit(functools.partial(pi0.sample_actions, pi0.Pi0(alone_config), num_steps=3))
  np.testing.assert_allclose(ours(packed, alone, noise_BTA), wanted_BTA, atol=2e-5)


@pytest.mark.parametrize("size", ["dummy", "pi05_dummy"])
def test_rows_have_their_steps_and_their_share_of_the_roofline(size, run):
  rows = {(row["what"], row.get("steps", 0)): row for row in run(*LATENCY, f"--size={size}", "--steps=2,1")}
  assert set(rows) == {("vision", 0), ("vision and prefix", 0), *(
    (what, steps) for what in ("naive", "ours", "denoising", "naive / ours") for steps in (2, 1))}
  encode_ms = rows["vision and prefix", 0]["bound_ms"]
  assert rows["vision", 0]["bound_ms"] < encode_ms
  for steps in (2, 1):
    ours_ms = rows["ours", steps]["bound_ms"]
    assert ours_ms == pytest.approx(encode_ms + rows["denoising", steps]["bound_ms"], abs=2e-3)
    assert rows["naive", steps]["bound_ms"] == ours_ms
  assert rows["denoising", 2]["bound_ms"] > rows["denoising", 1]["bound_ms"]


def test_openpi_is_timed_in_its_interpreter(checkout, run):
  rows = run(*LATENCY, f"--openpi={checkout}", f"--openpi-python={sys.executable}", "--batches=2", "--no-stages")
  assert not {"vision", "vision and prefix", "denoising"} & {row["what"] for row in rows}
  openpi = [row for row in rows if row["what"] == "openpi"]
  assert [(row["batch"], row["cameras"], row["steps"]) for row in openpi] == [(2, 2, 10)]
  assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in openpi)
  # It has fewer parameters than our model, so neither a ratio nor a share of our roofline is said.
  assert not any("of_roofline" in row for row in openpi) and "openpi / ours" not in {row["what"] for row in rows}


def test_openpi_of_the_same_size_is_compared():
  taken = {("ours", 10): np.array([2.0, 2.0]), ("openpi", 10): np.array([6.0, 6.0])}
  rows = latency._rows(taken, {("ours", 10): 1.0}, ("openpi",))
  assert [row["of_roofline"] for row in rows[:2]] == [0.5, round(1 / 6, 3)]
  assert rows[2]["what"] == "openpi / ours" and rows[2]["ratio"] == 3


def test_what_hinders_openpi_is_said_in_one_line(checkout, run, tmp_path, capsys):
  refusals = {
    "expected src/openpi/models": [f"--openpi={tmp_path / 'missing'}"],
    "no interpreter": [f"--openpi={checkout}"],
    "give the checkout too": [f"--openpi-python={sys.executable}"],
    "no model of size 'midsize'": ["--size=midsize", f"--openpi={checkout}", f"--openpi-python={sys.executable}"],
    "gave no times": [f"--openpi={checkout}", "--openpi-python=/bin/true"],
    "cannot run": [f"--openpi={checkout}", f"--openpi-python={checkout / 'src/openpi/models/pi0.py'}"]}
  (checkout / "src/openpi/models/pi0.py").write_text("raise RuntimeError('no device')")
  refusals["status 1 and said: RuntimeError: no device"] = [
    f"--openpi={checkout}", f"--openpi-python={sys.executable}"]
  for said, arguments in refusals.items():
    assert run(*LATENCY, *arguments) is None
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error


def test_pi05_is_asked_for_by_its_field():
  flags = argparse.Namespace(size="pi05", batches=(1,), cameras=(3,), steps=(10,), repeats=2)
  model = openpi_latency._request(flags)["model"]
  assert model["pi05"] and model["max_token_len"] == 200 and model["paligemma_variant"] == "gemma_2b"
