"""What a server counts, for Prometheus. No text is in it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The metrics of one application.

    Args:
        waiting: Tells the number of requests that run or wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("path", "status")
        self._requests = Counter("e2rank_requests", "Requests that were answered.", labels, registry=registry)
        self._latency = Histogram(
            "e2rank_request_seconds", "Time to answer.", ("path",), buckets=SECONDS, registry=registry
        )
        self._batch_requests = Histogram(
            "e2rank_batch_requests", "Requests that share a forward pass.", buckets=COUNTS, registry=registry
        )
        self._batch_sequences = Histogram(
            "e2rank_batch_sequences", "Sequences of a forward pass.", buckets=COUNTS, registry=registry
        )
        self._tokens = Counter("e2rank_tokens", "Tokens that were computed.", registry=registry)
        Gauge("e2rank_waiting_requests", "Requests that run or wait.", registry=registry).set_function(waiting)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def computed(self, requests: int, sequences: int, tokens: int) -> None:
        """Count a forward pass."""
        self._batch_requests.observe(requests)
        self._batch_sequences.observe(sequences)
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        """The metrics in Prometheus' form."""
        return generate_latest(self._registry)
