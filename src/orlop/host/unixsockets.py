"""Connections to Unix sockets of the host on behalf of somebody else."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable

from orlop.host import threads
from orlop.linux import syscalls

_PATIENCE = 5


async def connect(path: str, *, uid: int, gid: int, groups: tuple[int, ...]) -> socket.socket:
    """A stream to the socket at ``path``, made with these ids: they are what the server is told of its client
    (SO_PEERCRED), and who may connect is decided by them. No part of the path may be a symbolic link.

    Raises OSError: also for what is no socket, one of another type, or a server that does not take the
    connection within seconds.
    """
    if uid == 0:
        return await threads.call(_connect, path, lambda: None)

    def as_user() -> socket.socket:
        # Of this thread alone, which ends then. The real ids stay: nobody else's process may signal it.
        return _connect(path, lambda: syscalls.become_for_now(uid, gid, groups))

    return await threads.in_own_thread(as_user, name="orlop-connect", unwanted=lambda link: link.close())


def _connect(path: str, become: Callable[[], None]) -> socket.socket:
    # Whoever can write to a directory above could put something else there between a look and the connection.
    # And whoever was given the socket need not be allowed to come there by the host's own directories.
    place = syscalls.open_without_links(path, os.O_PATH)
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
        become()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Not that of Python, with which a server that is busy fails at once.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", _PATIENCE, 0))
            link.connect(f"/proc/self/fd/{place}")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 0, 0))
        except BaseException:
            link.close()
            raise
        return link
    finally:
        os.close(place)
