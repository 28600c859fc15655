"""Network namespaces pinned at a path; see :mod:`orlop.host.namespaces` for how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orlop.host import namespaces, threads
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
