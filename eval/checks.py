"""What of a sweep's configuration cannot be run, said before anything is; and what it means for worlds and streams."""

from eval import plan
from eval.plan import Evaluate, Learn, Place
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import online
from pi0rag_jax.learning.online import OnlineConfig
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import check_rule
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds import registry, rollout
from pi0rag_jax.worlds.world import REWINDS, WorldConfig


def validate(config: Config) -> None:
  """Raises Pi0RagError for the first thing in a configuration that cannot be run, before anything is."""
  steps = plan.steps(config)
  places = {step.place for step in steps if isinstance(step, Evaluate)}
  _check_fitted(config)
  spec, _ = directory.describe(config.policy, config.checkpoint or None)
  _check_loop(config, spec)
  for place in places:
    online_config(config, place.task)
    world_config(config, spec, place)
  taught = {step.stream.place for step in steps if isinstance(step, Learn)}
  for place in taught if config.stream.corrected_max else ():
    registry.require_expert(world_config(config, spec, place))
  if taught:
    _check_rewinds(config)


def world_config(config: Config, spec: PolicySpec, place: Place) -> WorldConfig:
  """Returns the worlds of a place. Errors: those of `rollout.world_config`."""
  world, options = registry.read(config.world)
  return rollout.world_config(spec, place.task, place.condition, world=world, options=options)


def _check_loop(config: Config, spec: PolicySpec) -> None:
  """Raises Pi0RagError for a pace, of the policy or of a method, that the delay of the robot's loop is too long for."""
  methods = plan.read_methods((*config.evaluation.policies, *config.focus.policies))
  paces = {config.execute_steps or spec.execute_steps,
           *(method.execute_steps for method in methods if method.execute_steps and method.policy is None)}
  for count in sorted(paces):
    plan.loop(config, spec.executing(count))


def _check_rewinds(config: Config) -> None:
  """Raises Pi0RagError for a way to learn that goes back in time, in a world that cannot."""
  world, options = registry.read(config.world)
  learning = config.stream.learning
  goes_back = learning.get("retries", 0) or (learning.taught_by == online.REWIND and config.stream.corrected_max)
  if goes_back and REWINDS not in registry.family(world, options).abilities:
    raise Pi0RagError(f"the world '{world}' cannot go back in time: set stream.learning.taught_by='{online.TAKEOVER}' "
                      "and no stream.learning.retries")


def _check_fitted(config: Config) -> None:
  """Raises Pi0RagError for rules that are fitted to a memory, where that cannot be."""
  learning, steering = config.stream.learning, rules.preset(config.stream.steering)
  if rules.is_fitted(steering):
    raise Pi0RagError(f"stream.steering '{config.stream.steering}' is fitted to what a stream has taught, and cannot "
                      "steer it: use another one, such as 'residual', or stream.acting='base'")
  if config.stream.acting == "base" and OnlineConfig.from_dict({"trust": learning.trust.to_dict()}).trust.promises:
    raise Pi0RagError("stream.learning.trust.broken_max is a promise of what the memory breaks, and with "
                      "stream.acting='base' it never acts: set one of them back")
  for method in plan.read_methods((*config.evaluation.policies, *config.focus.policies)):
    noise = method.steering is not None and rules.asks_for_noise(rules.preset(method.steering))
    if noise and (learning.taught_by != online.TAKEOVER or learning.get("retries", 0)):
      raise Pi0RagError(f"'{method.name}' is fitted to what was seen in a stream's episodes, which are seen again from "
                        f"their beginning: set stream.learning.taught_by='{online.TAKEOVER}' and no retries")


def check_methods(config: Config, policy: Policy) -> None:
  """Raises Pi0RagError for ways to run and to steer that a policy of this kind does not have."""
  name, own_start = policy.spec.name, policy.spec.start
  for method in plan.read_methods((*config.evaluation.policies, *config.focus.policies)):
    if method.start is not None and not policy.noise_shape:
      raise Pi0RagError(f"'{method.name}' starts the flow at '{method.start}', but policy '{name}' "
                        f"({policy.spec.family}) starts from no noise: leave `start` out")
    if method.execute_steps is not None and method.policy is None:
      policy.spec.executing(method.execute_steps)
    if method.steering is None:
      continue
    check_rule(policy, rules.preset(method.steering))
    if method.start not in (None, own_start):
      raise Pi0RagError(f"'{method.name}' starts the flow at '{method.start}', its memory learns where policy '{name}' "
                        f"does, at '{own_start}': leave `start` out")
  check_rule(policy, rules.preset(config.stream.steering))
  if config.stream.learning.get("retries", 0) and not policy.noise_shape:
    raise Pi0RagError(f"policy '{name}' ({policy.spec.family}) would do the same again: set stream.learning.retries=0")


def online_config(config: Config, task: str) -> OnlineConfig:
  """Returns how a sweep's streams learn in a task, which says how high things are put unless the configuration does.

  Errors: Pi0RagError for an unknown setting or one that cannot be.
  """
  c = config.stream
  learning = {"corrected_max": c.corrected_max, **c.learning.to_dict()}
  learning["detectors"] = {**plan.family(config).facts(task), **learning.get("detectors", {})}
  return OnlineConfig.from_dict(learning)
