"""Tasks that have an owner, work that runs to its end, and undo that goes on.

A task that nobody holds may vanish half-way, and its exception with it; a step of an undo that fails
or is cancelled must not keep the next from its turn. So tasks are started here and nowhere else: by
:class:`Tasks`, which logs how they fail, by :func:`beside` and :func:`together`, which outlive none,
and by :func:`uncancelled`, which a cancelled caller still waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

from orlop.errors import NotUndone, OrlopError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class Tasks:
    """Owns tasks that run until they end or :meth:`close` ends them; one that fails harms no other."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        """How many run."""
        return len(self._tasks)

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closed

    def spawn(self, work: Coroutine[Any, Any, T], name: str, *, awaited: bool = False) -> asyncio.Task[T]:
        """Run ``work``; its failure is logged. With ``awaited``, others hear an expected one from the task.

        Raises Unavailable after :meth:`close`.
        """
        if self._closed:
            work.close()
            raise Unavailable(f"{name}: the daemon is stopping")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._forget if awaited else self._report)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not isinstance(_failure_of(task), OrlopError):
            _log_failure(task)

    def _report(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        _log_failure(task)

    async def drain(self) -> None:
        """Wait until all that runs has come to its end by itself."""
        while running := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(running)

    async def close(self) -> None:
        """Cancel what still runs and wait until all of it has cleaned up. Idempotent.

        A task that closes its own set is left out.
        """
        self._closed = True
        # One that was cleaning up may have started another just before.
        own = asyncio.current_task()
        while others := [task for task in self._tasks if task is not own and not task.done()]:
            await end(*others)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T], name: str | None = None) -> AsyncIterator[asyncio.Task[T]]:
    """Run ``work`` beside the body, which may await it; if it still runs after the body, it is ended."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    try:
        yield task
    finally:
        await end(task)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, even when cancelled; the current task is left out."""
    others = [task for task in tasks if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if cancelled := await _wait_out(others):
        raise cancelled


async def uncancelled(work: Awaitable[T], *, unwanted: Callable[[T], object] | None = None) -> T:
    """Await ``work`` to its end; a cancellation in between is raised only then.

    With it, ``unwanted`` is called with the result, which nobody has now, to release it; a failure is logged.
    """
    task = asyncio.ensure_future(work)
    cancelled = await _wait_out((task,))
    if cancelled is None:
        return task.result()
    _log_failure(task)
    if unwanted is not None and not task.cancelled() and task.exception() is None:
        unwanted(task.result())
    raise cancelled


async def roll_back(what: str, work: Awaitable[Any]) -> None:
    """Undo something in an ``except`` block: to the end, though the caller may be cancelled meanwhile.

    That ``what`` cannot be undone is logged and not raised: the caller is to hear what led here.
    """
    try:
        await uncancelled(work)
    except Exception as error:
        _log_error(f"{what} cannot be undone", error)


async def wanted_or_undone(what: str, work: Awaitable[T], undo: Callable[[T], Awaitable[Any]]) -> T:
    """The result of ``work``, which makes ``what`` though its caller goes away.

    A caller that is cancelled waits for it, undoes it, and is cancelled then.
    """
    made: list[T] = []
    try:
        return await uncancelled(work, unwanted=made.append)
    except asyncio.CancelledError:
        for one in made:
            await roll_back(what, undo(one))
        raise


@overload
async def together(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B], /) -> tuple[A, B]: ...
@overload
async def together(
    first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B], third: Coroutine[Any, Any, C], /
) -> tuple[A, B, C]: ...
@overload
async def together(*work: Coroutine[Any, Any, A]) -> tuple[A, ...]: ...
async def together(*work: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """The results of all, done at once: fails as plainly as if they had been done one by one.

    The first failure cancels the others and is raised when they have ended; any other is logged. A
    cancellation goes before what fails because of it.
    """
    running = [asyncio.ensure_future(part) for part in work]
    if not running:
        return ()
    cancelled: asyncio.CancelledError | None = None
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError as error:
        cancelled = error
    failures = [found for part in running if part.done() and (found := _failure_of(part)) is not None]
    late = [part for part in running if not part.done()]
    for part in late:
        part.cancel()
    cancelled = await _wait_out(late) or cancelled
    failures += [found for part in late if (found := _failure_of(part)) is not None]
    cause = failures.pop(0) if cancelled is None and failures else cancelled
    for other in failures:
        _log_error("beside another failure", other)
    if cause is not None:
        raise cause
    return tuple(part.result() for part in running)


async def failures_of(*work: Awaitable[Any]) -> list[BaseException]:
    """Run all of ``work`` at once, each to its end; returns the errors (a cancellation is passed on)."""
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if isinstance(error, asyncio.CancelledError):
            raise error
    return errors


class Undo:
    """Takes things back one after the other, goes on past what fails, and says what is left.

    ::

        undo = Undo("pod 5a1c")
        await undo.step("its VM", cloner.discard(directory))
        await undo.step("its network", network.detach(pod_id))
        undo.finish()
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures: list[tuple[str, Exception]] = []

    async def step(self, name: str, work: Awaitable[Any]) -> bool:
        """Take one step; whether it succeeded, for those that may follow only then. Raises nothing."""
        try:
            await work
        except Exception as error:
            if not isinstance(error, OrlopError | OSError):
                _log_error(f"{self._what}: {name} cannot be taken back", error)
            self._failures.append((name, error))
            return False
        return True

    @property
    def complete(self) -> bool:
        """Whether no step has failed so far."""
        return not self._failures

    def finish(self) -> None:
        """Raises NotUndone with every step that failed, if any did."""
        if self._failures:
            left = "; ".join(f"{name}: {error}" for name, error in self._failures)
            raise NotUndone(f"{self._what} cannot be taken back whole yet: {left}") from self._failures[0][1]


async def _wait_out(futures: Iterable[asyncio.Future[Any]]) -> asyncio.CancelledError | None:
    """Wait until all have ended; a cancellation of the caller meanwhile is returned."""
    cancelled: asyncio.CancelledError | None = None
    while running := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


def _failure_of(task: asyncio.Future[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def _log_failure(task: asyncio.Future[Any]) -> None:
    if (error := _failure_of(task)) is not None:
        _log_error(task.get_name() if isinstance(task, asyncio.Task) else "a step", error)


def _log_error(what: str, error: BaseException) -> None:
    if isinstance(error, OrlopError | OSError):
        log.warning("%s: %s", what, error or type(error).__name__)
    else:
        log.error("%s", what, exc_info=error)
