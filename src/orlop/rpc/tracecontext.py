"""The caller's trace: a kubelet that traces says in ``traceparent`` (W3C) whose step a call is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

Metadata = Iterable[Sequence[str | bytes]]

_HEADERS = frozenset({"traceparent", "tracestate"})


class CallerTrace:
    """Makes the spans of a call children of the caller's, where tracing is on."""

    def __init__(self, enabled: bool) -> None:
        self._context: Any = None
        if enabled:
            self._context = import_module("opentelemetry.context")
            tracecontext = import_module("opentelemetry.trace.propagation.tracecontext")
            self._propagator = tracecontext.TraceContextTextMapPropagator()

    def of(self, metadata: Callable[[], Metadata | None]) -> AbstractContextManager[None]:
        """Around one call, with what reads its metadata. Anything that is no trace context is passed over."""
        return nullcontext() if self._context is None else self._within(metadata() or ())

    @contextmanager
    def _within(self, metadata: Metadata) -> Iterator[None]:
        carrier = {key: value for key, value in metadata if key in _HEADERS and isinstance(value, str)}
        token = self._context.attach(self._propagator.extract(carrier))
        try:
            yield
        finally:
            self._context.detach(token)
