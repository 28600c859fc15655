"""As much of protobuf's encoding as the command and the keeper need: a library takes long to import.

See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

# The name tells type checkers: importing these would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def text(number: int, value: str | bytes) -> bytes:
    """The field ``number`` that holds a string, bytes or a message; nothing for an empty one."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _BYTES) + varint(len(data)) + data if data else b""


def number(field: int, value: int) -> bytes:
    """The field that holds a number that is not negative; nothing for 0."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def varint(value: int) -> bytes:
    """A number as such."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message by their numbers. Raises ValueError for what is none."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if key >> 3 == 0 or place + length > len(data):
            raise ValueError("a field that is longer than its message")
        yield key >> 3, data[place : place + length]
        place += length


def strings(data: bytes, wanted: Container[int]) -> dict[int, str]:
    """The fields with those numbers, which are strings; the last of each. What others hold is not looked at.

    Raises ValueError.
    """
    found = fields(data)
    return {field: value.decode() for field, value in found if isinstance(value, bytes) and field in wanted}


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if place + index >= len(data):
            break
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("a number without an end")
