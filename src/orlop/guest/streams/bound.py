"""Sockets of containers for the host: it hears which there are, and its connections are joined to them.

A container binds them in a volume that the guest has for that. Its directory is watched, and the host is
told of all sockets in it whenever that changes: it listens in their stead, and each connection that it gets
is made here once more.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from orlop.guest.loop import IN
from orlop.guest.streams.connect import SocketStream
from orlop.guest.streams.table import Streaming
from orlop.linux import syscalls
from orlop.wire.messages import MAX_BOUND, Dial, Event, Listening, Refused
from orlop.wire.values import BoundSocket

_CHANGES = (
    syscalls.IN_ATTRIB
    | syscalls.IN_MOVED_FROM
    | syscalls.IN_MOVED_TO
    | syscalls.IN_CREATE
    | syscalls.IN_DELETE
)
_SETTLING = 0.005
"""Seconds between the first word of a change and the look at it: a server binds, and sets the mode then."""

_MOST_LOOKED_AT = 1024
_CODES = {errno.EAGAIN: "unavailable", errno.ECONNREFUSED: "failed_precondition"}


class BoundSockets:
    """The sockets in all watched volumes. ``emit`` tells the host, but not of ``foreign`` ones."""

    def __init__(
        self,
        streaming: Streaming,
        emit: Callable[[Event], object],
        foreign: Callable[[os.stat_result], bool],
    ) -> None:
        self._streaming = streaming
        self._emit = emit
        self._foreign = foreign
        self._places: dict[str, str] = {}
        self._told: dict[str, tuple[BoundSocket, ...]] = {}
        self._file = -1
        self._due = False

    def watch(self, volume: str, place: str) -> None:
        """Tell of the sockets in the directory ``place``, which the volume is. Raises OSError."""
        if self._file < 0:
            self._file = syscalls.inotify()
            self._streaming.loop.watch(self._file, IN, self._on_news)
        syscalls.inotify_watch(self._file, place, _CHANGES)
        self._places[volume] = place
        self._told[volume] = ()

    def resume(self) -> None:
        """A daemon is there, and knows of none: it hears of all."""
        for volume, place in self._places.items():
            self._told[volume] = self._sockets_in(place)
            self._emit(Listening(id=volume, sockets=self._told[volume]))

    def dial(self, request: Dial) -> None:
        """See :class:`messages.Dial`. Raises Refused."""
        place = self._places.get(request.id)
        if place is None:
            raise Refused("not_found", f"this VM holds no volume {request.id} with sockets")
        streaming, stream = self._streaming, request.stream
        streaming.claim(stream)
        link = _connected(place, request.name)
        streaming.table[stream] = SocketStream(
            streaming.loop, streaming.send, stream, link, lambda: streaming.forget(stream)
        )

    def _on_news(self, events: int) -> None:
        with suppress(BlockingIOError):
            while os.read(self._file, 65536):
                pass
        if not self._due:
            self._due = True
            self._streaming.loop.call_later(_SETTLING, self._look)

    def _look(self) -> None:
        self._due = False
        for volume, place in self._places.items():
            found = self._sockets_in(place)
            if found != self._told[volume]:
                self._told[volume] = found
                self._emit(Listening(id=volume, sockets=found))

    def _sockets_in(self, place: str) -> tuple[BoundSocket, ...]:
        found: list[BoundSocket] = []
        with suppress(OSError), os.scandir(place) as listing:
            for count, entry in enumerate(listing):
                if count >= _MOST_LOOKED_AT or len(found) >= MAX_BOUND:
                    break
                with suppress(OSError):  # it has gone again
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISSOCK(status.st_mode) or not entry.name.isprintable():
                        continue
                    if not self._foreign(status):
                        mode = stat.S_IMODE(status.st_mode) & 0o777
                        found.append(
                            BoundSocket(name=entry.name, mode=mode, uid=status.st_uid, gid=status.st_gid)
                        )
        return tuple(sorted(found, key=lambda one: one.name))


def _connected(place: str, name: str) -> socket.socket:
    """A connection to the socket of that name. Raises Refused."""
    opened: list[int] = []
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        opened.append(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        opened.append(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened[0]))
        if not stat.S_ISSOCK(os.fstat(opened[1]).st_mode):
            raise Refused("not_found", f"{name} is no socket")
        link.connect(f"/proc/self/fd/{opened[1]}")
    except OSError as error:
        link.close()
        code = _CODES.get(error.errno or 0, "not_found")
        raise Refused(code, f"cannot connect to {name}: {error.strerror}") from error
    except BaseException:
        link.close()
        raise
    finally:
        for one in opened:
            os.close(one)
    return link
