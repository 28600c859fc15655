"""Checked getters: what a request's field must be before anything is done with it.

Protobuf has seen to types and UTF-8. What is left are sizes, ranges, characters and enum numbers
nobody knows (proto3 enums are open). Each failure is an InvalidArgument that names the field the
way the .proto spells it; a value is quoted only in part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from orlop.errors import InvalidArgument

T = TypeVar("T")
E = TypeVar("E", bound=int)

MAX_ID = 256
MAX_NAME = 256
MAX_PATH = 4096
MAX_TEXT = 64 << 10
MAX_ITEMS = 4096
MAX_MAP_BYTES = 1 << 20
MAX_COMMAND_BYTES = 1 << 20
MAX_ARGUMENT_BYTES = (128 << 10) - 1
"""Linux takes no longer argument (MAX_ARG_STRLEN, with its terminating zero)."""
MAX_UID = (1 << 32) - 2
MAX_INT64 = (1 << 63) - 1

# A name ends up in file names, in CNI_ARGS (";" separates) and in log lines.
_BAD_IN_NAME = re.compile(r"[\x00-\x1f\x7f/;]")
_BAD_IN_LINE = re.compile(r"[\x00-\x1f\x7f]")
_BAD_IN_WORD = re.compile(r"[\x00-\x20\x7f]")


def excerpt(value: str) -> str:
    """``value`` as it may stand in a message: quoted and short."""
    return repr(value if len(value) <= 64 else f"{value[:61]}...")


def text(value: str, field: str, *, limit: int = MAX_TEXT, required: bool = False) -> str:
    """A string of at most ``limit`` characters without NUL."""
    if required and not value:
        raise InvalidArgument(f"{field} is empty")
    if len(value) > limit:
        raise InvalidArgument(f"{field} is {len(value)} characters long; at most {limit} are allowed")
    if "\0" in value:
        raise InvalidArgument(f"{field} contains a NUL character")
    return value


def identifier(value: str, field: str) -> str:
    """The id, or the beginning of one, of something that exists."""
    return text(value, field, limit=MAX_ID, required=True)


def name(value: str, field: str, *, required: bool = True) -> str:
    """A name of a pod, namespace or container."""
    text(value, field, limit=MAX_NAME, required=required)
    if _BAD_IN_NAME.search(value):
        raise InvalidArgument(f"{field} {excerpt(value)} contains a control character, '/' or ';'")
    return value


def line(value: str, field: str, *, limit: int = MAX_PATH) -> str:
    """Text that is written into a configuration file: no control characters."""
    text(value, field, limit=limit)
    if _BAD_IN_LINE.search(value):
        raise InvalidArgument(f"{field} {excerpt(value)} contains a control character")
    return value


def word(value: str, field: str, *, limit: int = MAX_NAME) -> str:
    """Like :func:`line`, and without spaces; not empty."""
    text(value, field, limit=limit, required=True)
    if _BAD_IN_WORD.search(value):
        raise InvalidArgument(f"{field} {excerpt(value)} contains a space or a control character")
    return value


def path(value: str, field: str, *, required: bool = True) -> str:
    """A path that fits PATH_MAX; whether it is absolute is up to its user."""
    return text(value, field, limit=MAX_PATH, required=required)


def absolute(value: str, field: str, *, required: bool = True) -> str:
    """An absolute path, or "" when it is not required."""
    path(value, field, required=required)
    if value and not value.startswith("/"):
        raise InvalidArgument(f"{field} {excerpt(value)} is not an absolute path")
    return value


def number(value: int, field: str, low: int, high: int) -> int:
    """An integer of ``low`` to ``high``."""
    if not low <= value <= high:
        raise InvalidArgument(f"{field} is {value}; it must be in {low} to {high}")
    return value


def pick(table: Mapping[E, T], value: E, field: str) -> T:
    """What the enum number ``value`` means, if anything."""
    try:
        return table[value]
    except KeyError:
        raise InvalidArgument(f"{field}: enum value {value} is not known or not allowed here") from None


def items(values: Iterable[T], field: str, *, limit: int = MAX_ITEMS) -> tuple[T, ...]:
    """A list of at most ``limit`` items."""
    result = tuple(values)
    if len(result) > limit:
        raise InvalidArgument(f"{field} has {len(result)} items; at most {limit} are allowed")
    return result


def pairs(values: Mapping[str, str], field: str) -> dict[str, str]:
    """Labels, annotations and the like: a bounded map without empty keys or NUL."""
    size = 0
    for key, value in values.items():
        if not key or "\0" in key or "\0" in value:
            raise InvalidArgument(f"{field}: key {excerpt(key)} is empty, or it or its value contains a NUL")
        size += len(key) + len(value)
    if size > MAX_MAP_BYTES:
        raise InvalidArgument(f"{field} is {size} characters large; at most {MAX_MAP_BYTES} are allowed")
    return dict(values)


def command(values: Iterable[str], field: str, *, required: bool = False) -> tuple[str, ...]:
    """A command line that the kernel could take."""
    result = items(values, field)
    if required and not result:
        raise InvalidArgument(f"{field} is empty")
    size = 0
    for index, value in enumerate(result):
        length = len(value.encode())
        if length > MAX_ARGUMENT_BYTES:
            raise InvalidArgument(f"{field}[{index}] is longer than {MAX_ARGUMENT_BYTES} bytes")
        if "\0" in value:
            raise InvalidArgument(f"{field}[{index}] contains a NUL character")
        size += length + 1
    if size > MAX_COMMAND_BYTES:
        raise InvalidArgument(f"{field} is {size} bytes large; at most {MAX_COMMAND_BYTES} are allowed")
    return result
