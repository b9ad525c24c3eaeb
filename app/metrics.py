"""All Prometheus metrics of the service, in one registry per application.

Engine and HTTP layer receive a `Metrics` and set its fields; nothing here knows them. Names follow
the Prometheus naming guide: prefix, base unit, `_total` for counters. Labels are bounded sets:
route templates, methods, status codes, the bundle's name, finish reasons and flags, never user
data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class TokenHistogram(Collector):
    """A histogram without labels that takes the values of a whole step at once.

    With the library's own, a call for each token of a large batch took a fifth of the engine's
    Python.
    """

    def __init__(
        self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._bounds = name, documentation, list(buckets)
        self._counts, self._sum = [0] * (len(buckets) + 1), 0.0
        self._lock = Lock()
        registry.register(self)

    def observe(self, values: Sequence[float]) -> None:
        with self._lock:
            for value in values:
                self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += sum(values)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        with self._lock:
            counts, total = accumulate(self._counts), self._sum
            ends = [*map(floatToGoString, self._bounds), "+Inf"]
            buckets = list(zip(ends, map(float, counts), strict=True))
        yield HistogramMetricFamily(
            self._name, self._documentation, buckets=buckets, sum_value=total
        )


class SharedGauge:
    """A gauge of what several engines have together; each sets its own part, at every step.

    They are summed when they are asked for.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._parts: dict[object, float] = {}
        gauge.set_function(lambda: sum(tuple(self._parts.values())))

    def set(self, owner: object, value: float) -> None:
        self._parts[owner] = value

    def drop(self, owner: object) -> None:
        self._parts.pop(owner, None)


class Metrics:
    """The service's instruments; `render` gives the text exposition format."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of the text
        self.registry = r = CollectorRegistry()
        # HTTP
        self.requests = Counter(
            "gpt2mt_http_requests",
            "Requests answered (499: the client went first).",
            ["endpoint", "method", "status"],
            registry=r,
        )
        self.request_duration = Histogram(
            "gpt2mt_http_request_duration_seconds",
            "From the first byte in to the last byte out.",
            ["endpoint"],
            buckets=_SLOW,
            registry=r,
        )
        self.requests_in_flight = Gauge(
            "gpt2mt_http_requests_in_flight", "Requests being answered now.", registry=r
        )
        self.request_errors = Counter(
            "gpt2mt_request_errors",
            "Errors told to callers, in an answer or at the end of a stream, by their code.",
            ["endpoint", "code"],
            registry=r,
        )
        self.ready = Gauge("gpt2mt_ready", "1 while requests are taken.", registry=r)
        self.live = Gauge("gpt2mt_live", "0 once the engine has died.", registry=r)
        # Engine
        self.shared: list[SharedGauge] = []
        self.queue_depth = self._shared("queue_depth", "Sequences waiting for a slot.")
        self.queue_limit = self._shared(
            "queue_limit", "Waiting sequences before requests are refused."
        )
        self.active_slots = self._shared("active_slots", "KV slots in use.")
        self.slots = self._shared("slots", "KV slots there are.")
        self.cache_bytes = Gauge(
            "gpt2mt_kv_cache_bytes", "Memory of the KV cache, used or not.", registry=r
        )
        self.cache_tokens = self._shared("kv_cache_tokens", "Tokens of the sequences in slots.")
        self.cache_tokens_limit = self._shared(
            "kv_cache_tokens_limit", "Tokens that all slots have room for."
        )
        self.reloads = Counter(
            "gpt2mt_reloads", "Reloads of the bundles, by what came of it.", ["result"], registry=r
        )
        self.batch_size = Histogram(
            "gpt2mt_decode_batch_size", "Rows of a decode run.", buckets=_SIZES, registry=r
        )
        self.prefill_tokens = Histogram(
            "gpt2mt_prefill_run_tokens",
            "Prompt tokens of a prefill run.",
            buckets=_TOKENS,
            registry=r,
        )
        self.prompt_tokens = Counter("gpt2mt_prompt_tokens", "Prompt tokens read.", registry=r)
        self.generated_tokens = Counter("gpt2mt_generated_tokens", "Tokens generated.", registry=r)
        self.sequences = Counter(
            "gpt2mt_sequences", "Sequences finished.", ["finish_reason"], registry=r
        )
        self.queue_time = Histogram(
            "gpt2mt_queue_time_seconds", "From submission to prefill.", buckets=_FAST, registry=r
        )
        self.time_to_first_token = Histogram(
            "gpt2mt_time_to_first_token_seconds",
            "From submission to the first token.",
            buckets=_FAST,
            registry=r,
        )
        self.inter_token_latency = TokenHistogram(
            "gpt2mt_inter_token_latency_seconds", "Between two tokens of one sequence.", _FAST, r
        )
        self.preemptions = Counter(
            "gpt2mt_preemptions",
            "Batch sequences that gave way to interactive ones.",
            registry=r,
        )
        self.cache_lookups = Counter(
            "gpt2mt_cache_lookups",
            "Answers and prompts that were looked for among those kept.",
            ["cache", "result"],
            registry=r,
        )
        # Translation
        self.translated_sentences = Counter(
            "gpt2mt_translated_sentences",
            "Sentences translated, by how what was taken was made.",
            ["method"],
            registry=r,
        )
        self.flagged_sentences = Counter(
            "gpt2mt_flagged_sentences",
            "Sentences whose translation still had the flag when it was told.",
            ["flag"],
            registry=r,
        )
        self.retried_sentences = Counter(
            "gpt2mt_retried_sentences",
            "Sentences tried again, by what that brought.",
            ["result"],
            registry=r,
        )
        self.documents = Counter(
            "gpt2mt_documents",
            "Documents, by how their translation ended.",
            ["format", "outcome"],
            registry=r,
        )
        self.run_failures = Counter(
            "gpt2mt_run_failures", "Model runs that raised.", ["phase"], registry=r
        )
        self.info = Gauge(
            "gpt2mt_model_info", "1, labelled with the bundle.", ["model", "precision"], registry=r
        )
        self.build_info = Gauge(
            "gpt2mt_build_info",
            "1, labelled with the versions of the server and of Python.",
            ["version", "python"],
            registry=r,
        )
        ProcessCollector(registry=r)  # memory, CPU time, open files, start

    def _shared(self, name: str, documentation: str) -> SharedGauge:
        gauge = SharedGauge(Gauge(f"gpt2mt_{name}", documentation, registry=self.registry))
        self.shared.append(gauge)
        return gauge

    def render(self) -> bytes:
        return generate_latest(self.registry)
