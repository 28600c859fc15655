"""Prometheus metrics of a process: its endpoint, and what is measured for it. prometheus-client's own server.

Nothing is imported or counted before somebody asks for it to be served.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from orlop.errors import NAMES, FailedPrecondition, InvalidArgument, OrlopError
from orlop.host import threads
from orlop.value import Value

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

log = logging.getLogger(__name__)

T = TypeVar("T")

BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 120.0),
)
"""Upper bounds of latency histograms, in seconds."""

MetricsInto = Callable[["CollectorRegistry"], object]
"""Puts metrics into a registry."""


class CallWords(Value, frozen=True):
    """What metrics of calls are called: a histogram, a counter, their label, and what is measured."""

    seconds: str
    calls: str
    label: str
    about: str


class CallMetrics:
    """Measures calls of some kind by name and outcome, once it is asked to; costs nothing before."""

    def __init__(self, names: CallWords) -> None:
        self._names = names
        self._observe: Callable[[str, str, float], None] | None = None

    @property
    def measured(self) -> bool:
        """Whether anybody wants to know."""
        return self._observe is not None

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Around one call."""
        started, outcome = time.perf_counter(), "ok"
        try:
            yield
        except OrlopError as error:
            outcome = NAMES[error.code].lower()
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except BaseException:
            outcome = "internal"
            raise
        finally:
            if self._observe is not None:
                self._observe(name, outcome, time.perf_counter() - started)

    def into(self, registry: CollectorRegistry) -> None:
        """Keep the figures in ``registry`` from now on."""
        from prometheus_client import Counter, Histogram

        words = self._names
        seconds = Histogram(
            words.seconds, f"Duration of {words.about}.", [words.label], buckets=BUCKETS, registry=registry
        )
        calls = Counter(
            words.calls,
            f"{words.about[:1].upper()}{words.about[1:]} by their outcome (gRPC status).",
            [words.label, "code"],
            registry=registry,
        )

        def observe(name: str, outcome: str, elapsed: float) -> None:
            seconds.labels(name).observe(elapsed)
            calls.labels(name, outcome).inc()

        self._observe = observe


class BoundedReading(Generic[T]):
    """What a coroutine finds out, asked for from the exporter's threads, and not more often than it may be.

    Make it in the event loop that the coroutine is for.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], *, every: float, within: float = 30.0) -> None:
        self._read, self._every, self._within = read, every, within
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._at = -every
        self._found: T | None = None

    def get(self) -> T | None:
        """What was found, at most ``every`` seconds ago; None when it cannot be found out now."""
        with self._lock:
            if time.monotonic() - self._at >= self._every:
                self._found = self._ask()
                self._at = time.monotonic()
            return self._found

    def _ask(self) -> T | None:
        async def read() -> T:
            async with asyncio.timeout(self._within):
                return await self._read()

        try:
            return asyncio.run_coroutine_threadsafe(read(), self._loop).result(self._within + 1.0)
        except (OrlopError, OSError, TimeoutError) as error:
            log.warning("metrics: %s", error or "it took too long")
            return None


class Exporter:
    """The HTTP endpoint ``/metrics`` on an address; does nothing when the port is 0."""

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port
        self._server: Any = None

    async def start(self, *registers: MetricsInto) -> None:
        """Serve what these put into the registry, and the process itself.

        Raises FailedPrecondition when the address cannot be used.
        """
        if not self._port:
            return
        from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, start_http_server
        from prometheus_client.registry import CollectorRegistry

        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        for register in registers:
            register(registry)
        try:
            self._server, _ = start_http_server(self._port, addr=self._address, registry=registry)
        except OSError as error:
            raise FailedPrecondition(
                f"metrics cannot be served on {self._address}:{self._port}: {error}"
            ) from error

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            await threads.call(self._server.shutdown)
            self._server.server_close()
            self._server = None


def listen_at(words: str) -> Exporter:
    """An exporter for ``ADDRESS:PORT``, or for ``""``, which does nothing. Raises InvalidArgument."""
    if not words:
        return Exporter("", 0)
    address, _, port = words.rpartition(":")
    if not address or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidArgument(f"metrics: {words!r} is no ADDRESS:PORT, such as 127.0.0.1:9465")
    return Exporter(address.strip("[]"), int(port))
