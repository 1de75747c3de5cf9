"""What a configuration amounts to: the order of learning and evaluating, and which seeds are whose."""

import pytest

from configs import quickstart
from eval import plan
from eval.plan import Evaluate, Fork, Learn
from pi0rag_jax.errors import Pi0RagError


def config_of(**changes):
  config = quickstart.get_config()
  values = {"conditions": ("camera_shift", "pick_and_place/tool_offset"), "stream.episodes": 100}
  config.update_from_flattened_dict(values | changes)
  return config


def words(steps):
  """Returns the steps as short texts."""
  found = []
  for step in steps:
    if isinstance(step, Learn):
      found.append(f"learn {step.stream.name} {step.until}")
    elif isinstance(step, Fork):
      found.append(f"fork {step.source.name} {step.target.name}")
    else:
      names = ",".join(method.name for method in step.methods)
      found.append(f"evaluate {step.place.name} {step.after} {names}")
  return found


def test_each_place_is_evaluated_without_memory_then_learned_and_evaluated():
  steps = plan.steps(config_of())
  assert words(steps) == [
    "evaluate pick_and_place/camera_shift 0 base,base_z0,base_z0_4,base_z0_16",
    "learn pick_and_place/camera_shift 100",
    "evaluate pick_and_place/camera_shift 100 textbook,memory",
    "evaluate pick_and_place/tool_offset 0 base,base_z0,base_z0_4,base_z0_16",
    "learn pick_and_place/tool_offset 100",
    "evaluate pick_and_place/tool_offset 100 textbook,memory",
  ]


def test_without_a_policy_that_has_a_memory_nothing_is_learned():
  steps = plan.steps(config_of(**{"conditions": ("nominal",), "evaluation.policies": ({"name": "base"},)}))
  assert words(steps) == ["evaluate pick_and_place/nominal 0 base"]


def test_what_all_places_taught_is_evaluated_together_once_all_have():
  steps = plan.steps(config_of(**{
    "conditions": ("camera_shift", "tool_offset"), "pool.conditions": ("nominal", "camera_shift"),
    "evaluation.policies": ({"name": "base_z0", "start": "zero"}, {"name": "memory", "steering": "residual"})}))
  merge = next(i for i, step in enumerate(steps) if isinstance(step, plan.Merge))
  assert [stream.place.condition for stream in steps[merge].pool.streams] == ["camera_shift", "tool_offset"]
  assert all(isinstance(step, Evaluate | Learn) for step in steps[:merge])
  assert words(steps[merge + 1 :]) == [
    "evaluate pick_and_place/nominal 0 base_z0", "evaluate pick_and_place/nominal 100 memory",
    "evaluate pick_and_place/camera_shift 0 base_z0", "evaluate pick_and_place/camera_shift 100 memory"]
  assert {step.stream for step in steps[merge + 1 :]} == {None, steps[merge].pool}


def test_a_place_of_focus_has_more_streams_methods_and_a_way_back():
  steps = plan.steps(config_of(**{
    "conditions": ("camera_shift", "nominal"), "stream.checkpoints": (20,), "focus.conditions": ("camera_shift",),
    "focus.streams": 2, "focus.episodes": 150, "focus.return_episodes": 30, "focus.evaluation_episodes": 40,
    "evaluation.policies": ({"name": "base_z0", "start": "zero"}, {"name": "memory", "steering": "residual"}),
    "focus.policies": ({"name": "textbook", "steering": "textbook"},)}))
  here, back = "pick_and_place/camera_shift", "pick_and_place/nominal, after camera_shift"
  assert words(steps) == [
    f"evaluate {here} 0 base_z0",
    f"learn {here} 20", f"evaluate {here} 20 memory", f"learn {here} 100", f"evaluate {here} 100 memory",
    "evaluate pick_and_place/nominal 0 base_z0",
    "learn pick_and_place/nominal 20", "evaluate pick_and_place/nominal 20 memory",
    "learn pick_and_place/nominal 100", "evaluate pick_and_place/nominal 100 memory",
    f"evaluate {here} 100 textbook",
    "evaluate pick_and_place/nominal 0 base_z0",  # by now there is nothing left to do
    f"fork {here} {back}", "evaluate pick_and_place/nominal 0 memory",
    f"learn {back} 30", "evaluate pick_and_place/nominal 30 memory",
    f"learn {here}, stream 2 20", f"evaluate {here} 20 memory", f"learn {here}, stream 2 100",
    f"evaluate {here} 100 memory",
    f"learn {here} 150", f"evaluate {here} 150 memory",
  ]
  streams = {step.stream for step in steps if isinstance(step, Learn) and step.stream.place.condition != "nominal"}
  forked = {step.target for step in steps if isinstance(step, Fork)}
  seeds = [seed for stream in streams | forked for seed in stream.seeds]
  assert len(seeds) == len(set(seeds)) == 150 + 100 + 30
  assert {stream.directory for stream in streams | forked} == {
    "pick_and_place-camera_shift", "pick_and_place-camera_shift-stream_2", "pick_and_place-nominal-after_camera_shift"}
  shown = [step for step in steps if isinstance(step, Evaluate) and step.shown and step.stream]
  assert [step.stream.name for step in shown if step.stream] == [here, "pick_and_place/nominal"]
  seeds = [step.seeds for step in steps if isinstance(step, Evaluate)]
  assert set(seeds[:6]) == {range(200_000, 200_100)} and set(seeds[6:]) == {range(200_000, 200_040)}


@pytest.mark.parametrize(("changes", "message"), [
  ({"conditions": ("juggling/nominal",)}, "unknown task 'juggling'"),
  ({"focus.conditions": ("tool_ofset",)}, "unknown condition 'tool_ofset'"),
  ({"focus.conditions": ("nominal",)}, r"\['pick_and_place/nominal'\] are not among the conditions"),
  ({"stream.episodes": 6000}, "6000 episodes: at most 5000"),
  ({"stream.first_seed": 199_950, "evaluation.first_seed": 300_000}, "199950..200049 leave"),
  ({"evaluation.first_seed": 50}, "evaluation seeds 50..149 leave"),
  ({"evaluation.policies": (("base", "gaussian", ""),)}, r"is \('base', 'gaussian', ''\); allowed: a dictionary"),
  ({"evaluation.policies": ({"name": "x", "begin": "zero"},)}, "entry of a policy to evaluate 'begin'.*start"),
  ({"evaluation.policies": ({"name": "x", "start": "gaussian"},)}, "unknown start of the flow 'gaussian'.*new, zero"),
  ({"evaluation.policies": ({"name": "x", "steering": "magic"},)}, "steering preset 'magic'.*residual, residual_da"),
  ({"evaluation.policies": ({"name": "x", "steering": "raw", "policy": "p"},)}, "'x' is another policy, and"),
  ({"pool.conditions": ("tool_ofset",)}, "unknown condition 'tool_ofset'"),
  ({"stream.acting": "nobody"}, "who acts in a stream 'nobody'.*base, memory"),
])
def test_what_cannot_be_planned_is_refused(changes, message):
  with pytest.raises(Pi0RagError, match=message):
    plan.steps(config_of(**changes))


def test_without_a_memory_no_stream_is_needed():
  found = plan.steps(config_of(**{"stream.episodes": 0, "evaluation.policies": ({"name": "base"},)}))
  assert {type(step) for step in found} == {Evaluate}


@pytest.mark.parametrize(("changes", "message"), [
  ({"memory.capacity": 0}, "memory.capacity is 0; allowed: whole numbers from 1"), ({"slots": -1}, "slots is -1"),
  ({"stream.episodes": -3}, "stream.episodes is -3"),
  ({"stream.episodes": 0}, "'textbook' is steered by what a stream teaches"),
  ({"evaluation.episodes": 0}, "evaluation.episodes is 0"),
  ({"memory.deadline_ms": float("nan")}, "memory.deadline_ms is nan; allowed: numbers from 0.0"),
  ({"memory.feeding": "x"}, "unknown feeding 'x'"), ({"memory.key_name": "../x"}, "memory.key_name is '../x'"),
  ({"start": "draw:x"}, "the flow starts at 'draw:x'"), ({"conditions": ()}, r"conditions are \(\); allowed: one or"),
  ({"conditions": ("nominal", "nominal")}, "allowed: one or more, each once"),
  ({"stream.checkpoints": (-1,)}, "an entry of stream.checkpoints is -1"),
  ({"evaluation.policies": ({"name": "a"}, {"name": "a", "steering": "raw"})}, "two policies to evaluate are called"),
  ({"evaluation.policies": ({"name": "a/b"},)}, "has the name 'a/b'; allowed: texts without '/'"),
])
def test_values_that_no_sweep_can_have_are_refused_before_any_work(changes, message):
  with pytest.raises(Pi0RagError, match=message):
    plan.steps(config_of(**changes))
