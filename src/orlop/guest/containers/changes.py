"""What a container has changed in its image, and its files, told on a stream by a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from orlop.guest.containers.container import LiveContainer
from orlop.guest.containers.volumes import Work
from orlop.guest.streams.table import Streaming
from orlop.linux import syscalls
from orlop.linux.changes import changes, mounted_in, packed
from orlop.wire.messages import Changes, Refused

_PIECE = 32 << 10


def telling(entry: LiveContainer, streaming: Streaming, request: Changes) -> Work:
    """The work of telling it on the request's stream, which ends with it."""
    if not entry.upper and request.form != "tree":
        text = f"container {entry.spec.id} has no image that it could have changed"
        raise Refused("failed_precondition", text)
    match request.form:
        case "names":
            parts = partial(_names, entry.upper, entry.layers)
        case "layer":
            parts = partial(_layer, entry.upper, mounted_in(mount.target for mount in entry.spec.mounts))
        case "tree":
            parts = partial(_tree, entry.top)
    streaming.claim(request.stream)
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def tell() -> None:
        for part in parts():
            _write(writer, part)

    def finish(problem: Refused | None) -> None:
        # The process has another descriptor of it: the end comes when both are closed.
        os.close(writer)
        if problem is not None:
            raise problem

    streaming.output(request.stream, reader, lambda: None)
    return Work(tell, finish)


def _names(upper: str, layers: tuple[str, ...]) -> Iterator[bytes]:
    piece = bytearray()
    for change in changes(upper, layers):
        piece += packed(change)
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _layer(upper: str, without: frozenset[bytes]) -> Iterator[bytes]:
    from orlop.linux import packing  # no container of most guests is ever packed

    yield from packing.layer(os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), without)


def _tree(top: str) -> Iterator[bytes]:
    from orlop.linux import packing

    # Apart from the mount itself, which can go meanwhile.
    yield from packing.tree(
        os.open(f"/proc/self/fd/{syscalls.open_tree(top, recursive=False)}", os.O_RDONLY | os.O_DIRECTORY)
    )


def _write(writer: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(writer, left) :]
