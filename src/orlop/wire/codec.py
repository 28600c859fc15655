"""Checked translation between frozen dataclasses and JSON.

A message is a frozen dataclass; its annotations say what each field may hold, and nothing that
does not fit gets past :func:`decode`. Limits are part of the annotation
(``Annotated[int, Range(1, 65535)]``); without one the defaults below apply, so no field is
ever unbounded. ``bytes`` travel as base64. Unknown keys are ignored, so a newer side may say more.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MAX_TEXT = 1 << 20
MAX_BYTES = 3 << 20
MAX_ITEMS = 4096
MAX_DEPTH = 32
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class ProtocolError(Exception):
    """The peer sent something that the protocol does not allow."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of an int, both inclusive."""

    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Length:
    """Bounds of the length of a str, bytes or tuple, both inclusive."""

    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class AbsolutePath:
    """A str that starts with ``/``, without NUL."""


@dataclasses.dataclass(frozen=True)
class RelativePath:
    """A str that names something below a directory: no leading ``/``, no ``..``, no NUL."""


class _Unfit(Exception):
    """A value is not what it should be. ``place`` is where it is, innermost first: put together only when
    something is wrong, since it would cost as much as all the rest."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.place: list[str] = []


Decoder = Callable[[Any], Any]

_decoders: dict[Any, Decoder] = {}


def _unfit(expected: str, value: object) -> _Unfit:
    return _Unfit(f"expected {expected}, got {type(value).__name__} {str(value)[:80]!r}")


def _check_length(value: str | bytes | list[Any], low: int, high: int) -> None:
    if not low <= len(value) <= high:
        raise _Unfit(f"length {len(value)} is not in {low}..{high}")


def _int(extras: tuple[Any, ...]) -> Decoder:
    bounds = next((e for e in extras if isinstance(e, Range)), Range(0, (1 << 63) - 1))
    low, high = bounds.low, bounds.high

    def decode_int(value: Any) -> int:
        if type(value) is not int:
            raise _unfit("an integer", value)
        if not low <= value <= high:
            raise _Unfit(f"{value} is not in {low}..{high}")
        return value

    return decode_int


def _str(extras: tuple[Any, ...]) -> Decoder:
    length = next((e for e in extras if isinstance(e, Length)), Length(0, MAX_TEXT))
    low, high = length.low, length.high
    absolute = any(isinstance(e, AbsolutePath) for e in extras)
    relative = any(isinstance(e, RelativePath) for e in extras)

    def decode_str(value: Any) -> str:
        if type(value) is not str:
            raise _unfit("a string", value)
        if not low <= len(value) <= high:
            _check_length(value, low, high)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _unfit("text without lone surrogates", value) from None
        if absolute or relative:
            if "\0" in value or value.startswith("/") is relative:
                raise _unfit("an absolute path" if absolute else "a relative path", value)
            if relative and ".." in value and ".." in value.split("/"):
                raise _unfit("a path without ..", value)
        return value

    return decode_str


def _bytes(extras: tuple[Any, ...]) -> Decoder:
    length = next((e for e in extras if isinstance(e, Length)), Length(0, MAX_BYTES))

    def decode_bytes(value: Any) -> bytes:
        if type(value) is not str:
            raise _unfit("base64 text", value)
        try:
            decoded = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _Unfit("not base64") from error
        _check_length(decoded, length.low, length.high)
        return decoded

    return decode_bytes


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _unfit("true or false", value)
    return value


def _float(value: Any) -> float:
    if type(value) not in (int, float) or value != value or abs(value) > 1e18:
        raise _unfit("a number", value)
    return float(value)


def _tuple(arguments: tuple[Any, ...], extras: tuple[Any, ...]) -> Decoder:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        length = next((e for e in extras if isinstance(e, Length)), Length(0, MAX_ITEMS))
        item = _decoder(arguments[0])

        def decode_list(value: Any) -> tuple[Any, ...]:
            if type(value) is not list:
                raise _unfit("a list", value)
            _check_length(value, length.low, length.high)
            found: list[Any] = []
            try:
                for entry in value:
                    found.append(item(entry))
            except _Unfit as unfit:
                unfit.place.append(f"[{len(found)}]")
                raise
            return tuple(found)

        return decode_list
    items = tuple(_decoder(argument) for argument in arguments)

    def decode_tuple(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(items):
            raise _unfit(f"a list of {len(items)}", value)
        found: list[Any] = []
        try:
            for decoder, entry in zip(items, value, strict=True):
                found.append(decoder(entry))
        except _Unfit as unfit:
            unfit.place.append(f"[{len(found)}]")
            raise
        return tuple(found)

    return decode_tuple


def _literal(choices: tuple[Any, ...]) -> Decoder:
    def decode_literal(value: Any) -> Any:
        if type(value) is not str or value not in choices:
            raise _unfit(f"one of {', '.join(choices)}", value)
        return value

    return decode_literal


def _optional(inner: Any) -> Decoder:
    decoder = _decoder(inner)

    def decode_optional(value: Any) -> Any:
        return None if value is None else decoder(value)

    return decode_optional


def _dataclass(cls: Any) -> Decoder:
    hints = typing.get_type_hints(cls, include_extras=True)
    decoders: dict[str, Decoder] = {}
    defaults: dict[str, Any] = {}
    required: list[str] = []
    for field in dataclasses.fields(cls):
        decoders[field.name] = _decoder(hints[field.name])
        if field.default is dataclasses.MISSING:
            required.append(field.name)
        else:
            defaults[field.name] = field.default
    check = getattr(cls, "__post_init__", None)

    def decode_object(value: Any) -> Any:
        if type(value) is not dict:
            raise _unfit("an object", value)
        arguments = defaults.copy()
        for name, item in value.items():
            decoder = decoders.get(name)
            if decoder is not None:
                try:
                    arguments[name] = decoder(item)
                except _Unfit as unfit:
                    unfit.place.append(f".{name}")
                    raise
        for name in required:
            if name not in arguments:
                raise _Unfit(f"{name} is missing")
        # The constructor of a frozen class sets each field by itself, and takes longer than all the checks.
        made = object.__new__(cls)
        made.__dict__.update(arguments)
        if check is not None:
            try:
                check(made)
            except ValueError as error:
                raise _Unfit(str(error)) from error
        return made

    return decode_object


def _build(kind: Any) -> Decoder:
    extras: tuple[Any, ...] = ()
    if typing.get_origin(kind) is typing.Annotated:
        kind, *rest = typing.get_args(kind)
        extras = tuple(rest)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _tuple(typing.get_args(kind), extras)
    if origin is typing.Literal:
        return _literal(typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in typing.get_args(kind) if a is not type(None))
        return _optional(inner)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    simple: dict[Any, Decoder] = {bool: _bool, float: _float}
    scalar: dict[Any, Callable[[tuple[Any, ...]], Decoder]] = {int: _int, str: _str, bytes: _bytes}
    if kind in simple:
        return simple[kind]
    return scalar[kind](extras)


def _decoder(kind: Any) -> Decoder:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = _build(kind)
    return decoder


def decode(cls: type[T], value: object, where: str = "") -> T:
    """Build ``cls`` from parsed JSON; :class:`ProtocolError` names the first field that does not fit."""
    try:
        result: T = _decoder(cls)(value)
    except _Unfit as unfit:
        place = "".join((where or cls.__name__, *reversed(unfit.place)))
        raise ProtocolError(f"{place}: {unfit}") from unfit
    return result


def encode(value: Any) -> Any:
    """Turn a message into what :mod:`json` can write. Fields that hold their default are left out."""
    if dataclasses.is_dataclass(value):
        out = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.default is dataclasses.MISSING or item != field.default:
                out[field.name] = encode(item)
        return out
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def dumps(value: Any) -> bytes:
    """JSON bytes: ASCII only, so a payload can never hold the framing's magic."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def loads(payload: bytes) -> dict[str, Any]:
    """Parse a JSON object; :class:`ProtocolError` for anything else, or nesting that is too deep."""
    if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH:
        _check_depth(payload)
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"payload is not JSON: {error}") from error
    if type(value) is not dict:
        raise ProtocolError(f"payload: {_unfit('an object', value)}")
    return value


def _check_depth(payload: bytes) -> None:
    # The C scanner recurses per level; what it is given must be shallow before it starts. Without what is
    # escaped each quote begins or ends a string; this must take no longer the more there are of them.
    pieces = payload.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    depth = 0
    for bracket in b"".join(pieces[::2]).translate(None, _NO_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ProtocolError(f"payload is nested deeper than {MAX_DEPTH}")
        else:
            depth -= 1
