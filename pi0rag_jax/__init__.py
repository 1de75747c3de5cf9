"""Robot policies that learn from their failures while they work: openpi's pi0 in JAX, with a memory beside it.

    from pi0rag_jax import Agent, Memory, load

    policy = load("panda_tasks")
    with Memory.open("memory", **policy.memory_header()) as memory:
      chunk_TA = Agent(policy, memory).infer(observation)["actions"]
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from pi0rag_jax.data.cache import build_cache
  from pi0rag_jax.data.dataset import Fields
  from pi0rag_jax.data.formats import open_dataset
  from pi0rag_jax.data.loader import Loader
  from pi0rag_jax.data.recorder import EpisodeWriter
  from pi0rag_jax.data.running_stats import compute_norm_stats
  from pi0rag_jax.data.sampling import Mixture, Sampler, Source
  from pi0rag_jax.data.validation import Schema
  from pi0rag_jax.errors import Pi0RagError
  from pi0rag_jax.memory.memory import Memory
  from pi0rag_jax.memory.record import Record
  from pi0rag_jax.policy.directory import load
  from pi0rag_jax.robots.robot import ActionSpace, Robot
  from pi0rag_jax.serving.chunk_broker import ActionChunkBroker, RealTimeChunkBroker
  from pi0rag_jax.serving.client import TeachingClient, WebsocketClientPolicy
  from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer
  from pi0rag_jax.steering.agent import Agent, Decision

# Where each name lives; a name is imported when it is asked for, since some need extras, and some all of jax.
_HOMES = {
  "ActionChunkBroker": "serving.chunk_broker", "ActionSpace": "robots.robot", "Agent": "steering.agent",
  "Decision": "steering.agent", "EpisodeWriter": "data.recorder", "Fields": "data.dataset", "Loader": "data.loader",
  "Memory": "memory.memory", "Mixture": "data.sampling", "Pi0RagError": "errors",
  "RealTimeChunkBroker": "serving.chunk_broker", "Record": "memory.record", "Robot": "robots.robot",
  "Sampler": "data.sampling", "Schema": "data.validation", "Source": "data.sampling",
  "TeachingClient": "serving.client", "WebsocketClientPolicy": "serving.client",
  "WebsocketPolicyServer": "serving.websocket_server",
  "build_cache": "data.cache", "compute_norm_stats": "data.running_stats", "load": "policy.directory",
  "open_dataset": "data.formats"}

__all__ = [
  "ActionChunkBroker", "ActionSpace", "Agent", "Decision", "EpisodeWriter", "Fields", "Loader", "Memory", "Mixture",
  "Pi0RagError", "RealTimeChunkBroker", "Record", "Robot", "Sampler", "Schema", "Source", "TeachingClient",
  "WebsocketClientPolicy", "WebsocketPolicyServer",
  "build_cache", "compute_norm_stats", "load", "open_dataset"]


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module 'pi0rag_jax' has no attribute '{name}'")
  return getattr(importlib.import_module(f"pi0rag_jax.{_HOMES[name]}"), name)


def __dir__():
  return __all__
