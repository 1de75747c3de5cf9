"""Training of a classifier on some rollouts, to the epoch that says most of others."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pi0rag_jax.curation import classifiers, metrics
from pi0rag_jax.curation.classifiers import Classifier
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Params

# An entry that hardly changes over the rollouts would become noise, blown up.
MIN_STD = 1e-4


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """How a classifier is trained: AdamW on the weighted binary cross-entropy."""

  epochs: int = 300
  batch_size: int = 1024  # steps; of whole episodes as many as have so many steps
  learning_rate: float = 1e-3
  weight_decay: float = 0.1
  seed: int = 0

  def __post_init__(self):
    if min(self.epochs, self.batch_size) < 1 or self.learning_rate <= 0:
      raise Pi0RagError(f"classifier training: epochs {self.epochs}, batch_size {self.batch_size}, learning_rate "
                        f"{self.learning_rate}; allowed: above 0")


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
  """A classifier at its best epoch, with what its inputs are brought to and how it came about."""

  name: str  # in the registry
  options: Mapping[str, Any]
  params: Params
  mean_F: np.ndarray  # float32, of the training rollouts
  std_F: np.ndarray  # float32
  trained_on: str  # which rollouts
  validated_on: str
  epoch: int  # from 1; 0 is what an update started from
  validation_loss: float  # binary cross-entropy without weights, of steps or of episodes

  @functools.cached_property
  def module(self) -> Classifier:
    """The network."""
    return classifiers.classifier(self.name, self.options)

  def standardized(self, values_XF: np.ndarray) -> np.ndarray:
    """Returns float32[..., F]. Errors: Pi0RagError for inputs of another width."""
    if values_XF.shape[-1] != len(self.mean_F):
      raise Pi0RagError(f"inputs have width {values_XF.shape[-1]}, the classifier '{self.name}' was trained on "
                        f"{len(self.mean_F)}: the same parts, and embeddings of the same policy, are wanted")
    return ((values_XF - self.mean_F) / self.std_F).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Units that are judged: whole episodes, or steps as episodes of one step."""

  inputs_BTF: Any
  mask_BT: Any
  success_B: Any


jax.tree_util.register_dataclass(Batch, data_fields=["inputs_BTF", "mask_BT", "success_B"], meta_fields=[])


def check_classes(name: str, episodes: Episodes) -> None:
  """Raises Pi0RagError unless all labels of some rollouts are known, and there are successes and failures."""
  check_labels(name, episodes)
  if not metrics.both_classes(episodes.success_J):
    raise Pi0RagError(one_class(name, episodes))


def check_labels(name: str, episodes: Episodes) -> None:
  """Raises Pi0RagError unless all labels of some rollouts are known."""
  if unknown := int(np.isnan(episodes.success_J).sum()):
    raise Pi0RagError(f"{unknown} of {len(episodes)} rollouts of '{name}' have no success label: give another rule")


def one_class(name: str, episodes: Episodes) -> str:
  """Returns what to say of rollouts all of which succeeded, or none."""
  successes = int(episodes.success_J.sum())
  return (f"{successes} of {len(episodes)} rollouts of '{name}' succeeded: a classifier needs successes and failures; "
          f"run more episodes, or take {'an earlier' if successes else 'a later'} checkpoint or "
          f"{'a harder' if successes else 'an easier'} condition")


def train(name: str, options: Mapping[str, Any], training: Episodes, validation: Episodes, config: TrainingConfig, *,
          trained_on: str = "", validated_on: str = "") -> TrainedClassifier:
  """Returns a classifier trained from random values, at the epoch of the least validation loss."""
  module = classifiers.classifier(name, options)
  mean_F, std_F = input_scale(np.concatenate(training.values), centred=not keeps_zeros(module))
  blank = TrainedClassifier(name, dict(options), {}, mean_F, std_F, trained_on, validated_on, 0, np.inf)
  start = module.init(jax.random.key(config.seed), *example(training), train=False)["params"]
  return _trained(dataclasses.replace(blank, params=start), training, validation, config, keep_start=False)


def update(trained: TrainedClassifier, rollouts: Episodes, validation: Episodes,
           config: TrainingConfig) -> TrainedClassifier:
  """Returns a classifier after more training on rollouts that came in since, or as it was where that did not help.

  Args:
    trained: where the training goes on; its scaling of the inputs stays.
    rollouts: new ones, with those that are not to be forgotten.
    validation: decides which epoch is kept, the start among them.
    config: see TrainingConfig.
  """
  check_classes("the update", rollouts)
  return _trained(trained, rollouts, validation, config, keep_start=True)


def _trained(start: TrainedClassifier, training: Episodes, validation: Episodes, config: TrainingConfig, *,
             keep_start: bool) -> TrainedClassifier:
  parts = [batch_of(start, episodes) for episodes in (training, validation)]
  units = unit_count(start.module, training, config.batch_size)
  params, epoch, loss = _fit(start.module, config, units, keep_start, start.params, *parts)
  if not np.isfinite(loss):
    raise Pi0RagError(f"the classifier '{start.name}' has no finite validation loss in {config.epochs} epochs: lower "
                      "learning_rate")
  return dataclasses.replace(
    start, params=jax.device_get(params), epoch=int(epoch), validation_loss=float(loss))


def input_scale(rows_NF: np.ndarray, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns (mean, deviation) float32[F] by which inputs are standardized; uncentred ones have mean 0."""
  mean_F = rows_NF.mean(axis=0) if centred else np.zeros(rows_NF.shape[1])
  std_F = np.sqrt(np.square(rows_NF - mean_F).mean(axis=0))
  return mean_F.astype(np.float32), np.where(std_F > MIN_STD, std_F, 1.0).astype(np.float32)


def keeps_zeros(module: Classifier) -> bool:
  """Returns whether zeros mean something to a classifier: a token that is not valid."""
  return isinstance(module, classifiers.PrefixClassifier) and module.tokens > 1


def example(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
  """Returns the (inputs, mask) of one step."""
  return np.zeros((1, 1, episodes.width), np.float32), np.ones((1, 1), bool)


def batch_of(trained: TrainedClassifier, episodes: Episodes) -> Batch:
  """Returns all of a classifier's units, standardized."""
  units = episodes.as_steps() if trained.module.per_step else episodes
  inputs_BTF, mask_BT = units.padded()
  return Batch(trained.standardized(inputs_BTF), mask_BT, units.success_J.astype(np.float32))


def unit_count(module: Classifier, episodes: Episodes, steps: int) -> int:
  """Returns how many units make a batch of so many steps."""
  length = 1 if module.per_step else max(map(len, episodes.values))
  return max(steps // length, 1)


def cross_entropy(module: Classifier, params: Params, batch: Batch, *, success_weight: float = 1.0, dropout_key=None):
  """Returns the mean binary cross-entropy of units, float[]; with a key, dropout is on.

  Args:
    module: the network.
    params: of it.
    batch: B units.
    success_weight: of a success against a failure.
    dropout_key: None leaves dropout off.
  """
  rngs = None if dropout_key is None else {"dropout": dropout_key}
  logits: Any = module.apply({"params": params}, batch.inputs_BTF, batch.mask_BT, train=rngs is not None, rngs=rngs)
  logits_BT = logits if module.per_step else logits[:, None]
  counted_BT = batch.mask_BT if module.per_step else jnp.ones_like(logits_BT, bool)
  success_BT = jnp.broadcast_to(batch.success_B[:, None], logits_BT.shape)
  weight_BT = counted_BT * jnp.where(success_BT > 0.5, success_weight, 1.0)
  return (weight_BT * optax.sigmoid_binary_cross_entropy(logits_BT, success_BT)).sum() / weight_BT.sum()


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fit(module: Classifier, config: TrainingConfig, units: int, keep_start: bool, params, training: Batch,
         validation: Batch):
  """Returns (parameters, epoch, validation loss) of the best epoch; all epochs are one program."""
  optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
  total = training.success_B.shape[0]
  steps = -(-total // units)

  def step(state, inputs):
    params: Any
    params, optimizer_state = state
    rows_B, key = inputs
    batch = jax.tree.map(lambda x: x[rows_B], training)
    loss_of = functools.partial(
      cross_entropy, module, batch=batch, success_weight=module.success_weight, dropout_key=key)
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
    params = optax.apply_updates(params, updates)
    return (params, optimizer_state), loss

  def epoch(carry, number):
    state, best = carry
    order_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number))
    # The last batch is filled up with the epoch's first units.
    rows_SB = jnp.resize(jax.random.permutation(order_key, total), (steps, units))
    state, _ = jax.lax.scan(step, state, (rows_SB, jax.random.split(dropout_key, steps)))
    loss = cross_entropy(module, state[0], validation)
    better = loss < best[2]
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (state[0], number, loss), best)
    return (state, best), None

  start_loss = cross_entropy(module, params, validation) if keep_start else jnp.inf
  best = (params, jnp.zeros((), jnp.int32), jnp.asarray(start_loss, jnp.float32))
  carry = ((params, optimizer.init(params)), best)
  (_, best), _ = jax.lax.scan(epoch, carry, jnp.arange(1, config.epochs + 1, dtype=jnp.int32))
  return best
