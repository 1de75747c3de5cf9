"""One mixture of demonstrators: their scores, what each scorer keeps, and policies that are trained on that."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.curation import cloning, demo_score, demonstrators, evaluation
from eval.curation.cloning import Policy
from eval.curation.demonstrators import Demonstration
from pi0rag_jax import files, schema
from pi0rag_jax.curation import flaws, metrics, mixtures, scorers, thresholds
from pi0rag_jax.curation.scorers import SCORERS, Steps
from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.worlds import batch

TICK_S = 0.0125
OWN = ("own_wrong_place", "hesitation", "detour")
# Mixture -> (flaws, share of the flawed). Those of recordings (curation/flaws.py) are put into clean demonstrations.
MIXTURES = {"alike_60": (("wrong_place",), 0.6), "bias_60": (("action_bias",), 0.6), "own_50": (OWN, 0.5),
            "alike_50": (("wrong_place",), 0.5), "alike_20": (("wrong_place",), 0.2)}
BIAS_A = np.array([1.0, -1.0, 1.0, 0.0])  # of the hand alone
ALL, ORACLE, LEAST, TRIED = "all", "oracle", "least_agreement", "tried"
# Scored alone: lengths are matched, and clean demonstrators slower, by construction; novelty prefers what is rare; no
# demonstration has a prompt.
NOT_TRAINED = ("length", "pace", "novelty", "prompt")
COMBINED = ("agreement", "deminf", "outcomes")
SCORED = "scores.json"


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
  """Scores the demonstrations of a mixture and trains on what is kept; a selection added later is trained alone."""
  file, policies = mixture.folder / SCORED, mixture.folder / evaluation.POLICIES
  mixture.folder.mkdir(parents=True, exist_ok=True)
  found = schema.read(file, dict[str, Any]) if file.is_file() else score(mixture, processes=processes)
  keep_best(mixture, found)
  files.write_json(file, found)
  trained = evaluation.load(policies) if policies.is_file() else {}
  names, seeds = dict.fromkeys(found["trained_as"].values()), mixture.settings.training_seeds
  missing = [(name, seed) for name in names for seed in seeds if f"{name} {seed}" not in trained]
  if missing:
    kept = [np.isin(np.arange(len(mixture.demonstrations)), found["kept"][name]) for name, _ in missing]
    (made,) = mixture.train(kept, [seed for _, seed in missing])
    evaluation.save(policies, trained | {
      f"{name} {seed}": policy for (name, seed), policy in zip(missing, made)})


def keep_best(mixture: Mixture, found: dict[str, Any]) -> None:
  """Adds the best demonstrations by every score of which nothing is kept yet; what keeps the same is one training."""
  share = float(mixture.clean_J.mean())
  for name, scores in found["scores"].items():
    if name not in found["kept"] and name not in NOT_TRAINED:
      kept_J = best(np.array(scores), share)
      found["kept"][name] = np.flatnonzero(kept_J).tolist()
      found["precision"][name] = float(mixture.clean_J[kept_J].mean())
  first: dict[tuple[int, ...], str] = {}
  found["trained_as"] = {name: first.setdefault(tuple(each), name) for name, each in found["kept"].items()}


def score(mixture: Mixture, *, processes: int) -> dict[str, Any]:
  """Returns what `scores.json` holds but for `keep_best`: every score, how well it tells, what is kept by other rules.

  Who reads rollouts may say nothing, where they all ended alike: `silent` says why.
  """
  silent: dict[str, str] = {}
  seen = base_rollouts(mixture, processes=processes)
  members = demo_score.members(seen, silent)
  judged = {name: demo_score.judge(trained, mixture.steps) for name, (trained, _) in members.items()}
  found = scored_by_all(mixture, seen, silent) | demo_score.ensembles(judged)
  found["combination"] = scorers.combined([found[name] for name in COMBINED if name in found])
  share = float(mixture.clean_J.mean())
  halves = {"agreement": best(found["agreement"], share), LEAST: best(-found["agreement"], share)}
  wanted = halves | {name: best(found[name], share) for name in (demo_score.NAME,) if name in found}
  tried = trial(mixture, wanted, processes=processes)
  rules: dict[str, dict[str, Any]] = {}
  kept = {ALL: np.ones(len(mixture.clean_J), bool), ORACLE: mixture.clean_J > 0.5, LEAST: halves[LEAST]}
  if demo_score.NAME in found:
    trained, of_rollouts = members[demo_score.SINGLE]
    with demo_score.told(silent, demo_score.UPDATED):
      found[demo_score.UPDATED] = demo_score.updated(trained, seen, tried[demo_score.NAME], mixture.steps)
    rules = demo_score.thresholds_of(of_rollouts, found[demo_score.NAME], mixture.clean_J, share)
    if rules["demo_score"]["kept"]:
      kept[demo_score.ADAPTIVE] = found[demo_score.NAME] >= rules["demo_score"]["threshold"]
  rates = {name: float(each.success_J.mean()) for name, each in (seen | tried).items()}
  return {
    **told_of(mixture, found, kept), "silent": silent, "thresholds": rules,
    "rollout_success": {name: rates[name] for name in seen}, "classifiers": aurocs(judged, mixture.clean_J),
    "tried": {"success": {name: rates[name] for name in tried}, "chosen": max(halves, key=lambda name: rates[name]),
              "episodes": mixture.settings.rollouts}}


def told_of(mixture: Mixture, found: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns scores and selections as JSON has them, with how well they tell clean demonstrations."""
  return {
    "flaws": [each.flaw for each in mixture.demonstrations],
    "lengths": [len(each.actions_TA) for each in mixture.demonstrations],
    "scores": {name: each.tolist() for name, each in found.items()}, "auroc": aurocs(found, mixture.clean_J),
    "precision": {name: float(mixture.clean_J[each].mean()) for name, each in kept.items()},
    "kept": {name: np.flatnonzero(each).tolist() for name, each in kept.items()}}


def aurocs(scores: Mapping[str, np.ndarray], clean_J: np.ndarray) -> dict[str, dict[str, float]]:
  """Returns scorer -> value, low, high and n."""
  return {name: dataclasses.asdict(metrics.auroc_estimate(each, clean_J)) for name, each in scores.items()}


def base_rollouts(mixture: Mixture, *, processes: int) -> dict[str, Steps]:
  """Returns the rollouts of two policies trained on everything, halfway and at the end."""
  everything = np.ones(len(mixture.demonstrations), bool)
  early, late = mixture.train([everything] * 2, [0, 1], keep=(0.5, 1.0))
  policies = {f"{stage}{run}": policy for stage, made in (("early", early), ("late", late))
              for run, policy in enumerate(made)}
  return rollouts(mixture.settings, policies, first=mixture.settings.first_rollout, processes=processes)


def scored_by_all(mixture: Mixture, seen: Mapping[str, Steps], silent: dict[str, str]) -> dict[str, np.ndarray]:
  """Returns the scores of every scorer of the registry but Demo-SCORE's classifier, float64[J]."""
  own, found = {name: seen[name] for name in ("early0", "late0")}, {}
  for name, each in SCORERS.items():
    if name != demo_score.NAME:
      with demo_score.told(silent, name):
        found[name] = scorers.score(name, mixture.steps, own if each.rollouts else None)
  return found


def best(scores_J: np.ndarray, share: float) -> np.ndarray:
  """Returns bool[J], the best share."""
  return thresholds.kept("fraction", np.nan, scores_J, value=share)


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
  return {name: cloning.as_steps(episodes, horizon=settings.horizon, tick_s=TICK_S)
          for name, episodes in found.items()}


def _rollout(task: str, policies: Mapping[str, Policy], job: tuple[str, int]):
  name, seed = job
  return name, seed, cloning.run(task, policies[name], seed)


def draw(settings: Settings, pool: Sequence[Demonstration], name: str, folder: Path) -> Mixture:
  """Returns a mixture, drawn from a pool of demonstrations."""
  kinds, share = MIXTURES[name]
  if set(kinds) <= set(flaws.FLAWS):
    clean = [each for each in pool if each.flaw == CLEAN][: settings.episodes]
    return Mixture(settings, spoiled(clean, flaws.assigned(len(clean), kinds, share=share)), folder / name)
  chosen = mixtures.mixture([each.flaw for each in pool], share=share, episodes=settings.episodes, kinds=kinds)
  return Mixture(settings, [pool[i] for i in np.flatnonzero(chosen).tolist()], folder / name)


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
  arrays: dict[str, Any] = {f"{name} {i}": value for i, each in enumerate(found)
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
