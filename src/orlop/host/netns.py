"""Network namespaces pinned at a path; see :mod:`orlop.host.namespaces` for how."""

from __future__ import annotations

from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from orlop.errors import FailedPrecondition
from orlop.host import namespaces, process, threads
from orlop.linux.netlink import ROUTING, Netlink

T = TypeVar("T")


async def create(path: Path) -> None:
    """Make a new network namespace and pin it at ``path``, which must not exist yet. Raises OSError."""
    await namespaces.create({"net": path})


async def pin(source: Path, path: Path) -> None:
    """Pin one that is there at ``path`` as well. Raises NotFound, InvalidArgument for what is none."""
    await namespaces.pin(source, path, "net")


async def delete(path: Path) -> None:
    """Unpin it; the kernel frees it once nothing uses it any more. Idempotent. Raises OSError."""
    await threads.call(namespaces.remove, path)


@asynccontextmanager
async def inhabited(path: Path) -> AsyncIterator[int]:
    """A process that is in the network namespace at ``path`` while the block runs, and does nothing: its pid.

    For those who find a namespace by a process. It ends with the daemon, too. Raises FailedPrecondition.
    """
    child = await process.spawn(
        ["nsenter", f"--net={path}", "sh", "-c", "echo there; exec cat >/dev/null"], stdin=PIPE, stdout=PIPE
    )
    try:
        assert child.stdout is not None
        if not await child.stdout.readline():  # before that it is in the daemon's own
            raise FailedPrecondition(f"no process can be in the network namespace {path}")
        yield child.pid
    finally:
        await process.reap(child)


async def within(
    path: Path, function: Callable[[], T], *, unwanted: Callable[[T], object] | None = None
) -> T:
    """Run a short ``function`` on a thread of its own inside the network namespace at ``path``.

    See :func:`orlop.host.namespaces.within`.
    """
    return await namespaces.within({"net": path}, function, unwanted=unwanted)


async def ask(path: Path, work: Callable[[Netlink], T], protocol: int = ROUTING) -> T:
    """Do short ``work`` with the kernel of the network namespace at ``path``, by netlink.

    Raises what :func:`within` and ``work`` raise.
    """

    def body() -> T:
        with Netlink(protocol) as kernel:
            return work(kernel)

    return await within(path, body)
