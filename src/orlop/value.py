"""The base of the immutable values that rooms hand to each other and keep in files."""

from __future__ import annotations

from typing import Final

import msgspec

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What :mod:`msgspec` raises for bytes that are not the document they should be. Text that is not UTF-8 and
what is nested too deeply are not among its own errors."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Immutable, built by keywords; what is at its default is not written to files."""
