"""Mounts that appear later below a volume, for a process that has users of its own.

The kernel brings a mount that the host makes below a volume (propagation ``rslave``) into the process'
mount namespace, but not the volume's mapping of users: its files belong to nobody there, and root's private
ones cannot be read. So the mounts of the process are watched, and each that came so is replaced by a
mapped one of the same place. The host's unmounting takes that one away as it would the other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from contextlib import suppress
from pathlib import Path

from orlop.host import mounts, threads
from orlop.host.tasks import Tasks

log = logging.getLogger(__name__)


class Following:
    """Follows volumes of the process ``pid``; they lie below ``inside`` in its mount namespace."""

    def __init__(self, pid: int, inside: Path) -> None:
        self._pid = pid
        self._inside = inside
        self._sources: dict[str, str] = {}
        self._failed: set[int] = set()
        self._tasks = Tasks()
        self._again = asyncio.Event()
        self._watched: tuple[int, select.epoll] | None = None

    def follow(self, key: str, source: str) -> None:
        """Follow the volume ``key``, which shows ``source`` of the host. Idempotent."""
        self._sources[key] = os.path.realpath(source)
        if self._watched is None:
            with suppress(OSError):  # the process has ended
                self._watch()
                self._tasks.spawn(self._run(), f"mounts of process {self._pid}")
        self._again.set()

    def forget(self, key: str) -> None:
        """Follow it no longer. Idempotent."""
        self._sources.pop(key, None)

    async def close(self) -> None:
        """Follow nothing any more. Idempotent."""
        if self._watched is not None:
            file, events = self._watched
            asyncio.get_running_loop().remove_reader(events.fileno())
            events.close()
            os.close(file)
            self._watched = None
        await self._tasks.close()

    def _watch(self) -> None:
        file = os.open(f"/proc/{self._pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # The file is always readable; what tells of a change is POLLPRI (proc_pid_mountinfo(5)).
        events = select.epoll()
        events.register(file, select.EPOLLPRI | select.EPOLLET)
        asyncio.get_running_loop().add_reader(events.fileno(), self._changed)
        self._watched = (file, events)

    def _changed(self) -> None:
        if self._watched is not None:
            self._watched[1].poll(0)
            self._again.set()

    async def _run(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                await threads.call(self._map_what_came)
            except OSError as error:
                log.debug("mounts of process %d: %s", self._pid, error)

    def _map_what_came(self) -> None:
        namespace, userns = Path(f"/proc/{self._pid}/ns/mnt"), Path(f"/proc/{self._pid}/ns/user")
        mountinfo = Path(f"/proc/{self._pid}/mountinfo")
        for number, point in mounts.unmapped_below(self._inside, mountinfo).items():
            key, _, below = os.fspath(point.relative_to(self._inside)).partition("/")
            source = self._sources.get(key)
            if source is None or not below or number in self._failed:
                continue
            try:
                mounts.replace(f"{source}/{below}", point, userns=userns, namespace=namespace)
            except OSError as error:
                if number not in mounts.unmapped_below(self._inside, mountinfo):
                    continue  # the host has taken it away meanwhile
                self._failed.add(number)
                log.warning(
                    "what was mounted at %s/%s belongs to nobody in the VM: %s", source, below, error.strerror
                )
