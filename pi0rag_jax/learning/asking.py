"""When a person should look: a request for help from what the memory knows of where the policy needed it.

All that is learned here comes of the memory's records, nothing is kept beside them: a record that is deleted has no say
in it any more. A logistic failure predictor judges a decision by its key, by how far the key is from those of other
episodes (novelty), by how far the policy's plan is from the one before (contradiction), and by how late it is.
"""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from pi0rag_jax import schema
from pi0rag_jax.errors import unknown_name
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Record, origin
from pi0rag_jax.policy import keys
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step

# When somebody looks: all the time, when the policy asks, or at random, which is the placebo.
ALWAYS, ASKED, RANDOM = ASKING = ("always", "asked", "random")
RECORDS = 2048  # the newest ones, from which is learned
KEY_PARTS = 16  # principal ones of the keys
FOLDS = 5
REFIT_SHARE = 0.1
_PENALTY = 1.0  # of the predictor's squared weights, in decisions
_NEWTON_STEPS = 12
_TINY = 1e-9
_STREAM = 4  # sets the draws of who is asked at random apart from an episode's others


@dataclasses.dataclass(frozen=True)
class AskingConfig:
  """When somebody is asked to look at an episode; see SupervisorConfig for how long they do."""

  when: str = ALWAYS  # one of ASKING
  false_asks: float = 0.2  # share of the episodes that go well by themselves in which it asks all the same
  least: int = 5  # episodes that went well, and that did not, before which it always asks
  random_share: float = 0.02  # of the decisions at which it asks, with when='random'

  def __post_init__(self):
    if self.when not in ASKING:
      raise unknown_name("asking", self.when, ASKING)
    for name in ("false_asks", "random_share"):
      schema.check_range(getattr(self, name), 0.0, 1.0, f"asking.{name}")
    schema.check_range(self.least, 1, 10**6, "asking.least")


@dataclasses.dataclass(frozen=True)
class _Seen:
  """The decisions of which a memory knows how they went, in the order of episodes and ticks."""

  keys_NE: np.ndarray
  contradiction_N: np.ndarray
  tick_N: np.ndarray  # of its episode
  episode_N: np.ndarray  # int
  wrong_N: np.ndarray  # bool: the policy needed help soon after
  helped_N: np.ndarray  # bool: somebody helped in its episode


@dataclasses.dataclass(frozen=True)
class Asking:
  """A request for help that was fitted to a memory; see `fit`."""

  keys_NE: np.ndarray
  squared_N: np.ndarray  # lengths of the keys
  center_E: np.ndarray
  parts_EF: np.ndarray
  mean_F: np.ndarray
  spread_F: np.ndarray
  weights_F: np.ndarray
  threshold: float

  def score(self, key_E: np.ndarray, contradiction: float, tick: int) -> float:
    """Returns the log odds that the policy needs help soon, `tick` control ticks after its episode began."""
    nearest = (self.squared_N - 2 * (self.keys_NE @ key_E)).min() + key_E @ key_E
    novelty_N = np.sqrt(np.maximum(nearest, 0.0))[None]
    features_NF = _features(key_E[None], novelty_N, np.array([contradiction]), np.array([tick]), self.center_E,
                            self.parts_EF)
    return float(_standard(features_NF, self.mean_F, self.spread_F)[0] @ self.weights_F)

  def __call__(self, key_E: np.ndarray, contradiction: float, tick: int) -> bool:
    """Returns whether somebody should look."""
    return self.score(key_E, contradiction, tick) > self.threshold


def fit(memory: Memory, space: ActionSpace, config: AskingConfig) -> Asking | None:
  """Returns the request that a memory teaches; None where it knows too few episodes of either kind.

  The threshold is the quantile of the greatest score of each episode that went well, by predictors that were fitted
  without it: that many of such episodes ask in vain.
  """
  seen = _seen(memory, space)
  fine = np.unique(seen.episode_N[~seen.helped_N])
  if len(fine) < config.least or len(np.unique(seen.episode_N[seen.wrong_N])) < config.least:
    return None
  center_E = seen.keys_NE.mean(axis=0)
  parts_EF = np.linalg.svd(seen.keys_NE - center_E, full_matrices=False)[2][:KEY_PARTS].T
  distances_NN = keys.distances(seen.keys_NE, seen.keys_NE)
  distances_NN[seen.episode_N[:, None] == seen.episode_N] = np.inf
  features_NF = _features(seen.keys_NE, distances_NN.min(axis=1), seen.contradiction_N, seen.tick_N, center_E, parts_EF)
  mean_F, spread_F = features_NF.mean(axis=0), features_NF.std(axis=0) + _TINY
  standard_NF = _standard(features_NF, mean_F, spread_F)
  scores_N = np.empty(len(standard_NF))
  for fold in range(FOLDS):
    out_N = seen.episode_N % FOLDS == fold
    scores_N[out_N] = standard_NF[out_N] @ _logistic(standard_NF[~out_N], seen.wrong_N[~out_N])
  highest = [scores_N[seen.episode_N == episode].max() for episode in fine]
  threshold = float(np.quantile(highest, 1 - config.false_asks, method="higher"))
  return Asking(seen.keys_NE, (seen.keys_NE**2).sum(axis=1), center_E, parts_EF, mean_F, spread_F,
                _logistic(standard_NF, seen.wrong_N), threshold)


def contradiction(before: Step | None, step: Step, space: ActionSpace) -> float:
  """Returns the mean path cost between the policy's plan and what the plan before it had for the same ticks."""
  if before is None:
    return 0.0
  return paths.contradiction(before.base_TA, step.base_TA, step.tick - before.tick, space)


class Asker:
  """Asks on behalf of a policy whose memory learns; fitted anew whenever the memory has grown by a tenth."""

  def __init__(self, memory: Memory, space: ActionSpace, config: AskingConfig):
    self._memory, self._space, self._config = memory, space, config
    self._fitted_at, self._asking = -1, None

  def asking(self) -> Asking | None:
    """Returns the request as the memory teaches it now; None while it knows too little."""
    count = len(self._memory)
    if self._fitted_at < 0 or not self._fitted_at <= count < (1 + REFIT_SHARE) * self._fitted_at:
      self._fitted_at, self._asking = count, fit(self._memory, self._space, self._config)
    return self._asking

  def episode(self, seed: int) -> Callable[[Step], bool]:
    """Returns what says of each decision of an episode whether somebody is to look."""
    if self._config.when == ALWAYS:
      return lambda step: True
    if self._config.when == RANDOM:
      rng = np.random.default_rng([seed, _STREAM])
      return lambda step: rng.random() < self._config.random_share
    asking, last = self.asking(), None
    if asking is None:
      return lambda step: True

    def asks(step: Step) -> bool:
      nonlocal last
      before, last = last, step
      return asking(step.key_E, contradiction(before, step, self._space), step.tick)

    return asks


def _seen(memory: Memory, space: ActionSpace) -> _Seen:
  episodes: dict[str, list[Record]] = collections.defaultdict(list)
  for _, record in collections.deque(memory.records(), maxlen=RECORDS):
    # What a helper did is no decision of the policy's.
    if record.kind == ANCHOR or (record.kind == CORRECTION and record.outcome == "failure"):
      episodes[origin(record)].append(record)
  found, contradictions, ticks, numbers, wrong, helped = [], [], [], [], [], []
  for number, records in enumerate(episodes.values()):
    records.sort(key=_tick)
    helped += [any(record.kind == CORRECTION for record in records)] * len(records)
    for before, record in zip([None, *records], records):
      found.append(record.key)
      ticks.append(_tick(record))
      numbers.append(number)
      wrong.append(record.kind == CORRECTION)
      contradictions.append(0.0 if before is None else paths.contradiction(
          before.base_chunk, record.base_chunk, _tick(record) - _tick(before), space))
  width = memory.header.key_dim
  return _Seen(np.array(found, np.float32).reshape(-1, width), np.array(contradictions), np.array(ticks, int),
               np.array(numbers, int), np.array(wrong, bool), np.array(helped, bool))


def _tick(record: Record) -> int:
  return int(record.provenance.get("tick", 0))


def _features(keys_NE, novelty_N, contradiction_N, tick_N, center_E, parts_EF) -> np.ndarray:
  """Returns float[N, F], the last of them ones."""
  return np.column_stack([(keys_NE - center_E) @ parts_EF, np.log(novelty_N + _TINY), np.log1p(contradiction_N),
                          np.log1p(tick_N), np.ones(len(keys_NE))])


def _standard(features_NF, mean_F, spread_F) -> np.ndarray:
  standard_NF = (features_NF - mean_F) / spread_F
  standard_NF[:, -1] = 1.0
  return standard_NF


def _logistic(features_NF: np.ndarray, wrong_N: np.ndarray) -> np.ndarray:
  """Returns the weights float[F] of a logistic regression in which both kinds weigh alike, by Newton's method."""
  share = np.clip(wrong_N.mean(), 1e-3, 1 - 1e-3)
  weight_N = np.where(wrong_N, 0.5 / share, 0.5 / (1 - share))
  penalty_F = np.full(features_NF.shape[1], _PENALTY)
  penalty_F[-1] = _TINY
  weights_F = np.zeros(features_NF.shape[1])
  for _ in range(_NEWTON_STEPS):
    chance_N = 1 / (1 + np.exp(-np.clip(features_NF @ weights_F, -30, 30)))
    slope_F = features_NF.T @ (weight_N * (chance_N - wrong_N)) + penalty_F * weights_F
    bend_N = weight_N * np.maximum(chance_N * (1 - chance_N), 1e-6)
    weights_F = weights_F - np.linalg.solve((features_NF.T * bend_N) @ features_NF + np.diag(penalty_F), slope_F)
  return weights_F
