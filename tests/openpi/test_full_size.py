"""The released size for real: 3.2 billion random bfloat16 parameters saved, loaded and run within 16 GB of memory.

`python -m pytest -m slow tests/openpi/test_full_size.py -s` prints what each stage took.
"""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
LIMIT_GB = 16
_START = """
import functools, json, resource, sys, time
import jax, jax.numpy as jnp, ml_dtypes, numpy as np
from flax import traverse_util
from pi0rag_jax.models import pi0, registry
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi import checkpoints

folder = sys.argv[1]
config = registry.model("pi0")
template = jax.eval_shape(functools.partial(registry.init, config), jax.random.key(0))
times = {}

def timed(name, call):
  start = time.perf_counter()
  result = jax.block_until_ready(call())
  times[name] = round(time.perf_counter() - start, 1)
  return result

def report(**facts):
  peak_GB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
  print(json.dumps({"peak_GB": round(peak_GB, 2), "times_s": times, **facts}))
"""
_SAVE = """
rng = np.random.default_rng(0)

def draw(leaf):
  # Drawn in pieces: a float32 copy of the largest array would be 4 GB.
  out = np.empty(leaf.size, ml_dtypes.bfloat16)
  for first in range(0, leaf.size, 2**24):
    part = out[first : first + 2**24]
    part[:] = 0.02 * rng.standard_normal(len(part), np.float32)
  return out.reshape(leaf.shape)

params = timed("draw", lambda: jax.tree.map(draw, template))
timed("save", lambda: checkpoints.save_checkpoint(folder, params, {}))
report(parameters=sum(x.size for x in jax.tree.leaves(params)))
"""
_RUN = """
import pathlib
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.policy.directory import build, describe
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from pi0rag_jax.steering.agent import Agent

stats = {"state": NormStats(np.zeros(8), np.ones(8)), "actions": NormStats(np.zeros(7), np.ones(7))}
tokenizer = SentencePieceTokenizer(next(pathlib.Path(sys.argv[2]).glob("*.model")))
spec, where = describe("pi0_libero", folder)
policy = timed("load", lambda: Agent(build(spec, where, stats=stats, text_tokenizer=tokenizer)))
image = np.random.default_rng(1).integers(0, 255, (224, 224, 3), np.uint8)
observation = {"observation/image": image, "observation/wrist_image": image, "observation/state": np.zeros(8),
               "prompt": "put the mug on the plate"}
timed("first_chunk", lambda: policy.infer(observation)["actions"])
chunk = timed("chunk", lambda: policy.infer(observation)["actions"])
report(shape=chunk.shape, finite=bool(np.isfinite(chunk).all()))
"""
_TOKENIZERS = pathlib.Path(__file__).parents[1] / "robots" / "recorded" / "tokenizer"


def _stage(script: str, folder) -> dict:
  done = subprocess.run([sys.executable, "-c", _START + script, str(folder), str(_TOKENIZERS)],
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  print(found)
  return found


def test_the_released_size_is_saved_loaded_and_run(tmp_path):
  saved = _stage(_SAVE, tmp_path / "checkpoint")
  assert saved["parameters"] == 3_238_048_528
  run = _stage(_RUN, tmp_path / "checkpoint")
  assert run["shape"] == [50, 7] and run["finite"]
  assert max(saved["peak_GB"], run["peak_GB"]) <= LIMIT_GB
