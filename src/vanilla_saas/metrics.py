"""What `/metrics` tells: one object a metric. No label names a tenant, a user, a key or a model of theirs.

Several server processes under one command share a folder of counts, so that a scrape of any of them tells of all
(`share_counts`).
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

SHARED = "PROMETHEUS_MULTIPROC_DIR"
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds, for what the database answers."""
SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Seconds, for what a model answers."""
Metric = Counter | Gauge | Histogram

HTTP_REQUESTS = Histogram(
    "vanilla_saas_http_request_seconds",
    "Requests until their answer was sent, by method, route template and status.",
    ("method", "route", "status"),
    buckets=FAST,
)
MODEL_CALLS = Counter(
    "vanilla_saas_model_calls",
    "Admitted calls by kind of provider and how they ended: succeeded, failed, cancelled.",
    ("provider", "status"),
)
MODEL_CALL_SECONDS = Histogram(
    "vanilla_saas_model_call_seconds",
    "Admitted calls from their admission to the end of the answer.",
    ("provider",),
    buckets=SLOW,
)
MODEL_TOKENS = Counter(
    "vanilla_saas_model_tokens",
    "Tokens that providers reported or we estimated, by kind: input, output, cached (of the input), reasoning (of the"
    " output).",
    ("provider", "kind"),
)
CHARGED_TOKENS = Counter("vanilla_saas_charged_tokens", "Tokens that settlements took from wallets.")
CALLS_REFUSED = Counter("vanilla_saas_model_calls_refused", "Calls that were not admitted, by error code.", ("code",))
CALLS_RUNNING = Gauge("vanilla_saas_model_calls_running", "Model calls in flight.", multiprocess_mode="livesum")
SETTLEMENTS_WAITING = Gauge(
    "vanilla_saas_settlements_waiting",
    "Calls that have ended and are not settled yet; grows while the database is away.",
    multiprocess_mode="livesum",
)
POOL_IN_USE = Gauge(
    "vanilla_saas_pool_connections_in_use",
    "Connections that are lent out, by pool: app, runtime.",
    ("pool",),
    multiprocess_mode="livesum",
)
POOL_WAIT = Histogram(
    "vanilla_saas_pool_wait_seconds", "How long a statement waited for a connection.", ("pool",), buckets=FAST
)
POOL_SATURATED = Counter(
    "vanilla_saas_pool_saturated", "Statements refused because no connection became free.", ("pool",)
)
BATCH_SIZE = Histogram(
    "vanilla_saas_batch_calls",
    "Calls that left for the database together.",
    buckets=(1, 2, 5, 10, 20, 50, 100),
)
SCHEDULE_RUNS = Counter(
    "vanilla_saas_schedule_runs",
    "Runs of jobs that this process made, by how they ended: done, failed, not_run (nothing was reached).",
    ("schedule", "outcome"),
)
WEBHOOK_DELIVERIES = Counter(
    "vanilla_saas_webhook_attempts", "Attempts to deliver a webhook by how they ended: delivered, failed.", ("outcome",)
)

STEPS = Counter("vanilla_saas_steps", "Steps of workflows that this process computed, by outcome.", ("outcome",))


def metrics() -> Iterator[Metric]:
    """Every metric of this module, in the order of the page."""
    for found in globals().copy().values():
        if isinstance(found, Counter | Gauge | Histogram):
            yield found


@contextmanager
def share_counts() -> Iterator[None]:
    """A folder of counts for the processes that are started in the block."""
    with tempfile.TemporaryDirectory(prefix="vanilla-saas-metrics-") as folder:
        os.environ[SHARED] = folder
        try:
            yield
        finally:
            del os.environ[SHARED]


def exposition() -> bytes:
    """All metrics in Prometheus' text format, version 0.0.4."""
    if SHARED not in os.environ:
        return generate_latest(REGISTRY)
    for path in Path(os.environ[SHARED]).glob("gauge_live*_*.db"):
        # what a process that was killed had in flight is in flight no more
        if not Path(f"/proc/{(pid := path.stem.rpartition('_')[2])}").exists() and Path("/proc/self").exists():
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
