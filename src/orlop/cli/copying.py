"""``cp``: files into a container and out of it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.client import archive, session
from orlop.client.container import Container
from orlop.client.node import Node


def _place(text: str) -> tuple[str, str] | None:
    """``CONTAINER:/PATH`` in its parts; None for a path of this machine."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and name and path.startswith("/") and "/" not in name else None


async def cp_command(socket: str, source: str, target: str) -> None:
    """``orlop cp``."""
    inside, outside = _place(source), _place(target)
    if (inside is None) == (outside is None):
        raise CliError("write one of both as CONTAINER:/PATH, the other as a path here", exit_code=2)
    async with session.connect(socket) as client:
        name, path = inside or outside or ("", "")
        container = await Node(client).container(name)
        if inside is not None:
            await _out(container, path, Path(target))
        else:
            await _in(container, Path(source), path)


async def _in(container: Container, source: Path, path: str) -> None:
    if not source.exists():
        raise CliError(f"there is no {source} on this machine")
    # As cp(1) does: into a directory that is there, else under that name.
    if path.endswith("/") or (await container.exec("test", "-d", path)).exit_code == 0:
        path = f"{path.rstrip('/')}/{source.resolve().name}"
    with output.bar(f"copying {source.name}") as show:
        await container.put(path, source, progress=show)


async def _out(container: Container, path: str, target: Path) -> None:
    final = target / archive.name(path) if target.is_dir() else target
    if final.is_dir():
        raise CliError(f"{final} is there already: remove it, or name another place")
    if not final.parent.is_dir():
        raise CliError(f"there is no directory {final.parent} on this machine")
    # What comes is put together beside its place: a copy that fails half-way leaves what was there.
    with tempfile.TemporaryDirectory(prefix=".orlop-cp-", dir=final.parent) as making:
        with output.bar(f"copying {archive.name(path)}") as show:
            # How much there is of it only the container knows.
            fetched = await container.fetch(path, Path(making), progress=lambda done, _: show(done, None))
        await asyncio.to_thread(os.replace, fetched, final)
