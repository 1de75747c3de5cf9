"""One mixture of demonstrators: their scores, what each scorer keeps, and policies that are trained on that."""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.curation import cloning, demonstrators
from eval.curation.cloning import Policy
from eval.curation.demonstrators import Demonstration
from pi0rag_jax import files
from pi0rag_jax.curation import cross_validation, flaws, metrics, mixtures, scorers, scoring, thresholds, training
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.curation.scorers import SCORERS, Steps, joined
from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import batch

TICK_S = 0.0125
OWN = ("own_wrong_place", "hesitation", "detour")
# Mixture -> (flaws, share of the flawed). Those of recordings (curation/flaws.py) are put into clean demonstrations.
MIXTURES = {"alike_60": (("wrong_place",), 0.6), "bias_60": (("action_bias",), 0.6), "own_50": (OWN, 0.5),
            "alike_50": (("wrong_place",), 0.5), "alike_20": (("wrong_place",), 0.2)}
BIAS_A = np.array([1.0, -1.0, 1.0, 0.0])  # of the hand alone
ALL, ORACLE, LEAST, TRIED = "all", "oracle", "least_agreement", "tried"
# Of Demo-SCORE's extras.
KINDS = ("step_mlp", "transformer", "pool_mlp")
# Lengths are matched, and clean demonstrators slower, by construction; the others are scored alone, to save time.
NOT_TRAINED = ("length", "pace", "novelty", "demo_score_kinds", "demo_score_policies")
COMBINED = ("agreement", "deminf", "outcomes")
DEMO_SCORE, CLASSIFIER, UPDATED = "demo_score", "step_mlp0", "demo_score_updated"
ENSEMBLES = {DEMO_SCORE: (CLASSIFIER,), "demo_score_kinds": tuple(f"{kind}0" for kind in KINDS),
             "demo_score_policies": ("step_mlp0", "step_mlp1")}  # of a kind, and the policy whose rollouts it read
ADAPTIVE = "demo_score_adaptive"  # keeps what scores as training rollouts do on average, however many that are
SCORED, POLICIES, EPISODES = "scores.json", "policies.npz", "episodes.jsonl"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides the results."""

  task: str = "pick-place-v3"
  episodes: int = 100  # of a mixture
  every: int = 4  # ticks from step to step of scorers
  horizon: int = 16  # actions that scorers compare
  rollouts: int = 30  # of each checkpoint
  training_seeds: tuple[int, ...] = (0, 1, 2)
  first_demonstration: int = 0
  first_rollout: int = 100_000
  first_evaluation: int = 200_000


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What there is before anything is kept."""

  settings: Settings
  demonstrations: Sequence[Demonstration]
  folder: Path

  @functools.cached_property
  def steps(self) -> Steps:
    """As scorers see them."""
    return demonstrators.steps_of(list(self.demonstrations), every=self.settings.every, horizon=self.settings.horizon,
                                  tick_s=TICK_S)

  @functools.cached_property
  def ticks(self) -> Steps:
    """As policies learn from them."""
    return demonstrators.steps_of(list(self.demonstrations), every=1, horizon=cloning.HORIZON, tick_s=TICK_S)

  @property
  def clean_J(self) -> np.ndarray:
    return np.array([float(each.flaw == CLEAN) for each in self.demonstrations])

  def train(self, kept: Sequence[np.ndarray], seeds: Sequence[int], keep=(1.0,)) -> list[list[Policy]]:
    """Returns a policy for each bool[J] of what is kept, after each share of the training."""
    episode_N = self.ticks.episode_N
    rows = [np.flatnonzero(kept_J[episode_N]) for kept_J in kept]
    return cloning.train(self.ticks.looks_NF, self.ticks.chunks_ND, rows, seeds, keep=keep)


def prepare(mixture: Mixture, *, processes: int) -> None:
  """Scores the demonstrations of a mixture and trains on what is kept; what is there already stays."""
  file = mixture.folder / SCORED
  if (mixture.folder / POLICIES).is_file():
    return
  mixture.folder.mkdir(parents=True, exist_ok=True)
  found = score(mixture, processes=processes)
  # What keeps the same demonstrations is one training.
  first: dict[tuple[int, ...], str] = {}
  found["trained_as"] = {name: first.setdefault(tuple(each), name) for name, each in found["kept"].items()}
  files.write_json(file, found)
  names, seeds = list(first.values()), mixture.settings.training_seeds
  runs = [(name, seed) for name in names for seed in seeds]
  kept = {name: np.isin(np.arange(len(mixture.demonstrations)), found["kept"][name]) for name in names}
  (policies,) = mixture.train([kept[name] for name, _ in runs], [seed for _, seed in runs])
  save(mixture.folder / POLICIES, {f"{name} {seed}": policy for (name, seed), policy in zip(runs, policies)})


def score(mixture: Mixture, *, processes: int) -> dict[str, Any]:
  """Returns what `scores.json` holds: every score, how well it tells clean demonstrations, and what is kept by it.

  Who reads rollouts may say nothing, where they all ended alike: `silent` says why.
  """
  settings, everything = mixture.settings, np.ones(len(mixture.demonstrations), bool)
  early, late = mixture.train([everything] * 2, [0, 1], keep=(0.5, 1.0))
  seen = rollouts(settings, {f"{stage}{run}": policy for stage, made in (("early", early), ("late", late))
                             for run, policy in enumerate(made)}, first=settings.first_rollout, processes=processes)
  own, silent = {name: seen[name] for name in ("early0", "late0")}, {}
  found = {name: scorers.score(name, mixture.steps) for name, each in SCORERS.items() if not each.rollouts}
  for name in ("outcomes", "agreement_by_success"):
    with told(silent, name):
      found[name] = scorers.score(name, mixture.steps, own)
  members = {}
  for kind, run in itertools.product(KINDS, (0, 1)):
    with told(silent, f"{kind}{run}"):
      members[f"{kind}{run}"] = classifier(kind, {name: seen[name] for name in (f"early{run}", f"late{run}")})
  judged = {name: judge(trained, mixture.steps) for name, (trained, _) in members.items()}
  for name, parts in ENSEMBLES.items():
    if all(part in judged for part in parts):
      found[name] = np.mean([judged[part] for part in parts], axis=0)
  found["combination"] = scorers.combined([found[name] for name in COMBINED if name in found])
  share = float(mixture.clean_J.mean())
  halves = {"agreement": best(found["agreement"], share), LEAST: best(-found["agreement"], share)}
  wanted = halves | ({DEMO_SCORE: best(found[DEMO_SCORE], share)} if DEMO_SCORE in found else {})
  tried = trial(mixture, wanted, processes=processes)
  rules: dict[str, dict[str, Any]] = {}
  kept = {ALL: everything, ORACLE: mixture.clean_J > 0.5, LEAST: halves[LEAST]}
  if DEMO_SCORE in found:
    trained, of_rollouts = members[CLASSIFIER]
    with told(silent, UPDATED):
      later = as_episodes(joined([seen["early0"], tried[DEMO_SCORE]]))
      found[UPDATED] = judge(
        training.update(trained, later, as_episodes(seen["late0"]), training.TrainingConfig()), mixture.steps)
    rules = thresholds_of(of_rollouts, found[DEMO_SCORE], mixture.clean_J, share)
    if rules["demo_score"]["kept"]:
      kept[ADAPTIVE] = found[DEMO_SCORE] >= rules["demo_score"]["threshold"]
  kept |= {name: best(each, share) for name, each in found.items() if name not in NOT_TRAINED}
  auroc = lambda scores_J: dataclasses.asdict(metrics.auroc_estimate(scores_J, mixture.clean_J))  # noqa: E731
  return {
    "flaws": [each.flaw for each in mixture.demonstrations],
    "lengths": [len(each.actions_TA) for each in mixture.demonstrations],
    "rollout_success": {name: float(each.success_J.mean()) for name, each in seen.items()},
    "scores": {name: each.tolist() for name, each in found.items()}, "silent": silent,
    "auroc": {name: auroc(each) for name, each in found.items()},
    "classifiers": {name: auroc(each) for name, each in judged.items()}, "thresholds": rules,
    "precision": {name: float(mixture.clean_J[each].mean()) for name, each in kept.items()},
    "kept": {name: np.flatnonzero(each).tolist() for name, each in kept.items()},
    "tried": {"success": {name: float(each.success_J.mean()) for name, each in tried.items()},
              "chosen": max(halves, key=lambda name: tried[name].success_J.mean()), "episodes": settings.rollouts}}


@contextlib.contextmanager
def told(silent: dict[str, str], name: str) -> Iterator[None]:
  """Notes why something cannot be said, such as of rollouts that all failed."""
  try:
    yield
  except Pi0RagError as error:
    silent[name] = str(error)


def best(scores_J: np.ndarray, share: float) -> np.ndarray:
  """Returns bool[J], the best share."""
  return thresholds.kept("fraction", np.nan, scores_J, value=share)


def classifier(kind: str, seen: Mapping[str, Steps]):
  """Returns (Demo-SCORE's classifier of rollouts by checkpoint, what it says of them)."""
  episodes = {name: as_episodes(steps) for name, steps in seen.items()}
  trained, _ = cross_validation.cross_validate(kind, {}, episodes, training.TrainingConfig())
  first, last = episodes[trained.trained_on], episodes[trained.validated_on]
  return trained, thresholds.RolloutScores(scoring.episode_scores(trained, first), first.success_J,
                                           scoring.episode_scores(trained, last), last.success_J)


def as_episodes(steps: Steps) -> Episodes:
  """Returns what classifiers read: looks beside the next action."""
  return Episodes(tuple(np.concatenate([look, chunk[:, 0]], axis=1, dtype=np.float32)
                        for look, chunk in zip(steps.looks, steps.chunks)), steps.success_J)


def judge(trained, steps: Steps) -> np.ndarray:
  """Returns float64[J]."""
  return scoring.episode_scores(trained, as_episodes(steps))


def thresholds_of(seen: thresholds.RolloutScores, scores_J: np.ndarray, clean_J: np.ndarray, share: float
                  ) -> dict[str, dict[str, Any]]:
  """Returns what every rule of `thresholds` would keep by a classifier's scores."""
  found = {}
  for rule in thresholds.RULES:
    value = share if rule == "fraction" else None
    border = thresholds.threshold(rule, value=value, scores_J=scores_J, rollouts=(seen,))
    kept_J = thresholds.kept(rule, border, scores_J, value=value)
    found[rule] = {"threshold": border, "kept": int(kept_J.sum()), "of": len(kept_J),
                   "precision": float(clean_J[kept_J].mean()) if kept_J.any() else None}
  return found


def trial(mixture: Mixture, kept: Mapping[str, np.ndarray], *, processes: int) -> dict[str, Steps]:
  """Returns rollouts of a policy for each selection: which of two halves is the better one, only outcomes say."""
  (policies,) = mixture.train(list(kept.values()), [0] * len(kept))
  first = mixture.settings.first_rollout + 1_000
  return rollouts(mixture.settings, dict(zip(kept, policies)), first=first, processes=processes, own_seeds=False)


def rollouts(settings: Settings, policies: Mapping[str, Policy], *, first: int, processes: int, own_seeds: bool = True
             ) -> dict[str, Steps]:
  """Returns each policy's rollouts; with `own_seeds` no two have a layout in common."""
  count = settings.rollouts
  jobs = [(name, first + i + own_seeds * number * count) for number, name in enumerate(policies) for i in range(count)]
  work = functools.partial(_rollout, settings.task, dict(policies))
  found: dict[str, list] = {name: [] for name in policies}
  for name, _, episode in sorted(batch.spread(work, jobs, processes=processes), key=lambda each: each[:2]):
    found[name].append(episode)
  return {name: cloning.as_steps(episodes, TICK_S) for name, episodes in found.items()}


def _rollout(task: str, policies: Mapping[str, Policy], job: tuple[str, int]):
  name, seed = job
  return name, seed, cloning.run(task, policies[name], seed)


def evaluate(settings: Settings, folder: Path, seeds: Sequence[int], *, processes: int) -> int:
  """Returns how many episodes were run: every policy of a mixture on some seeds, those that the log lacks."""
  with files.LineLog(folder / EPISODES) as lines:
    done = {(each["run"], each["seed"]) for each in map(json.loads, files.whole_lines(lines.path))}
    jobs = [(run, seed) for seed in seeds for run in load(folder / POLICIES) if (run, seed) not in done]
    work = functools.partial(_evaluated, settings.task, folder / POLICIES)
    for run, seed, success, decisions in batch.spread(work, jobs, processes=processes) if jobs else ():
      lines.append(json.dumps({"run": run, "seed": seed, "success": success, "decisions": decisions}).encode())
  return len(jobs)


def _evaluated(task: str, file: Path, job: tuple[str, int]) -> tuple[str, int, bool, int]:
  run, seed = job
  success, looks, _ = cloning.run(task, load(file)[run], seed)
  return run, seed, success, len(looks)


def draw(settings: Settings, pool: Sequence[Demonstration], name: str, folder: Path) -> Mixture:
  """Returns a mixture, drawn from a pool of demonstrations."""
  kinds, share = MIXTURES[name]
  if set(kinds) <= set(flaws.FLAWS):
    clean = [each for each in pool if each.flaw == CLEAN][: settings.episodes]
    return Mixture(settings, spoiled(clean, flaws.assigned(len(clean), kinds, share=share)), folder / name)
  chosen = mixtures.mixture([each.flaw for each in pool], share=share, episodes=settings.episodes, kinds=kinds)
  return Mixture(settings, [pool[i] for i in np.flatnonzero(chosen)], folder / name)


def spoiled(clean: Sequence[Demonstration], names: Sequence[str]) -> list[Demonstration]:
  """Returns demonstrations with flaws of recordings, '' for none."""
  std_A = np.concatenate([each.actions_TA for each in clean]).std(axis=0)
  around = flaws.Surroundings(1 / TICK_S, std_A, (), integrates=(0, 1, 2), bias_A=BIAS_A)
  found = []
  for i, (each, name) in enumerate(zip(clean, names)):
    if name:
      recording = flaws.Recording(np.arange(len(each.looks_TF)), each.actions_TA, [""] * len(each.looks_TF))
      made = flaws.FLAWS[name](recording, around, np.random.default_rng([i, 1]))
      each = dataclasses.replace(each, flaw=name, looks_TF=each.looks_TF[made.frames_K],
                                 actions_TA=np.asarray(made.actions_KA, np.float32))
    found.append(each)
  return found


def recorded_flaws(settings: Settings, pool: Sequence[Demonstration]) -> dict[str, dict[str, Any]]:
  """Returns flaw of recordings -> scorer -> AUROC, half of the demonstrations having the flaw.

  A wrong prompt is left out, since policies here read none.
  """
  clean = [each for each in pool if each.flaw == CLEAN][: settings.episodes]
  found: dict[str, dict[str, Any]] = {}
  for flaw in (name for name in flaws.FLAWS if name != "wrong_prompt"):
    mixture = Mixture(settings, spoiled(clean, flaws.assigned(len(clean), [flaw], share=0.5)), Path())
    found[flaw] = {name: dataclasses.asdict(metrics.auroc_estimate(scorers.score(name, mixture.steps), mixture.clean_J))
                   for name, each in SCORERS.items() if not each.rollouts}
  return found


def collect(settings: Settings, file: Path, *, processes: int) -> list[Demonstration]:
  """Returns demonstrations enough for every mixture, recorded where the file lacks them."""
  if file.is_file():
    with np.load(file) as stored:
      return [Demonstration(int(seed), str(flaw), stored[f"looks {i}"], stored[f"actions {i}"])
              for i, (seed, flaw) in enumerate(zip(stored["seeds"], stored["flaws"]))]
  jobs, seed = [], settings.first_demonstration
  for flaw, count in counts(settings).items():
    jobs += [(seed + i, flaw) for i in range(count)]
    seed += count
  found = sorted(batch.spread(functools.partial(demonstrators.record, settings.task), jobs, processes=processes),
                 key=lambda each: each.seed)
  arrays = {f"{name} {i}": value for i, each in enumerate(found)
            for name, value in (("looks", each.looks_TF), ("actions", each.actions_TA))}
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write(file, lambda opened: np.savez_compressed(
    opened, seeds=[each.seed for each in found], flaws=[each.flaw for each in found], **arrays))
  return found


def counts(settings: Settings) -> dict[str, int]:
  """Returns how many demonstrations of each kind the mixtures take at most."""
  found = {CLEAN: settings.episodes}
  for kinds, share in MIXTURES.values():
    for kind in set(kinds) - set(flaws.FLAWS):
      found[kind] = max(found.get(kind, 0), -(-round(share * settings.episodes) // len(kinds)))
  return found


def save(file: Path, policies: Mapping[str, Policy]) -> None:
  """Writes policies as one file."""
  files.write(file, lambda opened: np.savez(opened, **{
    f"{run}|{name}": value for run, policy in policies.items() for name, value in policy.items()}))


@functools.lru_cache(maxsize=4)
def load(file: Path) -> dict[str, Policy]:
  """Returns the policies of a file."""
  if not file.is_file():
    raise Pi0RagError(f"no policies in '{file.parent}': they are trained first")
  found: dict[str, Policy] = {}
  with np.load(file) as stored:
    for key in stored.files:
      run, _, name = key.partition("|")
      found.setdefault(run, {})[name] = stored[key]
  return found
