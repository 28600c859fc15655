"""Sockets of the host in containers: the host hears of who connects to one, and joins them to a stream.

The guest listens at a place of its own, and that is mounted where the container expects the host's socket. A
bounded number is served at a time; others wait as they would for a server that is busy, and all do while no
daemon listens.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from orlop.guest import paths
from orlop.guest.loop import IN
from orlop.guest.streams.connect import SocketStream
from orlop.guest.streams.table import Streaming
from orlop.wire.messages import Accept, Called, Event, Refused
from orlop.wire.values import GuestMount

MOST = 64
"""Connections at a time, of all containers."""

_BACKLOG = 64
_PEERGROUPS = 59  # SO_PEERGROUPS of asm-generic/socket.h
_MOST_GROUPS = 64


@dataclass(frozen=True)
class _Door:
    """A socket that listens for the processes of a container, its ``owner``."""

    link: socket.socket
    owner: str
    name: str
    path: str


class HostSockets:
    """The sockets of all containers, and who has connected to them. ``emit`` tells the host."""

    def __init__(self, streaming: Streaming, emit: Callable[[Event], object]) -> None:
        self._streaming = streaming
        self._emit = emit
        self._doors: list[_Door] = []
        self._waiting: dict[int, tuple[socket.socket, Called]] = {}
        self._joined = 0
        self._made = 0
        self._calls = 0

    def listen(self, owner: str, mount: GuestMount) -> str:
        """Have a socket for a container; returns its path below :data:`paths.SOCKETS`. Raises Refused."""
        self._made += 1
        place = str(self._made)
        path = f"{paths.SOCKETS}/{place}"
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._doors.append(_Door(link, owner, mount.volume, path))
        try:
            os.makedirs(paths.SOCKETS, mode=0o755, exist_ok=True)
            link.bind(path)
            os.chown(path, mount.uid, mount.gid)
            os.chmod(path, mount.mode & 0o777)
            link.listen(_BACKLOG)
        except OSError as error:
            raise Refused(
                "internal", f"no socket can be made for {mount.target}: {error.strerror}"
            ) from error
        self._watch()
        return place

    def release(self, owner: str) -> None:
        """A container is gone. Idempotent."""
        for door in [door for door in self._doors if door.owner == owner]:
            self._doors.remove(door)
            self._streaming.loop.unwatch(door.link.fileno())
            door.link.close()
            with suppress(OSError):
                os.unlink(door.path)
        for call, (link, called) in list(self._waiting.items()):
            if called.id == owner:
                del self._waiting[call]
                link.close()
        self._watch()

    def accept(self, request: Accept) -> None:
        """See :class:`messages.Accept`. Raises Refused."""
        streaming, stream = self._streaming, request.stream
        if request.call not in self._waiting:
            raise Refused("not_found", f"nobody waits with call {request.call}")
        if stream:
            streaming.claim(stream)
        link, _ = self._waiting.pop(request.call)
        if not stream:
            link.close()
            self._watch()
            return
        self._joined += 1
        streaming.table[stream] = SocketStream(
            streaming.loop, streaming.send, stream, link, lambda: streaming.forget(stream, self._ended)
        )

    def pause(self) -> None:
        """No daemon: who connects waits."""
        self._watch()

    def resume(self) -> None:
        """A daemon is there: it hears of those who wait, whether another one did or not."""
        for _, called in self._waiting.values():
            self._emit(called)
        self._watch()

    def _ended(self) -> None:
        self._joined -= 1
        self._watch()

    def _watch(self) -> None:
        """Take connections as long as there is room for one, and somebody to tell."""
        room = self._streaming.flowing and len(self._waiting) + self._joined < MOST
        loop = self._streaming.loop
        for door in self._doors:
            if room:
                loop.watch(door.link.fileno(), IN, partial(self._on_call, door))
            else:
                loop.unwatch(door.link.fileno())

    def _on_call(self, door: _Door, events: int) -> None:
        try:
            link, _ = door.link.accept()
        except OSError:  # it has gone again
            return
        _, uid, gid = struct.unpack("=iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self._calls += 1
        called = Called(
            id=door.owner, socket=door.name, call=self._calls, uid=uid, gid=gid, groups=_groups(link)
        )
        self._waiting[called.call] = (link, called)
        self._emit(called)
        self._watch()


def _groups(link: socket.socket) -> tuple[int, ...]:
    try:
        data = link.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # more than that; the host goes by the first one then
        return ()
    return struct.unpack(f"={len(data) // 4}I", data)
