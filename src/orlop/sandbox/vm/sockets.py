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
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import OrlopError
from orlop.host import unixsockets
from orlop.host.tasks import Tasks, together
from orlop.sandbox.spec import Mount
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HostSocket
from orlop.sandbox.vm.streams import Incoming, Outgoing
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


@dataclass(frozen=True)
class FoundSocket:
    """A socket of the host that a container has at ``target``, with the mode and the owner of its file."""

    target: str
    held: HostSocket
    mode: int
    uid: int
    gid: int


def find(mounts: Sequence[Mount], targets: Collection[str]) -> tuple[FoundSocket, ...]:
    """The sockets among these volumes of a container, and those that lie in them where it has nothing else
    (``targets`` are all that it has). Blocks.

    Of a directory only the top is looked at, and what is there now: a socket that is made later is seen as a
    file. What cannot be looked at has none: its mount says why.
    """
    found: list[FoundSocket] = []
    for index, mount in enumerate(mounts):
        path = os.path.realpath(mount.host_path)
        with suppress(OSError):
            mode = Path(path).lstat().st_mode
            if stat.S_ISSOCK(mode):
                found.append(_socket(mount.container_path, f"{index}", path))
            elif stat.S_ISDIR(mode):
                for number, name in enumerate(_sockets_in(path)):
                    target = f"{mount.container_path.rstrip('/')}/{name}"
                    with suppress(FileNotFoundError):  # it has gone; the others have not
                        if target not in targets:
                            found.append(_socket(target, f"{index}-{number}", f"{path.rstrip('/')}/{name}"))
    return tuple(found[:_MOST_FOUND])


def _socket(target: str, name: str, path: str) -> FoundSocket:
    status = Path(path).lstat()
    return FoundSocket(
        target=target,
        held=HostSocket(id=name, path=path),
        mode=stat.S_IMODE(status.st_mode) & 0o777,
        uid=status.st_uid,
        gid=status.st_gid,
    )


def _sockets_in(directory: str) -> list[str]:
    names = []
    with os.scandir(directory) as listing:
        for count, entry in enumerate(listing):
            if count >= _MOST_LOOKED_AT:
                break
            # The kind comes with the name: on a file system across the network nothing else is asked for.
            if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode) and entry.name.isprintable():
                    names.append(entry.name)
    return sorted(names)


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
