"""What a target is, and what counts as a crash of one.

A crash is an exception that the target does not declare, an input that takes more processor time than one
of its length may, or one that makes the process grow out of proportion.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import pkgutil
import resource
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).with_name("seeds")
SECONDS = 1.0
SECONDS_A_MIB = 8.0
"""Processor time that an input may take, and each MiB of it: slow machines and tracing included."""

GROWTH = 256 << 20
"""Bytes that one input may make the process grow."""


class Crash(Exception):
    """A target did not keep to its bounds."""


@dataclass(frozen=True)
class Target:
    """``run`` understands the bytes or raises one of ``errors``; ``seeds`` are inputs to begin from."""

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def once(self, data: bytes) -> None:
        """Feed one input. Raises Crash, or what the target did not declare."""
        before, most = _peak(), SECONDS + SECONDS_A_MIB * len(data) / (1 << 20)
        # Once more before it is the input's fault: a process that has run thousands of other tests may have
        # collected all of its garbage just then.
        spent = self._timed(data)
        if spent > most:
            spent = self._timed(data)
        grown = _peak() - before
        if spent > most:
            raise Crash(f"{self.name}: an input of {len(data)} bytes took {spent:.1f} s")
        if grown > GROWTH:
            raise Crash(f"{self.name}: an input of {len(data)} bytes took {grown >> 20} MiB")

    def _timed(self, data: bytes) -> float:
        """Seconds of processor time that it takes."""
        begun = time.process_time()
        with contextlib.suppress(*self.errors):
            self.run(data)
        return time.process_time() - begun


TARGETS: dict[str, Target] = {}


def target(
    *errors: type[Exception], seeds: Sequence[bytes] = (b"",)
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Make a function of bytes a target of its own name."""

    def register(run: Callable[[bytes], object]) -> Callable[[bytes], object]:
        name = run.__name__
        kept = [path.read_bytes() for path in sorted((SEEDS / name).glob("*"))]
        TARGETS[name] = Target(name, run, errors, (*seeds, *kept))
        return run

    return register


def load() -> dict[str, Target]:
    """All targets by name."""
    package = importlib.import_module("tests.fuzz.targets")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return TARGETS


_loop: asyncio.AbstractEventLoop | None = None


def run(work: Coroutine[Any, Any, object]) -> object:
    """Run a coroutine to its end, on a loop that serves all inputs of the process."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
    return _loop.run_until_complete(work)


def close() -> None:
    """Close that loop."""
    global _loop
    if _loop is not None:
        _loop.close()
        _loop = None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class _Errors(logging.Handler):
    found: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found = record.exc_info[1]


@contextlib.contextmanager
def logged(name: str) -> Iterator[None]:
    """What the code within logs with a traceback is a crash: it was caught because nobody expected it."""
    handler, logger = _Errors(), logging.getLogger(name)
    logger.addHandler(handler)
    kept, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = kept
    if handler.found is not None:
        raise handler.found
