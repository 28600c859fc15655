"""How commands print: plain tables that scripts can cut, JSON, and a console for progress."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console


@functools.cache
def console() -> Console:
    """Where results for people go: stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@functools.cache
def errors() -> Console:
    """Where progress and failures go: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr for what takes a while, where that is a terminal; it is told bytes done and in all."""
    if not shown or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors(), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they need to be.

    What an image or a container has put into a cell does nothing to the terminal.
    """
    lines = [tuple(header), *(tuple(readable(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def readable(text: str) -> str:
    """A text of somebody else's that does nothing to the terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def print_json(value: Any) -> None:
    """A value as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def message_to_dict(message: Message) -> dict[str, Any]:
    """A CRI message with the names of its .proto file; JSON in ``info`` is unpacked."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    for key, text in (found.get("info") or {}).items():
        try:
            found["info"][key] = json.loads(text)
        except ValueError:
            continue
    return found


def print_message(message: Message) -> None:
    """A CRI message as JSON."""
    print_json(message_to_dict(message))
