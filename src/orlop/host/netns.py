"""Network namespaces pinned at a path; see :mod:`orlop.host.namespaces` for how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orlop.host import namespaces

T = TypeVar("T")


async def create(path: Path) -> None:
    """Make a new network namespace and pin it at ``path``, which must not exist yet. Raises OSError."""
    await namespaces.create({"net": path})


async def delete(path: Path) -> None:
    """Unpin it; the kernel frees it once nothing uses it any more. Idempotent. Raises OSError."""
    await asyncio.to_thread(namespaces.remove, path)


async def within(path: Path, function: Callable[[], T]) -> T:
    """Run a short ``function`` on a thread of its own inside the network namespace at ``path``.

    Raises NotFound when there is none, otherwise what ``function`` raises.
    """
    return await namespaces.within({"net": path}, function)
