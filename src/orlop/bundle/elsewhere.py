"""Refusals of what no VM has, in the words of callers who know runtimes and no handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orlop.errors import FailedPrecondition
from orlop.sandbox.rules import OutsideVm


@contextmanager
def saying(remedy: str) -> Iterator[None]:
    """End the message of what is refused in the block for being the host's with ``remedy``."""
    try:
        yield
    except OutsideVm as error:
        raise FailedPrecondition(f"{error.reason}; {remedy}") from error
