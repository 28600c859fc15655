"""Sockets of the host in directories that containers have: they come and go with those of the host.

Servers bind theirs when they start, and anew when they start again. So each such directory is watched, and
the guest is told of all sockets in it whenever they change: it listens in their stead (see :mod:`.sockets`).
A directory in which much happens is looked at ten times a second at most, and once a second if there is
never anything new.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice

from orlop.errors import OrlopError
from orlop.host import threads
from orlop.host.tasks import Tasks, end
from orlop.host.watching import Watcher
from orlop.linux import syscalls
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HostSocket
from orlop.sandbox.vm.listeners import is_bound, is_served
from orlop.sandbox.vm.sockets import sockets_below
from orlop.wire.messages import MAX_SHOWN, Show
from orlop.wire.values import ShownSocket

log = logging.getLogger(__name__)

_TIMEOUT = 30.0
_NUMBERS = 1 << 62
_MOST_DIRECTORIES = 64
"""Of one pod, those below a driver's volume among them."""

_LONGEST_NAME = 96
_SETTLING = 0.02
"""Seconds from the first change to the look: a server binds, and sets the mode and listens then."""

_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
_RETRY = 0.5
_YOUNG = 30.0
"""Seconds for which a server that has bound its socket is waited for to listen."""


@dataclass
class _Directory:
    """A directory of the host, and what the guest was ``told`` to have in it: None when that is not known."""

    owner: str
    share: str
    path: str
    told: tuple[ShownSocket, ...] | None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watches: list[int] = field(default_factory=list)
    served: set[tuple[str, int]] = field(default_factory=set)
    """Sockets, each with what tells it from another file of its name, to which somebody listens."""

    following: asyncio.Task[None] | None = None

    def hear(self) -> None:
        """Something has changed."""
        self.changed.set()


class ShownSockets:
    """The directories of one pod. ``names`` hears of a change once; ``own`` are the paths of the sockets that
    the host has for containers of the pod."""

    def __init__(self, agent: AgentClient, names: Watcher, pod: str, own: Callable[[], set[str]]) -> None:
        self._agent = agent
        self._names = names
        self._pod = pod
        self._own = own
        self._directories: list[_Directory] = []
        self._tasks = Tasks()

    async def follow(self, owner: str, share: str, path: str) -> None:
        """Have in the guest what there is, and what comes: in the volume ``owner``, or in the ``share`` of
        the container ``owner``. No part of ``path``, the directory's, may be a link. Idempotent."""
        known = any((one.owner, one.share) == (owner, share) for one in self._directories)
        if known or len(self._directories) >= _MOST_DIRECTORIES or self._tasks.closed:
            return
        one = _Directory(owner, share, path, ())
        self._directories.append(one)
        await self._try(one)
        self._begin(one)

    def adopt(self, owner: str, share: str, path: str) -> None:
        """Go on with what an earlier daemon followed."""
        one = _Directory(owner, share, path, None)
        self._directories.append(one)
        one.hear()
        self._begin(one)

    def of(self, owner: str) -> tuple[HostSocket, ...]:
        """The sockets that the guest has for a container or a volume."""
        return tuple(
            HostSocket(
                id=f"{one.share}/{shown.name}" if one.share else shown.name, path=f"{one.path}/{shown.name}"
            )
            for one in self._directories
            if one.owner == owner
            for shown in one.told or ()
        )

    async def forget(self, owner: str) -> None:
        """Follow nothing of it any more. Idempotent."""
        for one in [one for one in self._directories if one.owner == owner]:
            self._directories.remove(one)
            if one.following is not None:
                await end(one.following)
            self._unwatch(one)

    async def close(self) -> None:
        """Follow nothing any more; the guest goes on with what it has. Idempotent."""
        await self._tasks.close()
        for one in self._directories:
            self._unwatch(one)

    def _begin(self, one: _Directory) -> None:
        if one in self._directories and not self._tasks.closed:
            one.following = self._tasks.spawn(self._follow(one), f"the sockets in {one.path}")

    async def _follow(self, one: _Directory) -> None:
        pause = _PAUSE
        while not self._agent.closed:
            await one.changed.wait()
            await asyncio.sleep(_SETTLING)
            pause = _PAUSE if await self._try(one) else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _try(self, one: _Directory) -> bool:
        """Whether the guest was told of something new."""
        try:
            return await self._look(one)
        except OrlopError as error:
            log.info("pod %s: the sockets in %s are not up to date: %s", self._pod, one.path, error)
            one.told = None
            one.hear()
            return False

    async def _look(self, one: _Directory) -> bool:
        one.changed.clear()
        found: tuple[ShownSocket, ...] = ()
        # What cannot be looked at has none: its mount says why.
        with suppress(OSError):
            await self._watch(one, [""])
            found, below, waits = await threads.call(_scan, one, self._own())
            if len(below) > 1:
                # What came below before it was watched is seen now.
                await self._watch(one, below)
                found, _, waits = await threads.call(_scan, one, self._own())
            if waits:
                asyncio.get_running_loop().call_later(_RETRY, one.hear)
        room = MAX_SHOWN - sum(len(other.told or ()) for other in self._directories if other is not one)
        found = found[: max(0, room)]
        if found == one.told:
            return False
        await self._agent.call(Show(id=one.owner, share=one.share, sockets=found), _TIMEOUT)
        one.told = found
        return True

    async def _watch(self, one: _Directory, below: list[str]) -> None:
        """Hear of the next change. Raises OSError."""
        self._unwatch(one)
        with ExitStack() as opened:
            files = await threads.call(_opened, opened, one.path, below)
            for file in files:
                try:
                    one.watches.append(self._names.watch(f"/proc/self/fd/{file}", one.hear))
                except OSError as error:  # the host allows no more of them
                    log.warning("sockets that come to %s are not seen: %s", one.path, error.strerror)

    def _unwatch(self, one: _Directory) -> None:
        while one.watches:
            self._names.forget(one.watches.pop(), one.hear)


def _opened(opened: ExitStack, path: str, below: list[str]) -> list[int]:
    """Descriptors of these directories below one, for as long as ``opened``. Raises OSError when the first of
    them cannot be opened."""
    files: list[int] = []
    for name in islice(below, _MOST_DIRECTORIES):
        try:
            file = syscalls.open_without_links(f"{path}/{name}", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            if not files:
                raise
            continue
        opened.callback(os.close, file)
        files.append(file)
    return files


def _scan(one: _Directory, own: set[str]) -> tuple[tuple[ShownSocket, ...], list[str], bool]:
    """The sockets there are, the directories that were looked at, and whether there is one that a server may
    be about to listen to. Raises OSError.

    In a directory for sockets of containers those are left out that are the pod's ``own``, and what nobody
    listens to: a container may want to have the name. Who has the same directory as the host's is to reach
    the pod's own as well; of what is there nobody on the host has bound what a container has made itself.
    """
    names, below = sockets_below(one.path)
    found: list[ShownSocket] = []
    served: set[tuple[str, int]] = set()
    waits = False
    for name in names:
        path = f"{one.path}/{name}"
        if len(name) > _LONGEST_NAME or (path in own and not one.share):
            continue
        try:
            status, made, bound = _status(path)
        except OSError:  # it has gone; the others have not
            continue
        if not bound or not (one.share or (name, made) in one.served or is_served(path)):
            waits |= abs(time.time() - status.st_ctime) < _YOUNG
            continue
        served.add((name, made))
        mode = stat.S_IMODE(status.st_mode) & 0o777
        found.append(ShownSocket(name=name, mode=mode, uid=status.st_uid, gid=status.st_gid, made=made))
    one.served = served
    return tuple(found), below, waits


def _status(path: str) -> tuple[os.stat_result, int, bool]:
    """A socket's status, what tells it from another file of its name, and whether somebody has bound it. File
    systems that give a number to the next file at once know when a file was made. Raises OSError."""
    # Who may write to a directory could have put a link there just now.
    place = syscalls.open_without_links(path, os.O_PATH)
    try:
        status = os.fstat(place)
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
        made = (syscalls.birth_of(place) + status.st_ino) % _NUMBERS
        return status, made, is_bound(f"/proc/self/fd/{place}")
    finally:
        os.close(place)
