"""The first frame that either side sends, and what a guest can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from orlop.wire.codec import Length, Range, decode, dumps, encode, loads
from orlop.wire.values import Name, StreamId

VERSION = 2
VOLUMES, BLOCKS, PROPAGATION = "volumes", "blocks", "propagation"
SOCKETS, LISTENERS = "sockets", "listeners"
EXEC_AS, FREEZE = "exec-as", "freeze"
FILE_SYSTEMS, READY_LAYERS = "file-systems", "ready-layers"
MANY_VOLUMES, XFS, CHANGES, ARCHIVES = "many-volumes", "xfs", "changes", "archives"
SHOWN_SOCKETS = "shown-sockets"
FEATURES = (
    VOLUMES, BLOCKS, PROPAGATION, SOCKETS, EXEC_AS, FREEZE, FILE_SYSTEMS, READY_LAYERS, LISTENERS,
    MANY_VOLUMES, XFS, CHANGES, ARCHIVES, SHOWN_SOCKETS,
)  # fmt: skip
"""What a guest can do that one of the same version before it could not: see :class:`Hello`."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The first frame either side sends after the preamble. Who names no version speaks the first.

    ``next_stream`` of the guest is the lowest stream that was never used, ``features`` what it can do.
    """

    version: Annotated[int, Range(1, 1000)] = 1
    next_stream: StreamId = 1
    features: Annotated[tuple[Name, ...], Length(0, 64)] = ()


def pack_hello(hello: Hello) -> bytes:
    """Payload of a HELLO frame."""
    return dumps(encode(hello))


def unpack_hello(payload: bytes) -> Hello:
    """The peer's hello. It is the host that decides whether it can speak the guest's version."""
    return decode(Hello, loads(payload))
