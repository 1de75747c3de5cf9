"""Programs that the next process finds on disk."""

import contextlib
import dataclasses
import os
import subprocess
import sys

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.policy import compiling

# Counts what was compiled, and what was found instead.
PROGRAM = """
import collections, jax, numpy as np
from pi0rag_jax.policy import compiling
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))
print(compiling.keep_programs())
program = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y @ x, x),
                  compiler_options={"xla_disable_hlo_passes": "while-loop-invariant-code-motion"})
print(program(np.eye(2, dtype=np.float32)).sum(), counts["cache_misses"], counts["cache_hits"])
"""


@pytest.fixture
def environment(tmp_path):
  """Of a process whose user has chosen nothing, with a home of its own."""
  ours = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  return ours | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}


def run(environment):
  done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
  folder, counted = done.stdout.splitlines()
  total, compiled, found = counted.split()
  assert total == "2.0"
  return folder, int(compiled), int(found), done.stderr


def test_the_next_process_compiles_nothing(environment, tmp_path):
  folder, compiled, found, log = run(environment)
  assert folder == str(tmp_path / "cache/pi0rag_jax/xla") and compiled and not found and not log
  assert run(environment) == (folder, 0, compiled, "")


def test_another_folder_or_none(environment, tmp_path):
  folder, compiled, _, _ = run(environment | {compiling.CACHE_VARIABLE: str(tmp_path / "mine")})
  assert folder == str(tmp_path / "mine") and len(os.listdir(folder)) == compiled
  assert run(environment | {compiling.CACHE_VARIABLE: ""}) == ("None", 0, 0, "")
  theirs = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), compiling.CACHE_VARIABLE: "/dev/null"}
  assert run(theirs)[0] == str(tmp_path / "jax")


def test_a_folder_that_cannot_be_written(environment):
  folder, compiled, found, log = run(environment | {compiling.CACHE_VARIABLE: "/dev/null/xla"})
  assert (folder, compiled, found) == ("None", 0, 0)
  assert log.startswith("compiled programs are not kept: cannot write to /dev/null/xla (") and log.count("\n") == 1


@pytest.mark.parametrize(("kernel", "head_dim", "dtype", "capability", "error"), [
  ("xla", 256, "float32", None, ""),
  ("cudnn", 256, "bfloat16", "9.0", ""),
  ("cudnn", 128, "bfloat16", "8.0", ""),
  ("cudnn", 256, "bfloat16", "8.9", "heads of 256 needs a GPU of compute capability 9.0 or more, .* 8.9"),
  ("cudnn", 256, "bfloat16", None, "this is no NVIDIA GPU: use 'xla'"),
  ("cudnn", 256, "float32", "10.0", "needs a model in bfloat16, this one is in float32"),
])
def test_cudnns_attention_is_refused_where_there_is_none(kernel, head_dim, dtype, capability, error):
  model = registry.model("pi0")
  towers = {name: dataclasses.replace(getattr(model, name), head_dim=head_dim) for name in ("paligemma", "expert")}
  model = dataclasses.replace(model, attention_kernel=kernel, dtype=dtype, **towers)
  with pytest.raises(Pi0RagError, match=error) if error else contextlib.nullcontext():
    compiling.check_attention(model, compute_capability=capability)
