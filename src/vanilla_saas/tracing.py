"""Traces by OpenTelemetry, for those who installed the extra `otel` and set VANILLA_SAAS_OTEL; else no span is made.

A span holds names, places and numbers: no body, no prompt, no credential. Statements stand as our constants with `$1`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from vanilla_saas.settings import Settings

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int | float | bool]


class _Nothing:
    """The span of a process that does not trace."""

    def set_attribute(self, key: str, value: str | int | float | bool) -> None: ...

    def update_name(self, name: str) -> None: ...


_NOTHING = _Nothing()
_tracer: Any = None


def configure_tracing(settings: Settings, provider: Any = None) -> None:
    """Starts tracing when `settings.otel`; the OTEL_* variables say where to and how much.

    `provider` takes the place of one that exports by OTLP over HTTP. Raises ValueError without the extra.
    """
    global _tracer
    if not settings.otel:
        return
    try:
        from opentelemetry import trace

        if provider is None:
            provider = _exporting()
    except ImportError:
        raise ValueError("VANILLA_SAAS_OTEL needs the extra: pip install 'vanilla-saas[otel]'") from None
    _tracer = trace.get_tracer("vanilla_saas", tracer_provider=provider)


def _exporting() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "vanilla-saas"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextmanager
def span(
    name: str, kind: Kind = "internal", attributes: Attributes | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """A span around the block, a child of the one around it, or of the `traceparent` among `headers`."""
    if _tracer is None:
        yield _NOTHING
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers) if headers is not None else None
    with _tracer.start_as_current_span(
        name,
        parent,
        SpanKind[kind.upper()],
        attributes,
        # a message may repeat what was sent: the kind of error is enough
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(StatusCode.ERROR)
            current.set_attribute("error.type", getattr(error, "name", type(error).__name__))
            raise


def outgoing() -> dict[str, str]:
    """The headers that let the one who is called continue this trace; empty when there is none."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers
