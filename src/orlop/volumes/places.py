"""Where containers of our own clients find named volumes: below the directory of the daemon's socket.

A volume stays mounted there until it is removed, or the machine restarted: who uses it is known to the
kernel, so nobody has to say when he is done.

The kernel knows it from when a container has it. Until then whoever makes the container holds a lock of
flock(2), which whoever removes the volume waits for: a mount whose path has gone would be an empty directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from orlop.host import threads

_TURN_STEP = 0.02


class VolumePlace(NamedTuple):
    """The directory of one volume below that of a socket."""

    directory: Path

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.directory.name

    @property
    def staged(self) -> str:
        """Where its file system is mounted."""
        return os.fspath(self.directory / "staged")

    @property
    def mount(self) -> str:
        """What containers are given."""
        return os.fspath(self.directory / "mount")

    def make(self) -> None:
        """Make the directory. Idempotent."""
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def clear(self) -> None:
        """Remove the directory, if nothing is in it."""
        for path in (Path(self.staged), self.directory):
            with contextlib.suppress(OSError):
                path.rmdir()

    @contextlib.asynccontextmanager
    async def turn(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait until nobody removes the volume, and with ``alone`` until nobody is about to use it."""
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        file = await threads.call(_open_lock, self.directory)
        try:
            while not _locked(file, kind):  # noqa: ASYNC110 - the kernel tells nobody, and a thread cannot be stopped
                await asyncio.sleep(_TURN_STEP)
            yield
        finally:
            os.close(file)


def place_of(socket: Path, name: str) -> VolumePlace:
    """The place of the volume ``name`` beside the daemon's ``socket``."""
    return VolumePlace(socket.parent / "volumes" / name)


def place_at(socket: Path, path: str) -> VolumePlace | None:
    """The place whose volume a container finds at ``path``; None for any other path."""
    name = Path(path).parent.name
    place = place_of(socket, name)
    return place if name not in ("", "..") and path == place.mount else None


def _open_lock(place: Path) -> int:
    place.parent.mkdir(mode=0o700, exist_ok=True)
    # It stays: one that waits for a file that was removed would not hear of those who lock the next.
    return os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
