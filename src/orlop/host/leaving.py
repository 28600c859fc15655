"""The end of a command that starts for each call: without what the interpreter does at its end."""

from __future__ import annotations

import os
import sys

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End with ``code`` once all is written: the interpreter's own end is a fifth of its time."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue
    os._exit(code)
