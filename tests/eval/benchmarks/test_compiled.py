"""What a compiler made of a program: read from a text, and the whole pi0 for H200s where their compiler is there.

The latter are `slow`; `.ci/run` installs the compiler, and asks for the one of the whole pi0.
"""

import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from eval import bench
from eval.benchmarks import compiled, hlo, targets
from pi0rag_jax.errors import Pi0RagError

TEXT = """HloModule jit_sample, entry_computation_layout={(bf16[8,4]{1,0})->f32[8]{0}}

%moved (a: bf16[8,4]) -> bf16[4,8] {
  %a = bf16[8,4]{1,0} parameter(0)
  ROOT %t = bf16[4,8]{1,0} transpose(%a), dimensions={1,0}
}

%computed (b: bf16[4,8]) -> bf16[4,8] {
  %b = bf16[4,8]{1,0} parameter(0)
  ROOT %twice = bf16[4,8]{1,0} add(%b, %b)
}

%body (carry: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %carry = (s32[], bf16[8,4]{1,0}) parameter(0)
  %w = bf16[8,4]{1,0} get-tuple-element(%carry), index=1
  %turned = bf16[4,8]{1,0} fusion(%w), kind=kLoop, calls=%moved, backend_config={"estimated_cycles":"30"}
  %sum = bf16[4,8]{1,0} fusion(%turned), kind=kLoop, calls=%computed, backend_config={"estimated_cycles":"70"}
  %gathered = f32[64]{0} all-gather(%part), dimensions={0}
  ROOT %next = (s32[], bf16[8,4]{1,0}) tuple(%i, %w)
}

%condition (c: (s32[], bf16[8,4])) -> pred[] {
  %c = (s32[], bf16[8,4]{1,0}) parameter(0)
}

ENTRY %main (p: bf16[8,4]) -> f32[8] {
  %p = bf16[8,4]{1,0} parameter(0)
  %first = bf16[8,4]{1,0} copy(%p)
  %dot = f32[8]{0} custom-call(%first), custom_call_target="__cublas$lt$matmul"
  %part = f32[8]{0} add(%dot, %dot)
  %loop = (s32[], bf16[8,4]{1,0}) while(%start), condition=%condition, body=%body, """ + (
  """backend_config={"known_trip_count":{"n":"10"}}
  %scattering = (f32[64]{0}, f32[8]{0}) reduce-scatter-start(%dot), dimensions={0}
  ROOT %out = f32[8]{0} negate(%part)
}
""")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """Of this process stays what it is; commands that are run in it set theirs."""
  monkeypatch.setattr(targets, "prepare", lambda: None)


def test_a_program_is_read_by_hand():
  program = hlo.Program(TEXT)
  entry, body = program.runs
  assert (program.kernels(entry), program.kernels(body), body.times) == (5, 3, 10)
  assert program.trip_counts == [10] and program.graphs == 1 + 10 + 1
  assert program.moves({32}) == [hlo.Move("first", in_loop=False), hlo.Move("turned", in_loop=True)]
  assert program.moves({31}) == []
  assert (program.cycles(entry), program.cycles(body)) == (0, 100)
  assert program.collectives()["all-gather"] == (10, 10 * 4 * 64)  # of float32, ten turns


def test_a_loop_turns_as_often_as_its_condition_says():
  known = TEXT.replace(', backend_config={"known_trip_count":{"n":"10"}}', "")
  assert known != TEXT and hlo.Program(known).trip_counts == [0]
  compared = known.replace("  %c = (s32[], bf16[8,4]{1,0}) parameter(0)", """  %limit = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT""")
  assert hlo.Program(compared).trip_counts == [7]


def test_what_is_scattered_counts_as_the_whole():
  assert hlo.Program(TEXT).collectives()["reduce-scatter"] == (1, 4 * (64 + 8) - 4 * 8)


def test_flags_name_the_targets_and_programs_that_there_are():
  assert set(bench.TARGETS) == set(targets.TARGETS) and set(bench.PROGRAMS) == set(compiled.PROGRAMS)


@pytest.mark.parametrize(("target", "package"), [("h200", "jax-cuda13-plugin"), ("tpu-v5e", "libtpu")])
def test_a_target_without_its_compiler_names_the_package(target, package, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(targets, "importlib", types.SimpleNamespace(
    util=types.SimpleNamespace(find_spec=lambda name: None)))
  assert bench.main(["compile", f"--target={target}", f"--out={tmp_path / 'out.json'}"]) == 2
  error = capsys.readouterr().err
  assert package in error and "pip install 'pi0rag-jax[aot]'" in error and error.count("\n") == 1


@pytest.mark.parametrize(("flags", "error"), [
  ([], "compile needs --target=NAME: a100"),
  (["--target=rtx4090", "--kernel=cudnn"], "heads of 256 needs a GPU of compute capability 9.0 or more"),
  (["--target=tpu-v6e", "--weights=int8"], "slower than bfloat16; allowed for GPUs"),
  (["--target=h200", "--program=lora", "--devices=8", "--batch=9"], "--batch=9 must be a multiple of --devices=8")])
def test_what_no_target_can_have_is_one_line(flags, error, monkeypatch, tmp_path, capsys):
  for kind in (targets.Gpu, targets.Tpu):
    monkeypatch.setattr(kind, "devices", lambda self, count: jax.devices() * count)
  assert bench.main(["compile", *flags, f"--out={tmp_path / 'out.json'}"]) == 2
  printed = capsys.readouterr().err
  assert error in printed and printed.count("\n") == 1


def test_a_slice_of_a_tpu_has_as_many_devices_as_are_asked_for(monkeypatch):
  monkeypatch.setattr(targets, "importlib", types.SimpleNamespace(util=types.SimpleNamespace(find_spec=bool)))
  monkeypatch.setattr(targets, "_topology", lambda count, platform, topology_name: topology_name)
  names = [targets.TARGETS[name].devices(count) for name, count in (("tpu-v5e", 1), ("tpu-v6e", 8), ("tpu-v5p", 8))]
  assert names == ["v5e:2x2", "v6e:2x4", "v5p:2x2x2"]
  with pytest.raises(Pi0RagError, match=r"--devices=65 of a TPU v5e: its largest slice here is 8x8"):
    targets.TARGETS["tpu-v5e"].devices(65)


def compiled_for_h200(tmp_path, *flags):
  """Returns the row that the command writes, run as users do: without what tests set for XLA."""
  plain = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  out = tmp_path / "out.json"
  subprocess.run([sys.executable, "-m", "eval.bench", "compile", "--target=h200", *flags, f"--out={out}"], check=True,
                 env=plain)
  (row,) = json.loads(out.read_text())["rows"]
  return row


needs_compiler = pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs the extra aot")
minutes = pytest.mark.timeout(1500)


@pytest.mark.slow
@minutes
@needs_compiler
def test_the_whole_pi0_for_an_h200_has_few_kernels_and_moves_no_weights(tmp_path):
  row = compiled_for_h200(tmp_path)
  assert row["kernels_a_step"] <= 271 and row["kernels"] <= 3400
  assert (row["trip_counts"], row["weight_moves_in_loop"], row["fits"]) == ([10], 0, True)
  assert row["weight_moves"] <= 2  # once a chunk: the halves of the matrix of actions and times, 4 MB each
  assert row["argument_GB"] < 6.5 and row["temporary_GB"] < 0.2


@pytest.mark.slow
@minutes
@needs_compiler
def test_adapters_on_eight_h200s_send_their_gradients_once(tmp_path):
  row = compiled_for_h200(tmp_path, "--program=lora", "--devices=8", "--batch=64")
  # Nothing but the sum of gradients, and each only once; beside them a few numbers that are logged.
  assert row["trainable_GB"] <= row["all_reduce_GB"] <= 1.01 * row["trainable_GB"]
  assert row["collectives_GB"] == row["all_reduce_GB"] and row["fits"]


@pytest.mark.slow
@minutes
@needs_compiler
def test_a_split_model_on_eight_h200s_sends_at_most_three_times_its_parameters(tmp_path):
  row = compiled_for_h200(tmp_path, "--program=fsdp", "--devices=8", "--batch=64")
  assert row["fits"] and row["trainable_GB"] / 2 < row["collectives_GB"] <= 3 * row["trainable_GB"]
