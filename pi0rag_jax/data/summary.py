"""What a data set holds, counted: episodes, frames, texts, outcomes, and how far a plan is fulfilled."""

import collections
from typing import Any

from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.validation import Schema, infer_schema

SHOWN_REASONS = 3


def summarize(dataset: Dataset, schema: Schema | None) -> dict[str, Any]:
  """Returns the summary as what JSON can hold; reads every episode's numbers, and pictures of one frame.

  Args:
    dataset: damaged episodes count as such where it skips them.
    schema: with a plan of categories, or None.
  """
  prompts, successes, categories = collections.Counter(), collections.Counter(), collections.Counter()
  lengths, rates, failures = [], [], collections.Counter()
  for episode, data in dataset.iterate():
    lengths.append(len(data))
    rates.append(dataset.episode_fps(episode))
    prompts.update(set(data.prompts))
    if "success" in data.metadata:
      successes["success" if data.metadata["success"] else "failure"] += 1
    if "category" in data.metadata:
      categories[str(data.metadata["category"])] += 1
    if failure := data.metadata.get("failure"):
      failures[str(failure)] += 1
  sizes = infer_schema(dataset).cameras if lengths else {}
  found = {
    "path": str(dataset.path),
    "format": dataset.format,
    "episodes": len(lengths),
    "damaged": len(dataset.damaged),
    "reasons": list(dataset.damaged.values())[:SHOWN_REASONS],
    "frames": sum(lengths),
    "hours": round(sum(length / rate for length, rate in zip(lengths, rates)) / 3600, 3),
    "fps": dataset.fps if len(set(rates)) < 2 else sorted(set(rates)),
    "frames_per_episode": {"min": min(lengths), "mean": round(sum(lengths) / len(lengths), 1), "max": max(lengths)}
    if lengths else {},
    "cameras": {name: f"{height}x{width}" for name, (height, width) in sizes.items()},
    "state_dim": dataset.state_dim if lengths else None,
    "action_dim": dataset.action_dim if lengths else None,
    "episodes_by_prompt": dict(prompts.most_common()),
    "episodes_by_outcome": dict(successes),
    "episodes_by_failure": dict(failures),
    "episodes_by_category": dict(categories),
  }
  if schema is not None and schema.planned_episodes:
    planned = schema.planned()
    found["planned_by_category"] = planned
    found["missing_by_category"] = {name: max(0, n - categories[name]) for name, n in planned.items()}
  return found
