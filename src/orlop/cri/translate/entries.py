"""Lists as bytes: each entry is encoded once and kept for as long as its record is unchanged.

A list message of protobuf whose only field is a repeated message is nothing but its entries one
after the other, each behind the field's tag and its length. Thousands of entries are listed many
times between two changes (the kubelet relists every second), so that joining bytes is most of what
a list costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message


class Identified(Protocol):
    """A record: replaced as a whole when anything changes."""

    @property
    def id(self) -> str:
        """Its key."""
        ...


R = TypeVar("R", bound=Identified)

PAGE_BYTES = 1 << 20
"""Size at which a streamed list's message is sent."""

_TAG = b"\x0a"  # field 1, length-delimited
_SLACK = 64


class Entries(Generic[R]):
    """Encodes records as entries of the repeated field number 1 of a list message."""

    def __init__(self, build: Callable[[R], Message]) -> None:
        self._build = build
        self._known: dict[str, tuple[R, bytes]] = {}

    def encode(self, records: Sequence[R], *, complete: bool) -> bytes:
        """The list message with these records; ``complete`` when they are all there are."""
        return b"".join(self._encoded(records, complete))

    def pages(self, records: Sequence[R], *, complete: bool) -> Iterator[bytes]:
        """The same list as a sequence of messages of about :data:`PAGE_BYTES`, none empty."""
        return paged(self._encoded(records, complete))

    def _encoded(self, records: Sequence[R], complete: bool) -> list[bytes]:
        known = self._known
        result = []
        for record in records:
            entry = known.get(record.id)
            if entry is None or entry[0] is not record:
                entry = record, framed(self._build(record).SerializeToString())
                # Only what a complete list brings is kept, for only such a list shows what is gone.
                if complete:
                    known[record.id] = entry
            result.append(entry[1])
        if complete and len(known) > len(records) + _SLACK:
            self._known = {record.id: known[record.id] for record in records}
        return result


def framed(message: bytes) -> bytes:
    """``message`` as the value of field 1."""
    length = len(message)
    size = bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return _TAG + bytes(size) + message


def paged(entries: Iterable[bytes]) -> Iterator[bytes]:
    """Join framed entries into messages of about :data:`PAGE_BYTES`, none of them empty."""
    page: list[bytes] = []
    size = 0
    for entry in entries:
        page.append(entry)
        size += len(entry)
        if size >= PAGE_BYTES:
            yield b"".join(page)
            page, size = [], 0
    if page:
        yield b"".join(page)
