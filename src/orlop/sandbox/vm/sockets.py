"""Sockets of the host in a VM: a connection that a container makes to one is relayed to it.

A socket's file is of no use to a guest: who listens behind it is known to the kernel that it was bound in. So
the guest listens in its stead, and tells of each connection; the host makes it once more, as the same user,
and the two are joined by a stream.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from orlop.errors import OrlopError
from orlop.host import unixsockets
from orlop.host.mounts import kind_of, kinds_below
from orlop.host.tasks import Tasks, together
from orlop.linux import syscalls
from orlop.sandbox.spec import Mount
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HostSocket
from orlop.sandbox.vm.streams import Incoming, Outgoing
from orlop.storage import kubelet
from orlop.wire.messages import Accept, Called

log = logging.getLogger(__name__)

_MOST = 64
"""Connections of a pod at a time, as in the guest (``guest/streams/calls.py``)."""

_MOST_WAITING = 64
"""Those that wait for one of them to be over: a guest is done with a connection before its end is done here,
and tells of the next. No honest guest has told of more that were not answered."""

_AT_ONCE = 4
"""Connections of a pod that are being made."""

_CHUNK = 64 << 10
_MOST_FOUND = 64
_MOST_LOOKED_AT = 1024
_DEPTH = 3
"""Directories below each other that a driver's volume is looked through."""


@dataclass(frozen=True)
class FoundSocket:
    """A socket of the host that a container has at ``target``, with the mode and the owner of its file."""

    target: str
    held: HostSocket
    mode: int
    uid: int
    gid: int


def find(mounts: Sequence[Mount]) -> tuple[FoundSocket, ...]:
    """The sockets among these volumes of a container. Blocks. What cannot be looked at is none: its mount
    says why."""
    found: list[FoundSocket] = []
    for index, mount in enumerate(mounts):
        path = os.path.realpath(mount.host_path)
        with suppress(OSError):
            if stat.S_ISSOCK(Path(path).lstat().st_mode):
                found.append(_socket(mount.container_path, f"{index}", path))
    return tuple(found[:_MOST_FOUND])


def find_once(mounts: Sequence[Mount], targets: Collection[str]) -> tuple[FoundSocket, ...]:
    """Those, and the ones that lie in directories among the volumes where the container has nothing else
    (``targets`` are all that it has), for a guest that cannot have those that come later. Blocks.

    See :func:`sockets_below` for which they are.
    """
    found: list[FoundSocket] = []
    for index, mount in enumerate(mounts):
        path = os.path.realpath(mount.host_path)
        with suppress(OSError):
            mode = Path(path).lstat().st_mode
            if stat.S_ISSOCK(mode):
                found.append(_socket(mount.container_path, f"{index}", path))
            elif stat.S_ISDIR(mode):
                for number, name in enumerate(sockets_below(path)[0]):
                    target = f"{mount.container_path.rstrip('/')}/{name}"
                    with suppress(OSError):  # it has gone; the others have not
                        if not _is_covered(target, mount.container_path, targets):
                            found.append(_socket(target, f"{index}-{number}", f"{path.rstrip('/')}/{name}"))
    return tuple(found[:_MOST_FOUND])


def _is_covered(target: str, volume: str, targets: Collection[str]) -> bool:
    """Whether the container has something else there, or above it within the volume."""
    return any(f"{target}/".startswith(f"{one.rstrip('/')}/") and len(one) > len(volume) for one in targets)


def _socket(target: str, name: str, path: str) -> FoundSocket:
    # Who may write to a volume could have put a link there just now.
    place = syscalls.open_without_links(path, os.O_PATH)
    try:
        status = os.fstat(place)
    finally:
        os.close(place)
    return FoundSocket(
        target=target,
        held=HostSocket(id=name, path=path),
        mode=stat.S_IMODE(status.st_mode) & 0o777,
        uid=status.st_uid,
        gid=status.st_gid,
    )


def sockets_below(directory: str) -> tuple[list[str], list[str]]:
    """Sockets by their paths below a directory, those at the top first; and the directories that were looked
    at, "" for the top. Raises OSError.

    Of a directory only the top is looked at, and of a CSI driver's volume also what it has in memory below
    that: a driver lays its volume out as it likes.
    """
    deep = kubelet.is_of_driver(directory)
    mounted = kinds_below(directory) if deep else {}
    names: list[str] = []
    looked_at: list[str] = []
    left = _MOST_LOOKED_AT
    pending = deque([("", deep and kind_of(directory) == "tmpfs")])
    while pending:
        above, in_memory = pending.popleft()
        try:
            found, below, count = _listed(f"{directory}/{above}", left)
        except OSError:
            if above:
                continue  # it has gone; the others have not
            raise
        left -= count
        looked_at.append(above.rstrip("/"))
        names += [f"{above}{name}" for name in found]
        if not deep or above.count("/") == _DEPTH:
            continue
        for name in below:
            memory = mounted.get(f"{directory}/{above}{name}", "tmpfs" if in_memory else "") == "tmpfs"
            # What is not in memory may be across the network, and not answer.
            if memory:
                pending.append((f"{above}{name}/", memory))
    return names, looked_at


def _listed(directory: str, most: int) -> tuple[list[str], list[str], int]:
    """Sockets and directories that are in a directory, and how many entries of it were looked at."""
    found, below, count = [], [], 0
    place = syscalls.open_without_links(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(place) as listing:
            for entry in islice(listing, most):
                count += 1
                # The kind comes with the name: on a file system across the network nothing else is asked for.
                if entry.is_file(follow_symlinks=False) or not entry.name.isprintable():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                    continue
                with suppress(FileNotFoundError):
                    if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                        found.append(entry.name)
    finally:
        os.close(place)
    return sorted(found), sorted(below), count


class Relay:
    """The connections of one pod."""

    def __init__(self, agent: AgentClient, pod_id: str) -> None:
        self._agent = agent
        self._pod_id = pod_id
        self._making = asyncio.Semaphore(_AT_ONCE)
        self._serving = asyncio.Semaphore(_MOST)
        self._tasks = Tasks()

    def called(self, call: Called, sockets: Iterable[HostSocket]) -> None:
        """A container that has these sockets has connected to one of them, as its guest says."""
        path = next((one.path for one in sockets if one.id == call.socket), "")
        if len(self._tasks) < _MOST + _MOST_WAITING and not self._tasks.closed:
            self._tasks.spawn(self._in_turn(call, path), f"a connection of pod {self._pod_id} to {path}")

    async def close(self) -> None:
        """Break off all connections. Idempotent."""
        await self._tasks.close()

    async def _in_turn(self, call: Called, path: str) -> None:
        async with self._serving:
            await self._serve(call, path)

    async def _serve(self, call: Called, path: str) -> None:
        try:
            reader, writer = await self._connect(call, path)
        except OSError as error:
            log.info("pod %s cannot connect to the socket %s: %s", self._pod_id, path, error.strerror)
            with suppress(OrlopError):
                await self._agent.call(Accept(call=call.call))
            return
        stream = self._agent.new_stream()
        incoming, outgoing = self._agent.incoming(stream), self._agent.outgoing(stream)
        try:
            await self._agent.call(Accept(call=call.call, stream=stream))
            await together(inward(reader, outgoing), outward(incoming, writer))
        except (OSError, OrlopError) as error:
            log.debug("pod %s: a connection to %s was broken off: %s", self._pod_id, path, error)
        finally:
            incoming.close()
            outgoing.close()
            writer.close()

    async def _connect(self, call: Called, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not path:
            raise FileNotFoundError(0, "its container does not have it")
        async with self._making:
            link = await unixsockets.connect(path, uid=call.uid, gid=call.gid, groups=call.groups)
        return await asyncio.open_unix_connection(sock=link)


async def inward(reader: asyncio.StreamReader, outgoing: Outgoing) -> None:
    """From the host to the container, until either has enough."""
    while not outgoing.gone and (data := await reader.read(_CHUNK)):
        await outgoing.write(data)
    outgoing.end()
    await outgoing.delivered()


async def outward(incoming: Incoming, writer: asyncio.StreamWriter) -> None:
    """From the container to the host."""
    while data := await incoming.read():
        writer.write(data)
        await writer.drain()
        incoming.consumed(len(data))
    incoming.end_consumed()
    writer.write_eof()
