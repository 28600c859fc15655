"""The base of the immutable values that rooms hand to each other and keep in files."""

from __future__ import annotations

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Immutable, built by keywords; what is at its default is not written to files."""
