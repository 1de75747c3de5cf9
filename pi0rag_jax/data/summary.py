"""What a data set holds, counted: episodes, frames, texts, outcomes, and how far a plan is fulfilled."""

import collections
from typing import Any

from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.validation import Schema, infer_schema


def summarize(dataset: Dataset, schema: Schema | None) -> dict[str, Any]:
  """Returns the summary as what JSON can hold; reads every episode's numbers, and pictures of one frame.

  Args:
    dataset: damaged episodes count as such where it skips them.
    schema: with a plan of categories, or None.
  """
  prompts, successes, categories = collections.Counter(), collections.Counter(), collections.Counter()
  lengths = []
  for _, data in dataset.iterate():
    lengths.append(len(data))
    prompts.update(set(data.prompts))
    if "success" in data.metadata:
      successes["success" if data.metadata["success"] else "failure"] += 1
    if "category" in data.metadata:
      categories[str(data.metadata["category"])] += 1
  sizes = infer_schema(dataset).cameras if lengths else {}
  found = {
    "path": str(dataset.path),
    "format": dataset.format,
    "episodes": len(lengths),
    "damaged": len(dataset.damaged),
    "frames": sum(lengths),
    "hours": round(sum(lengths) / dataset.fps / 3600, 3),
    "fps": dataset.fps,
    "frames_per_episode": {"min": min(lengths), "mean": round(sum(lengths) / len(lengths), 1), "max": max(lengths)}
    if lengths else {},
    "cameras": {name: f"{height}x{width}" for name, (height, width) in sizes.items()},
    "state_dim": dataset.state_dim if lengths else None,
    "action_dim": dataset.action_dim if lengths else None,
    "episodes_by_prompt": dict(prompts.most_common()),
    "episodes_by_outcome": dict(successes),
    "episodes_by_category": dict(categories),
  }
  if schema is not None and schema.planned_episodes:
    planned = schema.planned()
    found["planned_by_category"] = planned
    found["missing_by_category"] = {name: max(0, n - categories[name]) for name, n in planned.items()}
  return found
