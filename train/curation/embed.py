"""The stage of curation that computes embeddings."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pi0rag_jax import crew, files, schema
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Config
from train import metrics
from train.curation.sources import Source, Sources
from train.peak_memory import PeakMemory

EMBED_NAME = "embed.json"


class Embedder:
  """Embeds the frames of data sets; policies stay loaded."""

  def __init__(self, config: Config, workdir: Path):
    self._sources = Sources(config, workdir)

  def __call__(self, job: tuple[str, str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields what the embeddings took, of (policy, data set, what an earlier run says)."""
    policy, name, before = job
    yield embed_source(self._sources, self._sources.all[name], policy, name, before)

  def close(self) -> None:
    """Leaves nothing behind: what is computed is on disk."""


def embed(config: Config, workdir: Path, machines: Machines = HERE) -> None:
  """Computes the embeddings that some classifier reads, and writes down what that took."""
  wanted, file = policies_read(config), workdir / EMBED_NAME
  before = schema.read(file, dict[str, dict[str, Any]]) if file.is_file() else {}
  names = list(Sources(config, workdir).all)
  jobs = {f"{policy or 'last'}: {name}": (policy, name) for policy in wanted for name in names}
  report: dict[str, Any] = {}
  make = functools.partial(Embedder, config, workdir)
  with crew.crew(make, machines, shared=workdir, note=metrics.log.info) as hands:
    for number, (key, (policy, name)) in enumerate(jobs.items()):
      job = policy, name, before.get(key, {})
      hands.give(key, lambda job=job: job, name=f"embeddings, {key}", rank=(number,), likes=policy)
    for key, _, result in hands.results():
      if result is not crew.OVER:
        report[key] = result
        files.write_json(file, {**before, **report})
  files.write_json(file, {key: report[key] for key in jobs})


def policies_read(config: Config) -> list[str]:
  """Returns whose embeddings scorers read; all of them are among `embed.policies`."""
  scorers = [*config.classifiers.values(), *config.scorers.values()]
  used = {member.policy for member in scorers if EMBEDDINGS in member.inputs}
  if left_out := sorted(used - set(config.embed.policies)):
    raise Pi0RagError(f"scorers read embeddings of {', '.join(map(repr, left_out))}, embed.policies has "
                      f"{', '.join(map(repr, config.embed.policies))}: name them there")
  return [policy for policy in config.embed.policies if policy in used]


def embed_source(sources: Sources, source: Source, policy: str, name: str, before: dict[str, Any]) -> dict[str, Any]:
  """Returns what the embeddings of a data set took the last time that any were computed, and how many were there now.

  Args:
    sources: of the curation.
    source: one of them.
    policy: that embeds.
    name: of the data set.
    before: what an earlier run returned; what it took counts on if its embeddings are the same ones.
  """
  memory = PeakMemory()
  found = sources.embed(source, policy, progress=lambda done, rows: metrics.log.info(
    "%s: %d of %d frames embedded", name, done, rows))
  cache = found.cache.directory.name
  there = {"frames": len(found.cache), "cached": len(found.cache) - found.computed}
  if not found.computed:
    return (before if before.get("cache") == cache else {"cache": cache}) | there
  growth_mb = memory.growth_mb()
  return {"cache": cache, "computed": found.computed, "seconds": round(found.seconds, 2),
          "frames_per_s": round(found.frames_per_s, 1),
          "peak_growth_mb": None if growth_mb is None else round(growth_mb), **there}
