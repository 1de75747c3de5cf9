"""The main job on a tiny scale: results, resuming, and what a user can get wrong."""

import dataclasses
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from rich.console import Console

from configs import quickstart
from eval import experiment, sweep, tasks, worker
from eval import taught as taught_frames
from eval.records import key as record_key
from eval.records import read_records
from pi0rag_jax.cluster import Machines
from pi0rag_jax.data.episodes import read_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.online import Lesson
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.steering import networks
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Trace


def config_of(policy_dir, **changes):
  """Returns the quickstart with one condition and few episodes."""
  config = quickstart.get_config()
  values = {
      "policy": str(policy_dir), "conditions": ("camera_shift",), "slots": 3, "processes": 0,
      "stream.episodes": 2, "stream.corrected_max": 1, "evaluation.episodes": 2, "evaluation.latency_episodes": 1,
      "evaluation.clips": 1,
      "evaluation.policies": ({"name": "base_z0", "start": "zero"}, {"name": "memory", "steering": "residual"}),
  }
  config.update_from_flattened_dict(values | changes)
  return config


@pytest.fixture(scope="module")
def finished(tiny_policy_dir, tmp_path_factory):
  """A finished sweep: (its folder, its summary)."""
  out = tmp_path_factory.mktemp("sweep")
  return out, sweep.sweep(config_of(tiny_policy_dir), out)


def test_a_sweep_leaves_records_summary_and_report(finished):
  out, summary = finished
  assert {cell["policy"] for cell in summary["cells"]} == {"base_z0", "memory"}
  assert all(cell["n"] == 2 and cell["crashed"] == 0 for cell in summary["cells"])
  assert json.loads((out / "summary.json").read_text()) == summary
  assert (out / "report.html").read_text().startswith("<!")
  assert summary["streams"][0]["corrected_episodes"] == 1
  records = read_records(out / "records.jsonl")
  assert len({(r.phase, r.policy, r.seed) for r in records}) == len(records) == 6
  timed = [r for r in records if r.latency_ms]
  assert {(r.policy, len(r.latency_ms["total"])) for r in timed} == {("base_z0", timed[0].decisions), (
      "memory", timed[1].decisions)}


def test_what_the_expert_did_is_in_the_memory_with_its_origin(finished):
  out, _ = finished
  with Memory.load(out / "memory" / "pick_and_place-camera_shift") as memory:
    records = [record for _, record in memory.records()]
  # What the policy did before it was helped was let pass.
  assert {(record.kind, record.provenance["source"]) for record in records} == {
      ("correction", "expert"), ("anchor", "policy")}
  assert len({record.provenance["seed"] for record in records}) == 1


def test_a_finished_sweep_runs_nothing_again(finished, tiny_policy_dir, monkeypatch):
  out, summary = finished
  forbid_simulation(monkeypatch)
  before = (out / "records.jsonl").read_bytes()
  again = sweep.sweep(config_of(tiny_policy_dir), out)
  assert (out / "records.jsonl").read_bytes() == before
  assert again["cells"] == summary["cells"]


@pytest.fixture(scope="module")
def fitted(tiny_policy_dir, tmp_path_factory):
  """A finished sweep of fitted rules, the policy acting alone in its stream: (folder, configuration, summary)."""
  out = tmp_path_factory.mktemp("fitted")
  config = config_of(tiny_policy_dir, **{
    "stream.acting": "base", "stream.learning.taught_by": "takeover", "pool.conditions": ("nominal",),
    "evaluation.clips": 0, "evaluation.episodes": 1, "evaluation.latency_episodes": 0, "evaluation.policies": (
      {"name": "base_z0", "start": "zero"}, {"name": "flowdagger", "steering": "flowdagger"},
      {"name": "noise_memory", "steering": "noise_memory"})})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(networks, "STEPS_PER_EPISODE", 1)
    return out, config, sweep.sweep(config, out)


def test_rules_that_are_fitted_know_what_it_cost(fitted):
  out, _, summary = fitted
  rows = {(row["policy"], row["memory"]): row for row in summary["overall"] if row["baseline"] == "better_control"}
  assert rows.keys() == {(policy, memory) for policy in ("base_z0", "flowdagger", "noise_memory")
                         for memory in ("own", "held_out")}
  assert rows["flowdagger", "own"]["fit_bytes"] > 0 and rows["flowdagger", "held_out"]["fit_seconds"] > 0
  streamed = [record for record in read_records(out / "records.jsonl") if record.phase == "stream"]
  assert all(record.policy == "base" and record.extra["trust"] == 0 for record in streamed)
  assert sum(record.corrected for record in streamed) == 1
  assert [record.extra.get("helped_s", 0) > 0 for record in streamed] == [record.corrected for record in streamed]
  with Memory.load(out / "memory" / "all_places") as pool, Memory.load(
      out / "memory" / "pick_and_place-camera_shift") as own:
    assert len(pool) == len(own) > 0


def test_a_resumed_sweep_fits_nothing_again(fitted, tmp_path, monkeypatch):
  out, config, _ = fitted
  shutil.copytree(out, tmp_path, dirs_exist_ok=True)
  log = tmp_path / "records.jsonl"
  lines = log.read_text().splitlines()
  log.write_text("".join(f"{line}\n" for line in lines if '"flowdagger"' not in line))
  for name in ("noise_network", "invert"):
    monkeypatch.setattr(experiment.fits.fits, name, None)
  sweep.sweep(config, tmp_path)
  again = {record_key(record): record for record in read_records(log)}
  for record in read_records(out / "records.jsonl"):
    assert dataclasses.replace(again[record_key(record)], latency_ms={}) == dataclasses.replace(record, latency_ms={})


def test_retrained_policies_and_other_paces_join_what_is_there(finished, tiny_policy_dir, tmp_path, monkeypatch):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  monkeypatch.setattr(worker.Worker, "_film", lambda *_: [])
  config = config_of(tiny_policy_dir)
  retrained = {"name": "lora_dagger", "start": "zero", "policy": str(tiny_policy_dir)}
  with config.unlocked():
    config.evaluation.policies = (*config.evaluation.policies, retrained,
                                  {"name": "whole", "start": "zero", "execute_steps": 16})
  sweep.sweep(config, tmp_path)
  alone = [record for record in read_records(tmp_path / "records.jsonl") if not record.stream]
  for record in alone:
    assert record.decisions == -(-record.steps // (16 if record.policy == "whole" else 4)), record
  ended = {(record.policy, record.seed): (record.outcome, record.steps) for record in alone}
  for seed in (200_000, 200_001):
    assert ended["lora_dagger", seed] == ended["base_z0", seed], "here it is the same policy"
  with pytest.raises(Pi0RagError, match=r"evaluation\.policies was"):
    sweep.sweep(config_of(tiny_policy_dir), tmp_path)


def test_what_streams_taught_is_a_data_set(fitted, tmp_path):
  out, config, _ = fitted
  older = {name: value for name, value in json.loads((out / "config.json").read_text()).items() if name != "weights"}
  (tmp_path / "older").mkdir()
  (tmp_path / "older" / "config.json").write_text(json.dumps(older))
  assert taught_frames.read_config(tmp_path / "older") == taught_frames.read_config(out)
  with Memory.load(out / "memory" / "pick_and_place-camera_shift") as memory:
    taught = {record.provenance["tick"]: record for _, record in memory.records()}
  assert taught_frames.write(config, out, tmp_path / "data") == len(taught)
  (path,) = (tmp_path / "data").iterdir()
  (episode,) = read_episodes(path)
  corrected_FTA = np.stack([taught[tick].corrected_chunk for tick in sorted(taught)])
  np.testing.assert_array_equal(episode.action_chunks, corrected_FTA)
  assert episode.images["base_0_rgb"].shape == (len(taught), 64, 64, 3) and episode.task == "pick_and_place"
  with pytest.raises(Pi0RagError, match="holds no stream's episodes"):
    taught_frames.write(config, tmp_path, tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"stream.steering": "flowdagger"}, "stream.steering 'flowdagger' is fitted to what a stream has taught"),
    ({"stream.learning.taught_by": "rewind", "evaluation.policies": ({"name": "x", "steering": "noise_memory"},)},
     "taught_by='takeover' and no retries"),
    ({"stream.acting": "base", "stream.learning.trust.broken_max": 0.2}, "with stream.acting='base' it never acts"),
])
def test_rules_are_fitted_only_where_that_can_be(tiny_policy_dir, tmp_path, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    sweep.sweep(config_of(tiny_policy_dir, **changes), tmp_path / "out")


def test_clips_are_filmed_once(finished, tiny_policy_dir, tmp_path, monkeypatch):
  out = tmp_path / "sweep"
  shutil.copytree(finished[0], out)
  config = config_of(tiny_policy_dir)
  monkeypatch.setattr(experiment.clips, "choose", lambda *_: [config.evaluation.first_seed])
  _, filmed = experiment.run(config, out, Console())
  forbid_simulation(monkeypatch)
  _, kept = experiment.run(config, out, Console())
  (filmed,), (kept,) = filmed, kept
  assert filmed.keys() == kept.keys() and kept["seed"] == config.evaluation.first_seed
  for name, value in filmed.items():
    np.testing.assert_array_equal(kept[name], value, err_msg=name)


def test_evaluations_write_no_journal(finished, tiny_policy_dir, tmp_path, monkeypatch):
  out = tmp_path / "sweep"
  shutil.copytree(finished[0], out)
  assert not list(out.rglob(worker.JOURNAL_NAME)), "the stream's own goes when it is over"
  log = out / "records.jsonl"
  log.write_text("".join(line + "\n" for line in log.read_text().splitlines() if '"phase": "stream"' in line))
  monkeypatch.setattr(worker, "Journal", None)
  monkeypatch.setattr(worker.Worker, "_film", lambda *_: [])
  sweep.sweep(config_of(tiny_policy_dir), out)
  assert {record.phase for record in read_records(log)} == {"stream", "eval"}
  assert not list(out.rglob(worker.JOURNAL_NAME))


def forbid_simulation(monkeypatch):
  """Makes every command to an environment an error."""

  def forbidden(_, commands):
    raise AssertionError(f"commands to {len(commands)} environments")

  monkeypatch.setattr(BatchEnv, "submit", forbidden)  # `run` submits too


def test_an_interrupted_stream_goes_on_and_forgets_what_was_not_logged(tiny_policy_dir, tmp_path, monkeypatch):
  config = config_of(tiny_policy_dir, **{"stream.episodes": 3, "stream.corrected_max": 3, "slots": 1})
  episode_record = worker.stream.episode_record
  calls = []

  def interrupted(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:  # the second episode's records are in the memory, its line is not in the log
      raise KeyboardInterrupt
    return episode_record(*args, **kwargs)

  monkeypatch.setattr(worker.stream, "episode_record", interrupted)
  with pytest.raises(KeyboardInterrupt):
    sweep.sweep(config, tmp_path)
  monkeypatch.setattr(worker.stream, "episode_record", episode_record)
  monkeypatch.setattr(worker.Worker, "_film", lambda *_: [])
  sweep.sweep(config, tmp_path)
  streamed = [r for r in read_records(tmp_path / "records.jsonl") if r.phase == "stream"]
  assert sorted(r.index for r in streamed) == [0, 1, 2]
  with Memory.load(tmp_path / "memory" / "pick_and_place-camera_shift") as memory:
    per_seed = {}
    for _, record in memory.records():
      per_seed.setdefault(record.provenance["seed"], []).append(record)
  assert {seed: len(found) for seed, found in per_seed.items()} == {
      r.seed: r.records_added for r in streamed if r.records_added}


@pytest.mark.parametrize(("changes", "message"), [
    ({"task": "juggling"}, "unknown task 'juggling'.*pick_and_place"),
    ({"conditions": ("camera_shfit",)}, "Did you mean 'camera_shift'.*nominal"),
    ({"policy": "panda_big"}, "unknown policy"),
    ({"task": "stacking"}, "policy 'tiny' was trained on pick_and_place, not on 'stacking'"),
    ({"policy": "pi05_libero"}, "policy 'pi05_libero' is for the robot 'libero', that of the world 'panda' is 'panda'"),
    ({"evaluation.first_seed": 100_001}, "overlap"),
    ({"stream.steering": "algined"}, "Did you mean 'aligned'"),
    ({"loop.delay_ms": 300.0}, "there after 6 ticks, and after 4 the next one is asked for"),
    ({"loop.delay_ms": 300.0, "execute_steps": 12}, "after 12 actions of a chunk of 16 a delay of 6 ticks is longer"),
    ({"loop.delay_ms": 200.0, "evaluation.policies": ({"name": "whole", "start": "zero", "execute_steps": 16},)},
     "after 16 actions of a chunk of 16 a delay of 4 ticks is longer"),
])
def test_a_wrong_configuration_is_refused_before_anything_runs(tiny_policy_dir, tmp_path, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    sweep.sweep(config_of(tiny_policy_dir, **changes), tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fields", "message"), [
    ({"renderer": "film"}, "pictures of renderer 'film'; on this machine there are raycast"),
    ({"tasks": ("pouring",)}, "was trained on pouring, not on 'pick_and_place'"),
])
def test_a_policy_that_the_world_cannot_show_anything_is_refused(tiny_policy_dir, fields, message):
  spec = dataclasses.replace(PolicySpec.load(tiny_policy_dir), **fields)
  with pytest.raises(Pi0RagError, match=message):
    rollout.world_config(spec, "pick_and_place", "nominal")


def test_processes_can_be_told_of_a_policys_worlds(tiny_policy_dir):
  config = rollout.world_config(PolicySpec.load(tiny_policy_dir), "pick_and_place")
  assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(("policies", "message"), [
    ({"name": "x", "steering": "residual", "start": "new"}, "'x' starts the flow at 'new', its memory learns where"),
])
def test_a_memory_steers_from_where_it_learned(tiny_policy_dir, tmp_path, policies, message):
  with pytest.raises(Pi0RagError, match=message):
    sweep.sweep(config_of(tiny_policy_dir, **{"evaluation.policies": (policies,)}), tmp_path / "out")


@pytest.fixture
def gym_config(tiny_policy_dir, tmp_path, monkeypatch):
  """A sweep of the tiny policy in an environment of gymnasium."""
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "worlds"))
  shutil.copytree(tiny_policy_dir, tmp_path / "policy")
  dataclasses.replace(PolicySpec.load(tiny_policy_dir), tasks=()).save(tmp_path / "policy")
  config = config_of(tmp_path / "policy", **{
    "task": "", "conditions": ("nominal",), "execute_steps": 2, "evaluation.policies": (
      {"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"})})
  with config.unlocked():
    config.world = {"id": "tiny_gym/TwoCameras-v0", "robot": "panda"}
  return config


def test_any_environment_of_gymnasium_can_be_swept(gym_config, tmp_path):
  summary = sweep.sweep(gym_config, tmp_path / "out")
  assert {cell["policy"] for cell in summary["cells"]} == {"base", "base_z0"}
  for cell in summary["cells"]:
    assert cell["task"] == "TwoCameras-v0" and cell["n"] == 2 and cell["crashed"] == 0
  records = read_records(tmp_path / "out" / "records.jsonl")
  assert {record.decisions for record in records} == {6}  # of 12 steps, two at a time


@pytest.mark.parametrize(("changes", "message"), [
    ({"evaluation.policies": ({"name": "memory", "steering": "residual"},)}, "has no expert"),
    ({"conditions": ("camera_shift",)}, "unknown condition 'camera_shift'.*nominal"),
    ({"execute_steps": 99}, "cannot execute 99 actions of a chunk; allowed: 1 to 16"),
    ({"evaluation.policies": ({"name": "x", "execute_steps": 17},)}, "cannot execute 17 actions"),
    ({"weights": "int4"}, "unknown storage of weights 'int4'"),
])
def test_what_an_environment_lacks_is_refused_by_name(gym_config, tmp_path, changes, message):
  gym_config.update_from_flattened_dict(changes)
  with pytest.raises(Pi0RagError, match=message):
    sweep.sweep(gym_config, tmp_path / "out")


def test_a_stream_does_not_go_on_without_what_it_has_learned(finished, tiny_policy_dir, tmp_path):
  shutil.copytree(finished[0], tmp_path / "sweep", ignore=shutil.ignore_patterns("memory"))
  again = sweep.sweep(config_of(tiny_policy_dir), tmp_path / "sweep")  # nothing is left to do
  assert again["streams"] == finished[1]["streams"]
  changed = config_of(tiny_policy_dir, **{"stream.episodes": 3})
  (tmp_path / "sweep" / "config.json").write_text(changed.to_json_best_effort())
  with pytest.raises(Pi0RagError, match=r"2 episodes of stream 'pick_and_place/camera_shift' are logged.*is missing"):
    sweep.sweep(changed, tmp_path / "sweep")


def test_a_memory_that_has_learned_more_since_is_not_evaluated_as_what_it_was(finished, tiny_policy_dir, tmp_path):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  changed = config_of(tiny_policy_dir, **{"stream.checkpoints": (1,)})
  (tmp_path / "config.json").write_text(changed.to_json_best_effort())
  with pytest.raises(Pi0RagError, match=r"camera_shift' has learned 2 episodes, so that its memory after 1 is gone"):
    sweep.sweep(changed, tmp_path)


def test_results_whose_configuration_cannot_be_read_are_left_alone(finished, tiny_policy_dir, tmp_path):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(Pi0RagError, match=r"config.json: .* of what configuration the results beside it are"):
    sweep.sweep(config_of(tiny_policy_dir), tmp_path)
  assert (tmp_path / "config.json").read_text() == "{"
  (tmp_path / "config.json").unlink()
  with pytest.raises(Pi0RagError, match=r"has records.jsonl and no config.json"):
    sweep.sweep(config_of(tiny_policy_dir), tmp_path)


def test_entries_that_came_since_change_nothing_of_older_results_unless_they_ask_for_something(tmp_path):
  config = quickstart.get_config()
  sweep.require_same_config(config, tmp_path)
  older = json.loads((tmp_path / "config.json").read_text())
  del older["weights"]
  (tmp_path / "config.json").write_text(json.dumps(older))
  sweep.require_same_config(config, tmp_path)
  with config.unlocked():
    config.weights = "int8"
  with pytest.raises(Pi0RagError, match="weights was None, is 'int8'"):
    sweep.require_same_config(config, tmp_path)


def test_a_decided_evaluation_stops_and_its_episodes_are_the_first_of_the_whole(finished, tiny_policy_dir, tmp_path,
                                                                                monkeypatch, made_up_ray):
  """Episodes come as they end, in another order; a run that is interrupted, or on Ray, comes to the same ones."""
  changes = {"evaluation.episodes": 30, "evaluation.latency_episodes": 0, "evaluation.clips": 0}
  config = config_of(tiny_policy_dir, **changes)
  left = [1000]

  def ran(runner, env, step, method, jobs, *, keep_latency=False):
    groups = [jobs[i : i + 5][::-1] for i in range(0, len(jobs), 5)]
    for job in (job for group in groups for job in group):
      left[0] -= 1
      if not left[0]:
        raise KeyboardInterrupt
      won = method.name == "memory" and job.seed % 7 > 0
      yield worker.stream.episode_record(
        tasks.cell(step, method), Trace(job, outcome="success" if won else "failure"), Lesson(), memory_records=1,
        tick_s=0.1)

  def swept(name, **options):
    out = tmp_path / name
    shutil.copytree(finished[0], out)
    log = out / "records.jsonl"
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines() if '"phase": "stream"' in line))
    (out / "config.json").write_text(config.to_json_best_effort())
    return out, lambda: sweep.sweep(config, out, **options)

  monkeypatch.setattr(worker.Worker, "_ran", ran)
  whole, run_whole = swept("whole")
  stopped, run_stopped = swept("stopped", stop_early=True)
  killed, run_killed = swept("killed", stop_early=True)
  on_ray, run_on_ray = swept("ray", stop_early=True, machines=Machines("local"))
  run_whole()
  summary = run_stopped()
  left[0] = 34  # the fourth of the memory's episodes
  with pytest.raises(KeyboardInterrupt):
    run_killed()
  left[0] = 1000
  run_killed()
  made_up_ray(one=1, two=1)
  run_on_ray()
  lines = {out: (out / "records.jsonl").read_text().splitlines() for out in (whole, stopped, killed, on_ray)}
  assert lines[killed] == lines[stopped] and sorted(lines[on_ray]) == sorted(lines[stopped])
  of_memory = [record.seed for record in read_records(stopped / "records.jsonl") if record.policy == "memory"
               and record.phase == "eval"]
  assert of_memory == list(range(200_000, 200_000 + len(of_memory))) and 8 <= len(of_memory) < 15
  assert set(lines[stopped]) < set(lines[whole])
  cell = summary["cells"][-1]
  assert cell["policy"] == "memory" and cell["stopped_early"] and (cell["n"], cell["planned"]) == (len(of_memory), 30)
  assert not summary["cells"][0]["stopped_early"] and summary["cells"][0]["n"] == 30
  sweep.sweep(config, stopped)
  assert set((stopped / "records.jsonl").read_text().splitlines()) == set(lines[whole]), "without the flag it goes on"


def test_results_of_another_configuration_are_not_mixed(finished, tiny_policy_dir):
  out, _ = finished
  with pytest.raises(Pi0RagError, match=r"evaluation.episodes was 2, is 5"):
    sweep.sweep(config_of(tiny_policy_dir, **{"evaluation.episodes": 5}), out)
