"""What a policy server counts, for Prometheus: `GET /metrics`, in its text format.

Clients' counts are those of this process since its start; a fleet's are summed by whoever scrapes all of its servers.
"""

import http
from collections.abc import Iterator, Mapping
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.serving import messages
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.steering.agent import Agent

try:
  import prometheus_client as prometheus
  from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
  from prometheus_client.registry import Collector
  from websockets.asyncio.server import Request, Response
  from websockets.datastructures import Headers
except ImportError as error:
  raise Pi0RagError(f"metrics need prometheus-client and websockets: {messages.EXTRA}") from error

PATH = "/metrics"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
NEIGHBOURS = (0, 1, 2, 4, 8, 16, 32, 64)
_SERVER = "server"  # the stage that all others are part of
_NO_TIME = "infer_ms"  # of a policy's timing, whose stages are told one by one


class Metrics:
  """Counts what a server answers, and says so to those whom its admission knows.

  Args:
    agent: whose memory is told of, if it has one.
    admission: a scraper sends its token as `Authorization: Api-Key TOKEN`, which Prometheus calls `authorization` with
      `type: Api-Key`.
  """

  def __init__(self, agent: Agent, admission: Admission):
    self._admission, self._registry = admission, prometheus.CollectorRegistry()
    options: dict[str, Any] = {"registry": self._registry, "namespace": "pi0rag"}
    self._decisions = prometheus.Counter("decisions", "Decisions made for robots.", **options)
    self._neighbours = prometheus.Histogram(
      "neighbours_used", "Records of the memory that had a say in a decision.", buckets=NEIGHBOURS, **options)
    self._asks = prometheus.Counter("asks", "Decisions at which a person was asked to look.", **options)
    self._seconds = prometheus.Histogram(
      "decision_seconds", "How long a decision took, by stage; 'server' is all of it.", ("stage",), buckets=SECONDS,
      **options)
    self._episodes = prometheus.Counter("episodes", "Episodes that ended and were learned from.", **options)
    self._failed = prometheus.Counter("failed_requests", "Requests that were answered with an error.", **options)
    self._stages: dict[str, prometheus.Histogram] = {}
    self._registry.register(_Memory(agent))

  def answered(self, values: Mapping, seconds: float) -> None:
    """Counts an answer to a client.

    Args:
      values: as `Agent.infer` and `TeachingSession.infer` return them.
      seconds: from the message to the answer.
    """
    episode = values.get("episode") or {}
    if "records" in episode and not episode.get("again"):
      self._episodes.inc()
    if "actions" not in values:
      return
    self._decisions.inc()
    if "neighbours_used" in values:
      self._neighbours.observe(values["neighbours_used"])
    if episode.get("asks"):
      self._asks.inc()
    self._took(_SERVER, seconds)
    for name, ms in values.get("policy_timing", {}).items():
      if name != _NO_TIME:
        self._took(name.removesuffix("_ms"), ms / 1000)

  def failed(self) -> None:
    """Counts a request that is answered with an error."""
    self._failed.inc()

  @staticmethod
  def concerns(request: Request) -> bool:
    """Returns whether a request is for these numbers."""
    return request.path.split("?")[0] == PATH

  async def answer(self, request: Request) -> Response:
    """Returns all numbers, or why a scraper is refused."""
    refusal = self._admission.refusal(request)
    if refusal is not None:
      status, text = refusal
      return _response(status, "text/plain; charset=utf-8", text.encode())
    return _response(http.HTTPStatus.OK, prometheus.CONTENT_TYPE_LATEST, prometheus.generate_latest(self._registry))

  def _took(self, stage: str, seconds: float) -> None:
    if stage not in self._stages:
      self._stages[stage] = self._seconds.labels(stage)
    self._stages[stage].observe(seconds)


class _Memory(Collector):
  """Reads what a memory says of itself whenever somebody scrapes."""

  def __init__(self, agent: Agent):
    self._agent = agent

  def collect(self) -> Iterator[Metric]:
    """Yields the numbers of the agent's memory; none without one."""
    memory = self._agent.memory
    if memory is None:
      return
    yield CounterMetricFamily("pi0rag_missed_deadlines", "Decisions that went without a search that took too long.",
                              value=self._agent.deadline_misses)
    records = GaugeMetricFamily("pi0rag_memory_records", "Records by kind.", labels=["kind"])
    for kind, count in memory.counts().items():
      records.add_metric([kind], count)
    yield records
    yield from _numbers(memory)


def _numbers(memory: Memory) -> Iterator[Metric]:
  yield GaugeMetricFamily("pi0rag_memory_episodes", "Episodes whose outcome the memory counted.", value=memory.episodes)
  yield GaugeMetricFamily("pi0rag_memory_successes", "How many of them succeeded.", value=memory.successes)
  state = memory.following()
  if "version" in state:
    yield GaugeMetricFamily("pi0rag_memory_version", "Commits of the memory's server that are known here.",
                            value=state["version"])
  if "connected" in state:
    yield GaugeMetricFamily("pi0rag_memory_connected", "Whether the memory's server is in reach.",
                            value=float(state["connected"]))
    yield GaugeMetricFamily("pi0rag_memory_lag_seconds", "How late the last change arrived here.",
                            value=state["lag_ms"] / 1000)


def _response(status: http.HTTPStatus, kind: str, body: bytes) -> Response:
  headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"})
  return Response(status.value, status.phrase, headers, body)
