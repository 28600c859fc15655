"""Word of out-of-memory kills: the kernel touches a cgroup's memory.events, inotify(7) tells."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from orlop.guest.loop import IN, Loop
from orlop.linux import syscalls

_EVENT = struct.Struct("=iIII")


class OomWatch:
    """Calls back when memory.events of a watched cgroup changes."""

    def __init__(self, loop: Loop) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._fd = syscalls.inotify()
        loop.watch(self._fd, IN, self._on_ready)

    def add(self, path: str, callback: Callable[[], None]) -> int:
        """Watch the cgroup directory ``path``; returns the number to :meth:`remove`, -1 if it cannot be."""
        try:
            watch = syscalls.inotify_watch(self._fd, f"{path}/memory.events", syscalls.IN_MODIFY)
        except OSError:
            return -1
        self._callbacks[watch] = callback
        return watch

    def remove(self, watch: int) -> None:
        """Stop watching. Idempotent."""
        if self._callbacks.pop(watch, None) is not None:
            syscalls.inotify_unwatch(self._fd, watch)

    def _on_ready(self, events: int) -> None:
        data = os.read(self._fd, 65536)
        position = 0
        while position < len(data):
            watch, _, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size + length
            callback = self._callbacks.get(watch)
            if callback is not None:
                callback()
