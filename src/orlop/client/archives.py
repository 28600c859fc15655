"""Images from files and into files, for machines without a registry."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from orlop.client.calls import NativeClient
from orlop.client.facts import ImageFacts
from orlop.client.images import facts
from orlop.errors import InvalidArgument
from orlop.native.api import native_v1_pb2 as pb

CHUNK = 1 << 20
TIMEOUT = 4 * 3600.0
"""Seconds that a very large archive may take."""

Source = Path | IO[bytes] | AsyncIterator[bytes]
"""An archive: a file, or what is read from one. The directory of an OCI layout is an archive as well."""

Request = Callable[..., pb.LoadImagesRequest | pb.ImportImageRequest]


async def load(path: Path, source: Source, name: str = "") -> list[ImageFacts]:
    """Take the images of an archive, through the socket at ``path``; all of them or none."""
    async with NativeClient(path) as client:
        feed = _Upload(pb.LoadImagesRequest, source, {"name": name})
        answer = await feed.answered(client.archives.load_images)
    return [facts(image) for image in answer.images]


async def import_image(
    path: Path, source: Source, name: str = "", settings: Mapping[str, Any] | None = None
) -> ImageFacts:
    """Make an image of the archive of a file system. ``settings`` is what an image configuration says."""
    first = {"name": name, "config": json.dumps(settings).encode() if settings else b""}
    async with NativeClient(path) as client:
        feed = _Upload(pb.ImportImageRequest, source, first)
        answer = await feed.answered(client.archives.import_image)
    return facts(answer.image)


async def saved(path: Path, images: Sequence[str]) -> AsyncIterator[bytes]:
    """The archive of images, in pieces."""
    async with NativeClient(path) as client:
        async for part in client.archives.save_images(pb.SaveImagesRequest(names=images)):
            yield part.data


async def save(
    path: Path, target: Path, images: Sequence[str], *, progress: Callable[[int], None] | None = None
) -> None:
    """Write the archive of images to ``target``, which stands there whole or not at all. Raises OSError.

    ``progress`` is told how many bytes are there.
    """
    await write(target, saved(path, images), progress=progress)


async def write(
    target: Path, source: AsyncIterator[bytes], *, progress: Callable[[int], None] | None = None
) -> None:
    """Write an archive to ``target``, which stands there whole or not at all. Raises OSError."""
    aside = target.with_name(f".{target.name}.part")
    try:
        with aside.open("wb") as file:
            async for piece in source:
                await asyncio.to_thread(file.write, piece)
                if progress is not None:
                    progress(file.tell())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


class _Upload:
    """The messages of a call that brings an archive. What fails here is told, not that the call broke."""

    def __init__(self, request: Request, source: Source, first: Mapping[str, Any]) -> None:
        self._request = request
        self._source = source
        self._first = first
        self._failure: Exception | None = None

    async def answered(self, call: Callable[..., Any]) -> Any:
        try:
            return await call(self._messages(), timeout=TIMEOUT)
        except BaseException:
            if self._failure is not None:
                raise self._failure from None
            raise

    async def _messages(self) -> AsyncIterator[Any]:
        yield self._request(**self._first)
        try:
            async for data in pieces(self._source):
                yield self._request(data=data)
        except Exception as error:
            self._failure = error
            raise


async def pieces(source: Source) -> AsyncIterator[bytes]:
    """What an archive holds, in pieces. Raises OSError, InvalidArgument for a directory that is no layout."""
    if isinstance(source, AsyncIterator):
        async for data in source:
            for start in range(0, len(data), CHUNK):
                yield data[start : start + CHUNK]
        return
    if not isinstance(source, Path):
        while data := await asyncio.to_thread(source.read, CHUNK):
            yield data
        return
    if source.is_dir():
        async for data in _layout(source):
            yield data
        return
    with source.open("rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK):
            yield data


async def _layout(directory: Path) -> AsyncIterator[bytes]:
    """An archive of the files of an OCI layout."""
    if not (directory / "index.json").is_file():
        raise InvalidArgument(f"{directory} is no OCI layout: it has no index.json")
    for path in await asyncio.to_thread(lambda: sorted(directory.rglob("*"))):
        if not path.is_file() or path.is_symlink():
            continue
        with path.open("rb") as file:
            entry = tarfile.TarInfo(os.fspath(path.relative_to(directory)))
            entry.size = left = os.fstat(file.fileno()).st_size
            yield entry.tobuf(tarfile.PAX_FORMAT)
            while data := await asyncio.to_thread(file.read, min(CHUNK, left)):
                left -= len(data)
                yield data
            if left:
                raise InvalidArgument(f"{path} became shorter while it was read")
            yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
