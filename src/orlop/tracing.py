"""Spans: where the time of a call goes, from the RPC down to the guest.

``with tracing.span("vm.claim", pod=pod_id):`` around each step. With OpenTelemetry installed and an
endpoint configured (:func:`configure`) spans are exported over OTLP/gRPC; at log level debug each
step's duration is logged. The steps of the calls that make a pod and end it are remembered for a while in any
case (:func:`recent`); otherwise a span is one shared object that does nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from orlop.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

REMEMBERED = frozenset(
    f"cri.{call}"
    for call in (
        *("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"),
        *("CreateContainer", "StartContainer", "StopContainer", "RemoveContainer"),
    )
)
"""The calls whose steps are remembered."""

MOST_CALLS = 256
"""Calls that are remembered; the oldest are forgotten."""

MOST_STEPS = 48
"""Steps of one call that are."""


@dataclass(slots=True)
class Step:
    """A span: when it began (microseconds after its call) and how long it took (-1: it has not ended)."""

    name: str
    depth: int
    start_us: int
    duration_us: int = -1
    failed: bool = False


@dataclass(slots=True)
class Call:
    """A remembered call. ``at`` is when it began, in nanoseconds; its first step is the call itself."""

    at: int = field(default_factory=time.time_ns)
    begun: float = field(default_factory=time.perf_counter)
    pod: str = ""
    container: str = ""
    steps: list[Step] = field(default_factory=list)

    def elapsed_us(self) -> int:
        """Microseconds since it began."""
        return int((time.perf_counter() - self.begun) * 1e6)


_NOTHING: AbstractContextManager[None] = nullcontext()
_tracer: Any = None
_provider: Any = None
_recent: deque[Call] = deque(maxlen=MOST_CALLS)
_within: ContextVar[tuple[Call, int] | None] = ContextVar("call", default=None)


def recent(pod: str) -> list[Call]:
    """The calls about a pod that are remembered, the oldest first."""
    return [call for call in _recent if call.pod == pod]


def span(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[None]:
    """A span named ``room.step`` around the block; an exception that leaves it marks it failed.

    The attributes ``pod`` and ``container`` say whom a remembered call is about.
    """
    if _within.get() is not None or name in REMEMBERED:
        return _step(name, attributes)
    if _tracer is None and not log.isEnabledFor(logging.DEBUG):
        return _NOTHING
    return _span(name, attributes)


@contextmanager
def _step(name: str, attributes: dict[str, str | int | float | bool]) -> Iterator[None]:
    """A span that is remembered, whatever else is done with it."""
    outer = _within.get()
    call, depth = outer if outer is not None else (Call(), 0)
    call.pod = call.pod or str(attributes.get("pod", ""))
    call.container = call.container or str(attributes.get("container", ""))
    step = Step(name, depth, call.elapsed_us())
    if len(call.steps) < MOST_STEPS:
        call.steps.append(step)
    token = _within.set((call, depth + 1))
    try:
        if _tracer is None and not log.isEnabledFor(logging.DEBUG):
            yield
        else:
            with _span(name, attributes):
                yield
    except BaseException:
        step.failed = True
        raise
    finally:
        _within.reset(token)
        step.duration_us = call.elapsed_us() - step.start_us
        if outer is None and call.pod:
            _recent.append(call)


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
