"""Checks the promise of `learning/trust.py` and its price: `python -m eval.guarantee --out=FILE.json`.

Streams of made-up episodes, of every kind that might be hard on it, are played by the same account that a sweep's
streams keep. With `--sweep=DIR` their episodes are drawn from the pairs that a sweep has recorded: what the policy did
without memory and with it on the same seed, in each place.
"""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from eval import provenance
from eval.records import read_records
from pi0rag_jax import cli, files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.trust import Trust, TrustConfig
from pi0rag_jax.statistics import bounds, wilson
from pi0rag_jax.worlds.episode import Job

COMMAND = "eval.guarantee"
SPACING = 10**6  # of the seeds of two streams
ALONE, MEMORY = ("base_z0", "base"), "memory"


@dataclasses.dataclass(frozen=True)
class Episodes:
  """What would come of the episodes of a stream, or of several that share an account."""

  pairs_N2: np.ndarray  # bool: whether each succeeds without the memory, and with what it is by then
  stream_N: np.ndarray  # int, which it belongs to


Draw = Callable[[int, np.random.Generator], Episodes]  # of so many episodes, each stream


# Of what has passed of a stream, in [0, 1): float[N] to float[N].
Rate = float | Callable[[np.ndarray], np.ndarray]


def made_up(base: Rate, broken: Rate, mended: Rate) -> Draw:
  """Returns episodes of given rates.

  Args:
    base: rate of success of the policy alone.
    broken: of what it finishes alone, what fails with the memory.
    mended: of what it does not, what succeeds.
  """
  def draw(episodes: int, rng: np.random.Generator) -> Episodes:
    passed_N = np.arange(episodes) / episodes
    base_N, broken_N, mended_N = (rate(passed_N) if callable(rate) else np.full(episodes, rate)
                                  for rate in (base, broken, mended))
    alone_N = rng.random(episodes) < base_N
    changed_N = rng.random(episodes) < np.where(alone_N, broken_N, mended_N)
    return Episodes(np.stack([alone_N, alone_N ^ changed_N], axis=1), np.zeros(episodes, int))

  return draw


def recorded(places: Sequence[np.ndarray], *, mixed: bool = False) -> Draw:
  """Returns episodes that are drawn with replacement from the pairs of each place; several share an account.

  Args:
    places: bool[N, 2] of each.
    mixed: places take turns at random, as the robots of a fleet do; else one comes after the other, in a random order.
  """
  def draw(episodes: int, rng: np.random.Generator) -> Episodes:
    stream_N = np.repeat(rng.permutation(len(places)), episodes)
    if mixed:
      rng.shuffle(stream_N)
    drawn = [places[stream][rng.integers(len(places[stream]))] for stream in stream_N.tolist()]
    return Episodes(np.array(drawn), stream_N)

  return draw


SCENARIOS: Mapping[str, Draw] = {
  "breaks nothing": made_up(0.7, 0.0, 0.7),
  "breaks 1 %": made_up(0.7, 0.01, 0.7),
  "breaks 2 %": made_up(0.7, 0.02, 0.7),
  "breaks 4.3 %, as ours over 14 places": made_up(0.645, 0.043, 0.78),
  "breaks 10 %, as ours in stacking": made_up(0.65, 0.10, 0.75),
  "does nothing but harm": made_up(0.7, 0.3, 0.0),
  "breaks all": made_up(0.7, 1.0, 0.0),
  "learns: breaks 12 % at first, then 1 %": made_up(
    0.7, lambda t: 0.01 + 0.11 * np.exp(-5 * t), lambda t: 0.8 - 0.6 * np.exp(-5 * t)),
  "stale: the trouble goes half way": made_up(lambda t: 0.6 + 0.38 * (t > 0.5), lambda t: 0.01 + 0.09 * (t > 0.5), 0.7),
  "ambush: breaks all after half": made_up(0.7, lambda t: 1.0 * (t > 0.5), 0.7),
  "ambush, and the policy alone is lost": made_up(lambda t: 0.8 - 0.5 * (t > 0.25), lambda t: 1.0 * (t > 0.7), 0.9),
  "a weak policy": made_up(0.25, 0.05, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Stream:
  """How a stream went, by episode; bool[N] each."""

  worked_N: np.ndarray  # alone, whether it was tried or not
  spoke_N: np.ndarray
  succeeded_N: np.ndarray
  repeated_N: np.ndarray

  @property
  def broken_N(self) -> np.ndarray:
    """What worked and was broken."""
    return self.spoke_N & self.worked_N & ~self.succeeded_N

  def kept(self, config: TrustConfig) -> bool:
    """Returns whether the promise held after every episode."""
    allowed_N = config.broken_max * np.cumsum(self.worked_N) + config.forgiven
    return bool((np.cumsum(self.broken_N) <= allowed_N + 1e-9).all())


def play(episodes: Episodes, first_seed: int, config: TrustConfig) -> Stream:
  """Returns how a stream goes whose account decides when the memory speaks."""
  trust, rows = Trust(config), []
  for seed, (alone, steered) in enumerate(episodes.pairs_N2.tolist(), first_seed):
    stream = str(episodes.stream_N[seed - first_seed])
    spoke = trust.launch(Job(seed, 0), stream).trust > 0
    repeated = config.promises and spoke and (not steered or config.drawn(seed))
    succeeded = steered if spoke else alone
    trust.observe(seed, had_a_say=spoke, success=succeeded, alone=alone if repeated else None, stream=stream)
    rows.append((alone, spoke, succeeded, repeated))
  return Stream(*np.array(rows, bool).T)


def measure(draw: Draw, config: TrustConfig, *, streams: int, episodes: int, seed: int, promise: TrustConfig
            ) -> dict[str, Any]:
  """Returns how often the promise was kept, and its price.

  Args:
    config: of the account.
    promise: which is checked, that of an account or not.
  """
  played = [play(draw(episodes, np.random.default_rng([seed, stream])), stream * SPACING, config)
            for stream in range(streams)]
  kept = wilson(sum(stream.kept(promise) for stream in played), streams)
  worked, spoke, succeeded, repeated, broken = (
    np.stack([getattr(stream, name) for stream in played])
    for name in ("worked_N", "spoke_N", "succeeded_N", "repeated_N", "broken_N"))
  failures = (~worked).sum()
  first = [int(spoke_N.argmax()) for spoke_N in spoke if spoke_N.any()]
  return {
    "promise_kept": kept.value, "promise_kept_interval_95": bounds(kept),
    "broken": _share(broken.sum(), worked.sum()),
    "broken_worst_stream": max(_share(stream.broken_N.sum(), stream.worked_N.sum()) for stream in played),
    "success_alone": float(worked.mean()), "success": float(succeeded.mean()),
    "failures_removed": _share(succeeded.sum() - worked.sum(), failures),
    "without_memory": float(1 - spoke.mean()), "first_say_median": float(np.median(first)) if first else None,
    "streams_without_a_say": streams - len(first), "repetitions_per_episode": float(repeated.mean()),
  }


def _share(count, of) -> float:
  return float(count / max(of, 1))


def pairs(folder: pathlib.Path, after: int) -> dict[str, np.ndarray]:
  """Returns bool[N, 2] of each place in a sweep: success without and with the memory after so many episodes, by seed.

  Errors: Pi0RagError where the sweep has none.
  """
  log = next((path for name in ("records.jsonl", "records.jsonl.gz") if (path := folder / name).exists()), None)
  if log is None:
    raise Pi0RagError(f"--sweep={folder} has no records.jsonl (or .gz): it is no sweep's results")
  ended: dict[tuple, dict[int, bool]] = {}
  for r in read_records(log):
    own = r.stream == f"{r.task}/{r.condition}" if r.stream else True
    if r.phase == "eval" and not r.crashed and own and not r.came_from and r.stream_episodes in (0, after):
      ended.setdefault((f"{r.task}/{r.condition}", r.policy), {})[r.seed] = r.policy_succeeded
  found = {}
  for place in sorted({place for place, policy in ended if policy == MEMORY}):
    alone = next((ended[place, name] for name in ALONE if (place, name) in ended), {})
    seeds = sorted(alone.keys() & ended[place, MEMORY].keys())
    if seeds:
      found[place] = np.array([(alone[seed], ended[place, MEMORY][seed]) for seed in seeds])
  if not found:
    raise Pi0RagError(f"--sweep={folder} has no place with '{MEMORY}' after {after} episodes beside "
                      f"{' or '.join(ALONE)}")
  return found


def run(*, broken_max: float, confidence: float, share: float, forgiven: int, streams: int, episodes: int, seed: int,
        sweep: Sequence[str], after: int) -> dict[str, Any]:
  """Returns the report; the arguments are the command's flags."""
  settings = dict(locals())
  promise = TrustConfig(broken_max=broken_max, share=1.0, confidence=confidence)
  accounts = {"none": TrustConfig(), "all repeated": promise,
              f"{share:g} of the successes repeated": dataclasses.replace(promise, share=share),
              f"{share:g} repeated, {forgiven} forgiven": dataclasses.replace(promise, share=share, forgiven=forgiven)}
  draws = {name: (draw, streams) for name, draw in SCENARIOS.items()}
  for folder in map(pathlib.Path, sweep):
    found = pairs(folder, after)
    draws |= {f"recorded: {place}": (recorded([found[place]]), streams) for place in found}
    if len(found) > 1:  # of as many episodes in all
      each = max(streams // len(found), 1)
      draws |= {f"all {len(found)} places, {'in turns' if mixed else 'one by one'}, of {folder.name}": (
        recorded([*found.values()], mixed=mixed), each) for mixed in (False, True)}
  rows = []
  for name, (draw, count) in draws.items():
    for account, config in accounts.items():
      checked = config if config.promises else promise
      rows.append({"scenario": name, "account": account, "streams": count, **measure(
        draw, config, streams=count, episodes=episodes, seed=seed, promise=checked)})
      print(_line(rows[-1]), flush=True)
  return {"rows": rows, "recorded": _means([row for row in rows if row["scenario"].startswith("recorded")]),
          "accounts": {name: dataclasses.asdict(config) for name, config in accounts.items()},
          "provenance": provenance.provenance(settings)}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Returns the means over places for each account."""
  names = ("success_alone", "success", "without_memory", "repetitions_per_episode")
  found = {}
  for account in dict.fromkeys(row["account"] for row in rows):
    same = [row for row in rows if row["account"] == account]
    worked = sum(row["success_alone"] for row in same)
    found[account] = {name: float(np.mean([row[name] for row in same])) for name in names} | {
      "broken": sum(row["broken"] * row["success_alone"] for row in same) / worked,
      "failures_removed": sum(row["success"] - row["success_alone"] for row in same) / (len(same) - worked),
      "places": len(same)}
  return found


def _line(row: Mapping[str, Any]) -> str:
  return (f"{row['scenario'][:42]:42} {row['account'][:30]:30} kept {100 * row['promise_kept']:5.1f} %  broken "
          f"{100 * row['broken']:5.2f} %  success {100 * row['success_alone']:5.1f} -> {100 * row['success']:5.1f} %  "
          f"silent {100 * row['without_memory']:5.1f} %  repeated {100 * row['repetitions_per_episode']:4.1f} %")


def main(_) -> None:
  """Writes the report as JSON."""
  with cli.user_errors(COMMAND):
    settings: dict[str, Any] = {name: flags.FLAGS[name].value for name in inspect.signature(run).parameters}
    files.write_json(pathlib.Path(flags.FLAGS.out), run(**settings))


if __name__ == "__main__":
  flags.DEFINE_float("broken_max", 0.02, "Share of what the policy alone finishes that may be broken.")
  flags.DEFINE_float("confidence", 0.95, "With which that is promised.")
  flags.DEFINE_float("share", 0.2, "Of the successes with a say of the memory that are repeated without it.")
  flags.DEFINE_integer("forgiven", 3, "Broken episodes besides, in the last account.")
  flags.DEFINE_integer("streams", 300, "Of each kind; of all places together, of which each has its episodes, fewer.")
  flags.DEFINE_integer("episodes", 500, "Of each stream.")
  flags.DEFINE_integer("seed", 0, "Of all draws.")
  flags.DEFINE_multi_string("sweep", [], "Folder of a sweep's results; may be given several times.")
  flags.DEFINE_integer("after", 500, "Episodes that had taught the sweep's memories.")
  flags.DEFINE_string("out", None, "JSON file of the results.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
