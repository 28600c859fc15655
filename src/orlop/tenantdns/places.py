"""Sockets in network namespaces: made there once, used from here."""

from __future__ import annotations

import ipaddress
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orlop.host import netns

TOGETHER: Final = 8
"""Sockets that one visit to a namespace makes."""
_QUEUED: Final = 128
_BUFFER: Final = 1 << 20
"""Bytes of questions that wait."""


def family(address: str) -> socket.AddressFamily:
    """That of an address. Raises ValueError for what is none."""
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


class SocketSupply:
    """New datagram and stream sockets of a namespace, each for one question: none has had its port before."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._spare: dict[tuple[int, int], deque[socket.socket]] = {}

    async def take(self, address: str, kind: socket.SocketKind) -> socket.socket:
        """A socket that can be connected with ``address``; the caller closes it. Raises NotFound, OSError."""
        number = family(address)
        spare = self._spare.setdefault((number, kind), deque())
        if not spare:
            spare.extend(await _made(self._place, lambda: _several(number, kind)))
        return spare.popleft()

    def close(self) -> None:
        """Close those that nobody has taken. Idempotent."""
        for spare in self._spare.values():
            _close(spare)
            spare.clear()


async def listen(place: Path, address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A datagram and a listening stream socket, bound in a namespace. Raises NotFound, OSError."""

    def both() -> list[socket.socket]:
        made: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                one = socket.socket(socket.AF_INET, kind)
                made.append(one)
                one.setblocking(False)
                if kind == socket.SOCK_STREAM:
                    # Connections of a predecessor may still be ending.
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                else:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                one.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    one.listen(_QUEUED)
        except BaseException:
            _close(made)
            raise
        return made

    datagrams, streams = await _made(place, both)
    return datagrams, streams


def _several(number: socket.AddressFamily, kind: socket.SocketKind) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for _ in range(TOGETHER):
            one = socket.socket(number, kind)
            made.append(one)
            one.setblocking(False)
    except BaseException:
        _close(made)
        raise
    return made


async def _made(place: Path, make: Callable[[], list[socket.socket]]) -> list[socket.socket]:
    return await netns.within(place, make, unwanted=_close)


def _close(sockets: deque[socket.socket] | list[socket.socket]) -> None:
    for one in sockets:
        one.close()
