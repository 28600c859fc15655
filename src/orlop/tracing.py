"""Spans: where the time of a call goes, from the RPC down to the guest.

``with tracing.span("vm.claim", pod=pod_id):`` around each step. With OpenTelemetry installed and an
endpoint configured (:func:`configure`) spans are exported over OTLP/gRPC; at log level debug each
step's duration is logged; otherwise a span is one shared object that does nothing.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from orlop.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_NOTHING: AbstractContextManager[None] = nullcontext()
_tracer: Any = None
_provider: Any = None


def span(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[None]:
    """A span named ``room.step`` around the block; an exception that leaves it marks it failed."""
    if _tracer is None and not log.isEnabledFor(logging.DEBUG):
        return _NOTHING
    return _span(name, attributes)


@contextmanager
def _span(name: str, attributes: dict[str, str | int | float | bool]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        if _tracer is None:
            yield
        else:
            with _tracer.start_as_current_span(name, attributes=attributes):
                yield
    finally:
        if log.isEnabledFor(logging.DEBUG):
            shown = " ".join(f"{key}={str(value)[:16]}" for key, value in attributes.items())
            log.debug("%s %s: %.1f ms", name, shown, (time.perf_counter() - started) * 1000)


def configure(endpoint: str, service: str = "orlopd") -> None:
    """Export spans to the OTLP/gRPC ``endpoint`` (``http://host:4317``) from now on.

    Raises FailedPrecondition when the packages of the extra ``tracing`` are not installed.
    """
    global _tracer, _provider
    try:
        sdk = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
        resources = import_module("opentelemetry.sdk.resources")
        otlp = import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    except ImportError as error:
        raise FailedPrecondition(
            f"metrics.otlp_endpoint is set, but tracing needs the package {error.name}: "
            "install orlop[tracing], or remove the setting"
        ) from error
    _provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": service}))
    exporter = otlp.OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"))
    _provider.add_span_processor(export.BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("orlop")


def shutdown() -> None:
    """Send what is buffered and stop. Blocks for a moment."""
    global _tracer, _provider
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.shutdown()
