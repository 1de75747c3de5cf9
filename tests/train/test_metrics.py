"""What is written of a run, and how: rates, TensorBoard, Weights & Biases, a bar or plain lines."""

import io
import logging
import sys
import types

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from rich.console import Console
from tensorboardX.proto import event_pb2

from pi0rag_jax.errors import Pi0RagError
from train import metrics, wandb_log

CONFIG = ConfigDict({"name": "small", "steps": 10, "wandb_project": ""})
WATCHED = ConfigDict({"name": "small", "steps": 10, "wandb_project": "robots"})


@pytest.fixture
def clock_s(monkeypatch):
  """Seconds that a test moves on."""
  now = types.SimpleNamespace(s=100.0)
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now.s)
  return now


def test_rates_leave_pauses_out(clock_s):
  clock = metrics.StepClock(3, batch_size=8)
  with clock.waiting():
    clock_s.s += 1.0
  clock_s.s += 3.0
  with clock.paused(after=jnp.zeros(1)):
    clock_s.s += 6.0
  assert clock.read(5) == {"steps_per_s": 0.5, "samples_per_s": 4.0, "data_wait_share": 0.25, "wall_clock_s": 10.0}
  clock_s.s += 1.0
  assert clock.read(6) == {"steps_per_s": 1.0, "samples_per_s": 8.0, "data_wait_share": 0.0, "wall_clock_s": 11.0}


def test_flops_are_counted_once_and_told_by_second(clock_s):
  clock = metrics.StepClock(0, batch_size=4)
  loss = lambda params, frozen, batch, rng: (jnp.mean(batch["x"] @ params["w"]), {})  # noqa: E731
  clock.count_flops(loss, {"w": jnp.ones((8, 2))}, {}, {"x": jnp.ones((4, 8))})
  clock.count_flops(lambda *_: pytest.fail("counted twice"), {}, {}, {})
  clock_s.s += 0.5
  # The product forward and its gradient by the parameters.
  assert clock.read(1)["tflops_per_device"] == pytest.approx(2 * 2 * 4 * 8 * 2 * 2 / 1e12)


def test_plain_lines_where_there_is_no_terminal(tmp_path, caplog):
  screen = io.StringIO()
  with caplog.at_level(logging.INFO, "train"):
    writer = metrics.MetricWriter(tmp_path, CONFIG, console=Console(file=screen))
    writer.advance(1)
    writer.write(1, "train", {"loss": 0.25, "mfu": 0.5})
    writer.close()
  assert caplog.messages == ["step 1  train  loss 0.25  mfu 0.5"] and not screen.getvalue()
  assert [(e.step, v.tag, v.simple_value) for e in _events(tmp_path) for v in e.summary.value] == [
    (1, "train/loss", 0.25), (1, "train/mfu", 0.5)]


def test_a_bar_in_a_terminal_with_lines_above(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.log, "level", logging.INFO)
  screen = io.StringIO()
  writer = metrics.MetricWriter(tmp_path, CONFIG, start=2, console=Console(file=screen, force_terminal=True, width=120))
  writer.advance(5)
  writer.write(5, "train", {"loss": 0.25})
  writer.close()
  assert "step 5  train  loss 0.25" in screen.getvalue() and "5/10" in screen.getvalue()
  assert metrics.log.propagate and not metrics.log.handlers


def test_only_the_first_process_writes(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
  with caplog.at_level(logging.INFO, "train"):
    writer = metrics.MetricWriter(tmp_path, WATCHED)
    writer.advance(1)
    writer.write(1, "train", {"loss": 0.25})
    writer.close()
  assert not caplog.messages and not list(tmp_path.iterdir())


class _Wandb(types.ModuleType):
  """Stands for the package: remembers what it is told."""

  def __init__(self):
    super().__init__("wandb")
    self.errors = types.SimpleNamespace(Error=RuntimeError)
    self.started, self.logged, self.finished = [], [], 0

  def init(self, **options):
    self.started.append(options)
    return self

  def define_metric(self, name, *, step_metric):
    assert (name, step_metric) == ("*", "step")

  def log(self, scalars):
    self.logged.append(scalars)

  def finish(self):
    self.finished += 1


def test_a_continued_run_keeps_its_id(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", package := _Wandb())
  for _ in range(2):
    writer = metrics.MetricWriter(tmp_path, WATCHED)
    writer.write(3, "train", {"loss": 0.5})
    writer.close()
  first, second = package.started
  assert first["id"] == second["id"] and first["resume"] == "allow" and first["project"] == "robots"
  assert first["config"]["steps"] == 10
  assert package.logged[0] == {"train/loss": 0.5, "step": 3} and package.finished == 2


def test_mistakes_with_weights_and_biases_are_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
  assert wandb_log.load(CONFIG) is None and wandb_log.load(ConfigDict()) is None
  with pytest.raises(Pi0RagError, match=r"wandb_project is 'robots', but .* pip install 'pi0rag-jax\[wandb\]'"):
    metrics.MetricWriter(tmp_path, WATCHED)
  monkeypatch.setitem(sys.modules, "wandb", package := _Wandb())
  package.init = lambda **_: (_ for _ in ()).throw(RuntimeError("No API key."))
  with pytest.raises(Pi0RagError, match=r"Weights & Biases: No API key\. Without an account: WANDB_MODE=offline"):
    metrics.MetricWriter(tmp_path, WATCHED)


def test_means_are_by_name():
  assert metrics.mean_of([{"a": jnp.float32(1), "b": jnp.float32(2)}, {"a": jnp.float32(3), "b": jnp.float32(4)}]) == {
    "a": 2.0, "b": 3.0}


def _events(workdir):
  """Yields what TensorBoard reads: records of a length, its checksum, the event, and its checksum."""
  (file,) = (workdir / "tensorboard").iterdir()
  data = file.read_bytes()
  while data:
    size = int.from_bytes(data[:8], "little")
    yield event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]
