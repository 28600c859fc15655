"""apt-get where it needs the network: it says how far it is, and is given up when nothing comes.

apt itself is patient: each address of each source gets half a minute, several times over, in silence.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from orlop.errors import Unavailable
from orlop.host import process, tasks, threads

STALL = 60.0
"""Seconds without a byte after which apt is given up."""

_URI = re.compile(r"^'\w+://([^/']+)[^']*' \S+ (\d+)", re.MULTILINE)
_LISTS = Path("/var/lib/apt/lists/partial")
_TIMEOUT = 1800.0
_LOOK = 1.0
_IMPATIENT = (
    *("-o", "Acquire::http::Timeout=20"),
    *("-o", "Acquire::https::Timeout=20"),
    *("-o", "Acquire::Retries=1"),
)


class DownloadFailed(Unavailable):
    """A package's file is not to be had: no network, or the index is older than the mirror."""


class NetworkSilent(Unavailable):
    """apt's sources do not answer."""


async def fetch(packages: Sequence[str], directory: Path, say: Callable[[str], None]) -> None:
    """Download ``packages`` (``name=version``) into a directory. Raises DownloadFailed or NetworkSilent."""
    listed = await process.run(["apt-get", "-q", "download", "--print-uris", *packages], check=False)
    uris = _URI.findall(listed.stdout.decode(errors="replace"))
    hosts = ", ".join(sorted({host for host, _ in uris})) or "apt's sources"
    total = sum(int(size) for _, size in uris)
    what = f"downloading {len(packages)} packages from {hosts}"
    say(what)

    def tell(count: int) -> None:
        say(f"{what}: {count >> 20} of {total >> 20} MiB")

    try:
        await _watched(["download", *packages], directory, tell, hosts)
    except process.ProcessFailed as error:
        raise DownloadFailed(f"the guest's packages cannot be downloaded: {error}") from error


async def refresh(say: Callable[[str], None]) -> None:
    """Have apt read its sources' indexes anew. Raises ProcessFailed or NetworkSilent."""
    say("waiting for the indexes of apt's sources")
    await _watched(["update"], _LISTS, lambda count: None, "apt's sources")


async def _watched(
    arguments: Sequence[str], directory: Path, tell: Callable[[int], None], hosts: str
) -> None:
    """Run apt-get, in ``directory`` if it is ours, for as long as what lies there changes."""
    command = ["apt-get", "-q", *_IMPATIENT, *arguments]
    before, changed = -1, time.monotonic()
    cwd = None if directory is _LISTS else directory
    async with tasks.beside(process.run(command, cwd=cwd, timeout=_TIMEOUT)) as work:
        while not work.done():
            await asyncio.wait((work,), timeout=_LOOK)
            count = await threads.call(_bytes_in, directory)
            if count != before:
                before, changed = count, time.monotonic()
                tell(count)
            elif time.monotonic() - changed > STALL:
                raise NetworkSilent(
                    f"no byte came from {hosts} for {STALL:g} seconds: check this machine's network, "
                    "its proxy and apt's sources, then try again"
                )
        await work


def _bytes_in(directory: Path) -> int:
    count = 0
    with suppress(OSError):
        for path in directory.iterdir():
            with suppress(FileNotFoundError):
                count += path.stat().st_size
    return count
