"""``load``, ``save``, ``import``, ``export``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orlop.cli import output, terminal
from orlop.cli.problems import CliError
from orlop.client import archives, session
from orlop.client.node import Node
from orlop.errors import InvalidArgument

_LISTS = {"CMD": "Cmd", "ENTRYPOINT": "Entrypoint"}
_TEXTS = {"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}
_SETS = {"EXPOSE": "ExposedPorts", "VOLUME": "Volumes"}


class Made(NamedTuple):
    """How an image of a container is to be, and by whom it was made."""

    changes: Sequence[str]
    author: str
    message: str


def settings(changes: Sequence[str]) -> dict[str, Any]:
    """What ``--change`` says in the words of a Dockerfile, as an image configuration has it."""
    found: dict[str, Any] = {}
    for change in changes:
        word, _, rest = change.strip().partition(" ")
        if "=" in word:  # podman's other form
            word, _, rest = change.strip().partition("=")
        word, rest = word.upper(), rest.strip()
        if not rest:
            raise InvalidArgument(f"{change}: write for example --change 'CMD [\"sh\"]'")
        if word in _LISTS:
            found[_LISTS[word]] = _words(rest, change)
        elif word in _TEXTS:
            found[_TEXTS[word]] = rest
        elif word in _SETS:
            found.setdefault(_SETS[word], {}).update({each: {} for each in rest.split()})
        elif word == "ENV":
            found.setdefault("Env", []).extend(f"{key}={value}" for key, value in _pairs(rest, change))
        elif word == "LABEL":
            found.setdefault("Labels", {}).update(_pairs(rest, change))
        else:
            known = ", ".join(sorted({*_LISTS, *_TEXTS, *_SETS, "ENV", "LABEL"}))
            raise InvalidArgument(f"{change}: --change takes {known}")
    return found


def _words(text: str, change: str) -> list[str]:
    if not text.startswith("["):
        return ["/bin/sh", "-c", text]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{change}: this is no list in JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise InvalidArgument(f"{change}: this is no list of words in JSON")
    return found


def _pairs(text: str, change: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"{change}: {error}") from error
    if len(words) == 2 and "=" not in words[0]:
        words = ["=".join(words)]
    if not all(word.partition("=")[0] and "=" in word for word in words):
        raise InvalidArgument(f"{change}: write KEY=VALUE")
    return [(key, value) for key, _, value in (word.partition("=") for word in words)]


@contextlib.asynccontextmanager
async def _source(path: str, quiet: bool) -> AsyncIterator[AsyncIterator[bytes]]:
    """What is to be read, with a bar while it is; ``-`` is stdin."""
    if path == "-":
        if terminal.is_terminal():
            raise CliError("stdin is a terminal: name a file with -i, or send an archive in", exit_code=2)
        reader = _stdin()
        total = None
    else:
        file = Path(path)
        if not file.exists():
            raise CliError(f"there is no file {path}")
        reader = archives.pieces(file)
        total = file.stat().st_size if file.is_file() else None
    with output.bar(f"Loading {'stdin' if path == '-' else path}", shown=not quiet) as show:
        yield _counted(reader, lambda done: show(done, total))


async def _stdin() -> AsyncIterator[bytes]:
    reader = terminal.StdinReader()
    while data := await reader.read():
        yield data


async def _counted(source: AsyncIterator[bytes], show: Callable[[int], None]) -> AsyncIterator[bytes]:
    done = 0
    async for data in source:
        done += len(data)
        show(done)
        yield data


async def load_command(socket: str, path: str, name: str, quiet: bool) -> None:
    """``orlop load``."""
    async with _source(path, quiet) as source:
        loaded = await archives.load(session.existing(socket), source, name)
    for image in loaded:
        called = (image.id,) if quiet else image.tags or (image.id,)
        for name in called:
            print(name if quiet else f"Loaded image: {name}")


async def import_command(socket: str, path: str, name: str, changes: Sequence[str], quiet: bool) -> None:
    """``orlop import``."""
    config = settings(changes)
    async with _source(path, quiet) as source:
        image = await archives.import_image(session.existing(socket), source, name, config)
    print(image.id)


async def save_command(socket: str, target: str, images: Sequence[str], quiet: bool) -> None:
    """``orlop save``."""
    await _out(archives.saved(session.existing(socket), images), target, "Saving", quiet)


async def export_command(socket: str, target: str, name: str, quiet: bool) -> None:
    """``orlop export``."""
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        await _out(container.exported(), target, "Exporting", quiet)


async def commit_command(socket: str, container: str, name: str, made: Made) -> None:
    """``orlop commit``: the id of the image."""
    config = settings(made.changes)
    async with session.connect(socket) as client:
        found = await Node(client).container(container)
        image = await found.commit(name, settings=config, author=made.author, comment=made.message)
    print(image.id)


async def _out(pieces: AsyncIterator[bytes], target: str, doing: str, quiet: bool) -> None:
    """Write an archive to a file, or to stdout for ``-``."""
    if target != "-":
        with output.bar(f"{doing} {target}", shown=not quiet) as show:
            await archives.write(Path(target), pieces, progress=lambda done: show(done, None))
        return
    if sys.stdout.isatty():
        raise CliError(
            "an archive is nothing for a terminal: name a file with -o, or send it on", exit_code=2
        )
    async for piece in pieces:
        await asyncio.to_thread(sys.stdout.buffer.write, piece)
    await asyncio.to_thread(sys.stdout.buffer.flush)
