"""Sockets of the host in containers: the host hears of who connects to one, and joins them to a stream.

The guest listens at a place of its own, and that is mounted where the container expects the host's socket:
into the container when it is made, or over the socket's file in a directory that is shared with the host,
from where the mount reaches the container that has the directory. In a volume of the guest's own it listens
in that: who watches the volume hears of it. A bounded number is served at a time; others wait as they would
for a server that is busy, and all do while no daemon listens.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from orlop.guest import paths
from orlop.guest.loop import IN
from orlop.guest.streams.connect import SocketStream
from orlop.guest.streams.table import Streaming
from orlop.linux import syscalls
from orlop.wire.messages import Accept, Called, Event, Refused, Show
from orlop.wire.values import GuestMount, ShownSocket

MOST = 64
"""Connections at a time, of all containers."""

_BACKLOG = 64
_PEERGROUPS = 59  # SO_PEERGROUPS of asm-generic/socket.h
_MOST_GROUPS = 64


@dataclass(frozen=True)
class _Door:
    """A socket that listens for the processes of a container or of those that have a volume, its ``owner``.

    ``file`` is its file's device and number, ``mount`` the descriptor of what lies over the host's socket, or
    -1; ``share`` and ``shown`` are those of :class:`Show`.
    """

    link: socket.socket
    owner: str
    name: str
    path: str
    file: tuple[int, int]
    share: str = ""
    shown: ShownSocket | None = None
    mount: int = -1


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
        try:
            path = self._new_place()
            link, file = _listening(path, mount.mode, mount.uid, mount.gid)
        except OSError as error:
            raise Refused(
                "internal", f"no socket can be made for {mount.target}: {error.strerror}"
            ) from error
        self._doors.append(_Door(link, owner, mount.volume, path, file))
        self._watch()
        return os.path.basename(path)

    def show(self, request: Show, place: str) -> None:
        """See :class:`Show`; the directory is at ``place``."""
        wanted = {one.name: one for one in request.sockets}
        for door in list(self._doors):
            if door.shown is None or (door.owner, door.share) != (request.id, request.share):
                continue
            one = wanted.get(door.shown.name)
            # Who watches a volume is to hear of one that was made anew; nobody hears of what is on a share.
            if one is None or (one.made != door.shown.made and not door.share):
                self._close(door)
            else:
                self._doors[self._doors.index(door)] = _changed(door, one)
                del wanted[one.name]
        for one in wanted.values():
            # Its file has gone again, or something else has the name: the host tells of the next change.
            with suppress(OSError):
                self._doors.append(self._shown(request, place, one))
        self._watch()

    def has(self, status: os.stat_result) -> bool:
        """Whether that is the file of one of these sockets."""
        return any(door.file == (status.st_dev, status.st_ino) for door in self._doors)

    def release(self, owner: str) -> None:
        """A container is gone. Idempotent."""
        for door in [door for door in self._doors if door.owner == owner]:
            self._close(door)
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

    def _new_place(self) -> str:
        os.makedirs(paths.SOCKETS, mode=0o755, exist_ok=True)
        self._made += 1
        return f"{paths.SOCKETS}/{self._made}"

    def _shown(self, request: Show, place: str, one: ShownSocket) -> _Door:
        """Have a socket in the directory at ``place``. Raises OSError."""
        path = self._new_place() if request.share else f"{place}/{one.name}"
        link, file = _listening(path, one.mode, one.uid, one.gid)
        name = f"{request.share}/{one.name}" if request.share else one.name
        door = _Door(link, request.id, name, path, file, request.share, one)
        if not request.share:
            return door
        mount = -1
        try:
            mount = syscalls.open_tree(path, recursive=False)
            _lay_over(mount, place, one.name)
        except OSError:
            if mount >= 0:
                os.close(mount)
            link.close()
            os.unlink(path)
            raise
        return replace(door, mount=mount)

    def _close(self, door: _Door) -> None:
        self._doors.remove(door)
        self._streaming.loop.unwatch(door.link.fileno())
        door.link.close()
        if door.mount >= 0:
            # By its descriptor: no path leads there, which a container could have changed.
            with suppress(OSError):
                syscalls.umount(f"/proc/self/fd/{door.mount}", syscalls.MNT_DETACH)
            os.close(door.mount)
        with suppress(OSError):
            found = os.lstat(door.path)
            if (found.st_dev, found.st_ino) == door.file:  # a container may have put its own there
                os.unlink(door.path)

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


def _listening(path: str, mode: int, uid: int, gid: int) -> tuple[socket.socket, tuple[int, int]]:
    """A socket that listens at ``path``, with its file's device and number. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        link.bind(path)
        file = _permit(path, mode, uid, gid)
        link.listen(_BACKLOG)
    except BaseException:
        link.close()
        raise
    return link, file


def _permit(
    path: str, mode: int, uid: int, gid: int, *, only: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Give a file, if it is the ``only`` one, its owner and mode; its device and number. Raises OSError."""
    # By its descriptor: in a volume of theirs containers may put something else there.
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        file = (found.st_dev, found.st_ino)
        if only in (None, file):
            os.chown(f"/proc/self/fd/{place}", uid, gid)
            os.chmod(f"/proc/self/fd/{place}", mode & 0o777)
    finally:
        os.close(place)
    return file


def _changed(door: _Door, one: ShownSocket) -> _Door:
    """The door with the owner and the mode of the host's socket."""
    if door.shown != one:
        with suppress(OSError):  # a container has removed it
            _permit(door.path, one.mode, one.uid, one.gid, only=door.file)
    return replace(door, shown=one)


def _lay_over(mount: int, place: str, name: str) -> None:
    """Put a mount over the file ``name`` below the directory ``place``, where nothing lies over it yet.

    Raises OSError.
    """
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target = syscalls.open_on_mount(directory, name, os.O_PATH)
    finally:
        os.close(directory)
    try:
        syscalls.move_mount_over(mount, target)
    finally:
        os.close(target)


def _groups(link: socket.socket) -> tuple[int, ...]:
    try:
        data = link.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # more than that; the host goes by the first one then
        return ()
    return struct.unpack(f"={len(data) // 4}I", data)
