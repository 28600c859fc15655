"""What a container has changed in its image, told on a stream by a process of its own."""

from __future__ import annotations

import os

from orlop.guest.containers.container import LiveContainer
from orlop.guest.containers.volumes import Work
from orlop.guest.streams.table import Streaming
from orlop.linux.changes import changes, packed
from orlop.wire.messages import Refused

_PIECE = 32 << 10


def listing(entry: LiveContainer, streaming: Streaming, stream: int) -> Work:
    """The work of telling it on ``stream``, which ends with it."""
    if not entry.upper:
        text = f"container {entry.spec.id} has no image that it could have changed"
        raise Refused("failed_precondition", text)
    upper, layers = entry.upper, entry.layers
    streaming.claim(stream)
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def finish(problem: Refused | None) -> None:
        # The process has another descriptor of it: the end comes when both are closed.
        os.close(writer)
        if problem is not None:
            raise problem

    streaming.output(stream, reader, lambda: None)
    return Work(lambda: _tell(upper, layers, writer), finish)


def _tell(upper: str, layers: tuple[str, ...], writer: int) -> None:
    piece = bytearray()
    for change in changes(upper, layers):
        piece += packed(change)
        if len(piece) >= _PIECE:
            _write(writer, piece)
            piece.clear()
    _write(writer, piece)


def _write(writer: int, piece: bytearray) -> None:
    left = memoryview(bytes(piece))
    while left:
        left = left[os.write(writer, left) :]
