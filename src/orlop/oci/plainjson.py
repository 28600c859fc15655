"""JSON by the interpreter's own reader and writer, without the package around them.

That package imports regular expressions, and those take longer than all else that a call of ``orlop-oci``
does. What the reader does not understand is given to the package, which says in its own words what is wrong.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPACE = " \t\n\r"


class _Plainly:
    """How to read: into what Python has for each of JSON's kinds."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


_read = make_scanner(_Plainly)  # type: ignore[arg-type]
_write = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def read(text: str) -> Any:
    """What ``text`` says. Raises ValueError."""
    try:
        value, end = _read(text, len(text) - len(text.lstrip(_SPACE)))
    except StopIteration:
        return _complain(text)
    return _complain(text) if text[end:].strip(_SPACE) else value


def written(value: Any) -> str:
    """``value`` as JSON, in one line of ASCII."""
    return "".join(_write(value, 0))


def _complain(text: str) -> Any:
    import json

    return json.loads(text)
