"""Hearing of changes to directories and files, through two inotify descriptors for the whole daemon.

A user may have few of them (fs.inotify.max_user_instances is 128 on many hosts), but watches by the thousand.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from orlop.linux import syscalls

_EVENT = struct.Struct("=iIII")
_BUFFER = 64 << 10
_CHANGES = (
    syscalls.IN_MODIFY
    | syscalls.IN_ATTRIB
    | syscalls.IN_CLOSE_WRITE
    | syscalls.IN_MOVED_FROM
    | syscalls.IN_MOVED_TO
    | syscalls.IN_CREATE
    | syscalls.IN_DELETE
)
_NAMES = (
    syscalls.IN_ATTRIB
    | syscalls.IN_MOVED_FROM
    | syscalls.IN_MOVED_TO
    | syscalls.IN_CREATE
    | syscalls.IN_DELETE
    | syscalls.IN_ONESHOT
)


class Watcher:
    """Calls back when something changes. Make it where an event loop runs; :meth:`close` releases it.

    With ``once`` it hears of names alone, and calls once for each watch, which is over then: however much
    happens in a directory, who watches it decides how often that costs something.
    """

    def __init__(self, *, once: bool = False) -> None:
        self._once = once
        self._file = -1
        self._calls: dict[int, list[Callable[[], None]]] = {}

    def watch(self, path: str, changed: Callable[[], None]) -> int:
        """Call ``changed`` after a change of the file ``path``, or of what is in the directory ``path``.

        More than one change may be one call, which must not block. Returns the number for :meth:`forget`.
        Raises OSError, with ENOSPC when the host allows no more watches.
        """
        if self._file < 0:
            self._file = syscalls.inotify()
            asyncio.get_running_loop().add_reader(self._file, self._on_news)
        number = syscalls.inotify_watch(self._file, path, _NAMES if self._once else _CHANGES)
        self._calls.setdefault(number, []).append(changed)
        return number

    def forget(self, number: int, changed: Callable[[], None]) -> None:
        """Call it no more. Idempotent."""
        calls = self._calls.get(number, [])
        if changed in calls:
            calls.remove(changed)
            if not calls:
                del self._calls[number]
                syscalls.inotify_unwatch(self._file, number)

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        if self._file >= 0:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
            self._file = -1
        self._calls.clear()

    def _on_news(self) -> None:
        news = b""
        with suppress(BlockingIOError):
            news = os.read(self._file, _BUFFER)
        told: set[int] = set()
        position = 0
        while position < len(news):
            number, mask, _, length = _EVENT.unpack_from(news, position)
            position += _EVENT.size + length
            if mask & syscalls.IN_Q_OVERFLOW:
                told |= self._calls.keys()
            told.add(number)
        for number in told:
            calls = self._calls.pop(number, ()) if self._once else self._calls.get(number, ())
            for changed in list(calls):
                changed()
