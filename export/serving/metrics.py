"""Metrics of the server, under TensorFlow Serving's names and in its units, microseconds."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from export.serving.errors import Code

PATH = "/monitoring/prometheus/metrics"

prometheus_client.disable_created_metrics()  # TensorFlow Serving has none
_REGISTRY = CollectorRegistry()
_MICROSECONDS = [10 * 1.8**step for step in range(33)]

# A gauge that only rises: the library calls every Counter "…_total", which this one is not.
_REQUESTS = Gauge(
    ":tensorflow:serving:request_count",
    "The total number of requests.",
    ["model_name", "status"],
    registry=_REGISTRY,
)
_LATENCY = Histogram(
    ":tensorflow:serving:request_latency",
    "Wall time of requests that were answered, in microseconds.",
    ["model_name", "API", "entrypoint"],
    buckets=_MICROSECONDS,
    registry=_REGISTRY,
)
_RUNTIME = Histogram(
    ":tensorflow:serving:runtime_latency",
    "Wall time of TensorFlow's runs, in microseconds.",
    ["model_name", "API", "runtime"],
    buckets=_MICROSECONDS,
    registry=_REGISTRY,
)
_EXAMPLES = Histogram(
    ":tensorflow:serving:request_example_counts",
    "The number of examples or images in a request.",
    ["model"],
    buckets=[2**step for step in range(15)],
    registry=_REGISTRY,
)
_EXAMPLES_TOTAL = Counter(
    ":tensorflow:serving:request_example_count",
    "The total number of examples and images.",
    ["model"],
    registry=_REGISTRY,
)
_QUEUING = Histogram(
    ":tensorflow:serving:batching_session:queuing_latency",
    "How long requests waited for their batch, in microseconds.",
    ["thread_pool_name"],
    buckets=[100 * 1.2**step for step in range(52)],
    registry=_REGISTRY,
)


def answered(model: str, api: str, entrypoint: str, code: Code | None, seconds: float) -> None:
    """Counts a request.

    Args:
        model: its name.
        api: Predict, Classify, ….
        entrypoint: GRPC or REST.
        code: of the error that it was answered with; None if it went well.
        seconds: from its arrival to its answer.
    """
    _REQUESTS.labels(model, "OK" if code is None else code.name).inc()
    if code is None:
        _LATENCY.labels(model, api, entrypoint).observe(1e6 * seconds)


def waited(model: str, rows: int, seconds: float) -> None:
    """Counts a request of so many examples or images that has waited so long for its batch."""
    _QUEUING.labels("batch").observe(1e6 * seconds)
    _EXAMPLES.labels(model).observe(rows)
    _EXAMPLES_TOTAL.labels(model).inc(rows)


def ran(model: str, seconds: float) -> None:
    """Counts a run of a batch."""
    _RUNTIME.labels(model, "Predict", "TF1").observe(1e6 * seconds)


def page() -> bytes:
    """Returns all figures in Prometheus's text format."""
    return prometheus_client.generate_latest(_REGISTRY)
